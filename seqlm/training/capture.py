"""CUDA graphs: a function of tensors that a GPU does again and again, recorded once and launched as a whole."""

import functools
from collections.abc import Callable
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

from seqlm.models.state import State, map_state, tensors_of
from seqlm.training.distributed import Rank

WARM_UP_CALLS = 3
"""How often a function runs before it is recorded, so that libraries set up their workspaces. Nothing of it is kept."""

Result = TypeVar("Result")


def is_captured(rank: Rank) -> bool:
    """Whether the steps and evaluations of a run are replayed as CUDA graphs: on a GPU, with one rank."""
    return rank.device.type == "cuda" and rank.world_size == 1


@functools.cache
def _stream_for(device: torch.device) -> torch.cuda.Stream:
    """The stream on which everything is captured on ``device``.

    One for all: the allocator keeps the free memory of each stream for that stream, and cuBLAS has a workspace
    (32 MiB on Hopper) for each pair of handle and stream.
    """
    return torch.cuda.Stream(device)


@final
class Captured(Generic[Result]):
    """A function of tensors and states on a GPU, recorded once for each set of shapes and replayed in each call.

    The result is in the same memory in every call with these shapes: the next call overwrites it.

    Args:
        function: reads nothing back from the device, and does the same whatever the numbers in its arguments are.
        warm_up: called :data:`WARM_UP_CALLS` times before ``function`` is recorded. It does what ``function`` does and
            changes nothing. ``None``: ``function``, which then changes nothing itself.

    Raises:
        torch.cuda.OutOfMemoryError, RuntimeError: by a call that records, if the GPU has too little memory. What
            CUDA reports is then that the capture was invalidated, with the OutOfMemoryError as its context.
    """

    def __init__(self, function: Callable[..., Result], warm_up: Callable[..., object] | None = None) -> None:
        self._function = function
        self._warm_up = warm_up or function
        self._recordings: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        """Shapes -> a graph with the memory that it reads and writes."""

    def __call__(self, *arguments: State) -> Result:
        tensors = tensors_of(arguments)
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(arguments)
        graph, memory, result = self._recordings[shapes]
        for static, tensor in zip(memory, tensors, strict=True):
            static.copy_(tensor)
        graph.replay()
        return result

    def _record(self, arguments: tuple[State, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Result]:
        stream = _stream_for(tensors_of(arguments)[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                self._warm_up(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        static = tuple(map_state(Tensor.clone, argument) for argument in arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):  # gives free memory back first; records, computes nothing
            result = self._function(*static)
        return graph, tensors_of(static), result
