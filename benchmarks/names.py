"""What the compared implementations are called; without torch, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from seqlm.errors import UsageError, nearest

Precision: TypeAlias = Literal["fp32", "bf16", "tf32"]
"""Of our matrix products; the baselines' are always float32."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BASELINES = ("literal", "torch.nn")


def ours(precision: str) -> str:
    """Name of our implementation in a precision."""
    return f"ours-{precision}"


def implementation_names(precisions: Sequence[Precision] = PRECISIONS) -> list[str]:
    """All that are compared, in the order of their turns."""
    return [*BASELINES, *map(ours, precisions)]


def check_implementation(name: str) -> None:
    """Raise UsageError unless there is an implementation of that name."""
    valid = implementation_names()
    if name not in valid:
        raise UsageError(f'unknown implementation "{name}"{nearest(name, valid)} (valid: {", ".join(valid)})')
