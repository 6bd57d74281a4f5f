"""CUDA graphs on a CPU: a stand-in for the calls of ``torch.cuda`` with which a function is captured and replayed.

A capture records the operations on tensors, and takes back what they have changed; what they have made holds NaN. A
replay does the same operations on the same memory. So a replay gives wrong numbers if it needs anything that the
function does in Python, or memory that another call has left.

``nonzero`` is the operation that waits for the device: an error in a capture, and wherever waiting is an error. (On a
CPU our own models read a scalar.) A capture that fails leaves behind what PyTorch leaves behind: its stream is the
current one, its pool is being served, and nobody can draw.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqlm.training import capture


class Graph:
    """A graph: the operations that were recorded, each with its arguments and the tensors that it made."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    def reset(self) -> None:
        """Forget the operations."""
        self.operations.clear()

    def replay(self) -> None:
        """Do the operations again, into the memory of the first time."""
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, made in self.operations:
                for old, new in zip(made, _tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse(func)
        return func(*args, **(kwargs or {}))


def _refuse(function: Any) -> None:
    if function is torch.ops.aten.nonzero.default:
        raise RuntimeError("called a synchronizing CUDA operation")


class Stream:
    """A stream, on which everything waits anyway."""

    device, device_index = torch.device("cpu"), 0

    def wait_stream(self, other: object) -> None:
        """Do nothing."""


class Device:
    """What a process has of a GPU: the stream that is current, and what a failed capture has left."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.stream = self.default_stream = Stream()
        self.pools: set[object] = set()
        """Those of captures whose memory is still being served."""
        self.can_draw = True
        self._watch: _NoWaiting | None = None

    @contextlib.contextmanager
    def graph(self, graph: Graph, *, pool: object = None, stream: Stream) -> Iterator[None]:
        """Capture the block, as ``torch.cuda.graph`` does."""
        assert not self.pools, "the allocator gives free memory back, which it cannot while it serves a capture"
        self.graphs.append(graph)
        before, self.stream, self.can_draw = self.stream, stream, False
        self.pools.add(pool)
        recorder = _Recorder(graph)
        try:
            with recorder:
                yield
        except Exception:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        finally:
            with torch.no_grad():
                recorder.take_back()
        self.pools.discard(pool)
        self.stream, self.can_draw = before, True

    def end_pool(self, device: object, pool: object) -> None:
        """Stop serving a capture."""
        self.pools.remove(pool)

    def set_stream(self, stream: Stream) -> None:
        """Make a stream the current one."""
        self.stream = stream

    def set_sync_debug_mode(self, mode: str) -> None:
        """Make it an error to wait for the device, or not."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
        self._watch = _NoWaiting() if mode == "error" else None
        if self._watch is not None:
            self._watch.__enter__()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._generator = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse(func)
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


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put the stand-in in the place of ``torch.cuda``'s calls, and return it."""
    device = Device()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", device.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", device.end_pool, raising=False)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: device.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.stream is not device.default_stream)
    monkeypatch.setattr(torch.cuda, "set_stream", device.set_stream)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", device.set_sync_debug_mode)
    capture._stream_for.cache_clear()
    return device
