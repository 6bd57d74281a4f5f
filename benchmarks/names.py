"""What the compared implementations are called; without torch, for the command line."""

from __future__ import annotations

from collections.abc import Sequence

from seqlm.config import Precision
from seqlm.errors import UsageError, nearest

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "tf32")
LITERAL = "literal"
"""The literal implementation, in fp32 only."""


def builtin(precision: str) -> str:
    """Name of the implementation by ``torch.nn`` in a precision."""
    return f"torch.nn-{precision}"


def ours(precision: str) -> str:
    """Name of our implementation in a precision."""
    return f"ours-{precision}"


def precision_of(name: str) -> Precision:
    """The precision of an implementation.

    Raises:
        UsageError: there is no implementation of that name.
    """
    for precision in PRECISIONS:
        if name in (builtin(precision), ours(precision)):
            return precision
    if name == LITERAL:
        return "fp32"
    valid = implementation_names(PRECISIONS)
    raise UsageError(f'unknown implementation "{name}"{nearest(name, valid)} (valid: {", ".join(valid)})')


def implementation_names(precisions: Sequence[Precision]) -> list[str]:
    """All that are compared in these precisions, in the order of their turns."""
    pairs = [name for precision in precisions for name in (builtin(precision), ours(precision))]
    return [LITERAL, *pairs] if "fp32" in precisions else pairs


def compared_with(name: str) -> list[str]:
    """What our implementation called ``name`` is compared with: torch.nn in its precision, and what is fp32."""
    return [LITERAL, builtin(precision_of(name)), *([ours("fp32")] if name != ours("fp32") else [])]
