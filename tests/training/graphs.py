"""CUDA graphs on a CPU: a stand-in for the calls of ``torch.cuda`` with which a function is captured and replayed.

A capture records the operations on tensors, and takes back what they have changed; what they have made holds NaN. A
replay does the same operations on the same memory. So a replay gives wrong numbers if it needs anything that the
function does in Python, or memory that another call has left.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqlm.training import capture


class Stream:
    """A stream: nothing but its identity."""

    def wait_stream(self, other: Stream) -> None:
        """Do nothing: operations run in the order of their calls."""


@dataclass
class _Operation:
    function: Any
    args: Any
    kwargs: Any
    made: list[Tensor]


class Graph:
    """A graph: the operations that were recorded."""

    def __init__(self) -> None:
        self.operations: list[_Operation] = []

    def replay(self) -> None:
        """Do the operations again, into the memory of the first time."""
        with torch.no_grad():
            for operation in self.operations:
                made = _tensors(operation.function(*operation.args, **operation.kwargs))
                for old, new in zip(operation.made, made, strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._generator = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            if _memory(tensor) not in self._own | self._before.keys():
                self._before[_memory(tensor)] = (tensor.detach(), tensor.detach().clone())
        out = func(*args, **kwargs)
        read = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        self._own |= {_memory(tensor) for tensor in _tensors(out)} - read
        made = [tensor.detach() for tensor in _tensors(out)]
        self._graph.operations.append(_Operation(func, args, kwargs, made))
        return out

    def take_back(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)
        for operation in self._graph.operations:
            for tensor in operation.made:
                if _memory(tensor) in self._own and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        torch.set_rng_state(self._generator)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[number] if number < len(args) else kwargs.get(argument.name))


@dataclass
class Calls:
    """What a test has asked of the stand-in."""

    default: Stream = field(default_factory=Stream)
    current: list[Stream] = field(default_factory=list)
    """The stack of current streams."""
    captures: list[Stream | None] = field(default_factory=list)
    """The stream that each capture was given."""
    at_capture: Callable[[], None] = lambda: None
    """Called as a capture begins, when free memory is given back."""


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put the stand-in in the place of ``torch.cuda``'s calls, and return the record of its calls."""
    calls = Calls()
    calls.current = [calls.default]

    @contextlib.contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        calls.current.append(stream)
        try:
            yield
        finally:
            calls.current.pop()

    @contextlib.contextmanager
    def graph(graph: Graph, *, stream: Stream | None = None) -> Iterator[None]:
        calls.captures.append(stream)
        calls.at_capture()
        with _Recorder(graph) as recorder:
            yield
        with torch.no_grad():
            recorder.take_back()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: calls.current[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(capture, "_stream_for", functools.cache(capture._stream_for.__wrapped__))
    return calls
