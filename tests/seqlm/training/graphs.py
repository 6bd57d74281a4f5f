"""CUDA graphs on a CPU: a stand-in for the calls of ``torch.cuda`` with which a function is captured and replayed.

A capture records the operations on tensors, and takes back what they have changed; what they have made holds NaN. A
replay does the same operations on the same memory. So a replay gives wrong numbers if it needs anything that the
function does in Python, or memory that another call has left.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """A graph: the operations that were recorded, each with its arguments and the tensors that it made."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def replay(self) -> None:
        """Do the operations again, into the memory of the first time."""
        with torch.no_grad():
            for function, args, kwargs, made in self.operations:
                for old, new in zip(made, _tensors(function(*args, **kwargs)), strict=True):
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
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(args[number] if number < len(args) else kwargs.get(argument.name)):
                    if _memory(tensor) not in self._own | self._before.keys():
                        self._before[_memory(tensor)] = (tensor.detach(), tensor.detach().clone())
        out = func(*args, **kwargs)
        self._own |= set(map(_memory, _tensors(out))) - set(map(_memory, _tensors((args, kwargs))))
        self._graph.operations.append((func, args, kwargs, [tensor.detach() for tensor in _tensors(out)]))
        return out

    def take_back(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)
        for *_, made in self._graph.operations:
            for tensor in made:
                if _memory(tensor) in self._own and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        torch.set_rng_state(self._generator)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Put the stand-in in the place of ``torch.cuda``'s calls, and return the graphs that are captured."""
    captured: list[Graph] = []

    @contextlib.contextmanager
    def capture(graph: Graph, *, stream: object) -> Iterator[None]:
        captured.append(graph)
        with _Recorder(graph) as recorder:
            yield
        with torch.no_grad():
            recorder.take_back()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return captured
