"""What the compared implementations are called; without torch, for the command line."""

from __future__ import annotations

from collections.abc import Sequence

from seqlm.config import Precision
from seqlm.errors import UsageError, nearest

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "tf32")
REFERENCE = "reference"
"""The models by their equations, in fp32 only."""


def builtin(precision: str) -> str:
    """Name of the implementation by ``torch.nn`` in a precision."""
    return f"torch.nn-{precision}"


def compiled(precision: str) -> str:
    """Name of the same under ``torch.compile``."""
    return f"torch.compile-{precision}"


def ours(precision: str) -> str:
    """Name of our implementation in a precision."""
    return f"ours-{precision}"


def precision_of(name: str) -> Precision:
    """The precision of an implementation.

    Raises:
        UsageError: there is no implementation of that name.
    """
    for precision in PRECISIONS:
        if name in (builtin(precision), compiled(precision), ours(precision)):
            return precision
    if name == REFERENCE:
        return "fp32"
    valid = implementation_names(PRECISIONS)
    raise UsageError(f'unknown implementation "{name}"{nearest(name, valid)} (valid: {", ".join(valid)})')


def implementation_names(precisions: Sequence[Precision], *, with_compiled: bool = False) -> list[str]:
    """All that are compared in these precisions, in the order of their turns."""
    kinds = (builtin, compiled, ours) if with_compiled else (builtin, ours)
    pairs = [kind(precision) for precision in precisions for kind in kinds]
    return [REFERENCE, *pairs] if "fp32" in precisions else pairs


def compared_with(name: str) -> list[str]:
    """What our implementation called ``name`` is compared with: torch.nn in its precision, and what is fp32."""
    precision = precision_of(name)
    return [REFERENCE, builtin(precision), compiled(precision), *([ours("fp32")] if precision != "fp32" else [])]
