"""Calling a hand-written differentiable operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """``function.apply(*arguments)`` with a type: torch annotates neither the call nor its result."""
    result: Tensor = function.apply(*arguments)
    return result
