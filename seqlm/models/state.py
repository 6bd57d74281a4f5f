"""What a model carries from window to window: nothing, a tensor, or a tuple of tensors.

A state is ``None``, a tensor, or a tuple of states. Each tensor has the batch on one axis, the same for all tensors of
a model (``LanguageModel.batch_axis``).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any
"""``Tensor | tuple[State, ...] | None``. A model takes the form that it returns, which types cannot express."""


def tensors_of(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    if state is None:
        return []
    return [state] if isinstance(state, Tensor) else [tensor for part in state for tensor in tensors_of(part)]


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """A state of the same form with ``function`` of each tensor."""
    return rebuilt(state, map(function, tensors_of(state)))


def rebuilt(like: State, tensors: Iterator[Tensor]) -> State:
    """A state of the form of ``like`` that holds ``tensors``, which are consumed in order."""
    if like is None:
        return None
    return next(tensors) if isinstance(like, Tensor) else tuple(rebuilt(part, tensors) for part in like)


def split_state(state: State, parts: int, axis: int) -> list[State]:
    """The state cut along its batch into ``parts``; their sizes differ by one at most."""
    pieces = [tensor.tensor_split(parts, dim=axis) for tensor in tensors_of(state)]
    return [rebuilt(state, iter([piece[number] for piece in pieces])) for number in range(parts)]


def join_states(states: Sequence[State], axis: int) -> State:
    """The states of neighbouring columns as one."""
    if len(states) == 1:
        return states[0]
    groups = zip(*map(tensors_of, states), strict=True)
    return rebuilt(states[0], iter([torch.cat(tensors, dim=axis) for tensors in groups]))
