"""CUDA graphs: a function of tensors that a GPU does again and again, recorded once and launched as a whole."""

import contextlib
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

from seqlm.environment import CAPTURE_RANKS
from seqlm.models.state import State, map_state, tensors_of
from seqlm.training.distributed import Rank
from seqlm.training.failure import failure_kind

WARM_UP_CALLS = 3
"""How often a function runs before it is recorded, so that libraries set up their workspaces. Nothing of it is kept."""

Result = TypeVar("Result")


class CaptureError(Exception):
    """A function cannot be captured as a CUDA graph. The text says why; the cause is the error of PyTorch or CUDA."""


def is_captured(rank: Rank) -> bool:
    """Whether the steps and evaluations of a run are replayed as CUDA graphs, if its model can be captured."""
    return rank.device.type == "cuda" and (rank.world_size == 1 or CAPTURE_RANKS.read())


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
        function: computes with ``model``, reads nothing back from the device, and does the same whatever the numbers in
            its arguments are.
        warm_up: called :data:`WARM_UP_CALLS` times before ``function`` is recorded. It does what ``function`` does and
            moves no parameter. ``None``: ``function``, which then moves none itself.
    """

    def __init__(
        self, function: Callable[..., Result], model: nn.Module, warm_up: Callable[..., object] | None = None
    ) -> None:
        self._function, self._model = function, model
        self._warm_up = warm_up or function
        self._recordings: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        """Shapes -> a graph with the memory that it reads and writes."""

    def __call__(self, *arguments: State) -> Result:
        graph, memory, result = self.record(*arguments)
        for static, tensor in zip(memory, tensors_of(arguments), strict=True):
            static.copy_(tensor)
        graph.replay()
        return result

    def record(self, *arguments: State) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Result]:
        """Return the recording for the shapes of ``arguments``, made now or before. Generators and buffers stay as is.

        Warm-ups work on copies: a user's own ``forward`` may write into its state. The last warm-up may not wait for
        the device. So what a capture would refuse is nearly always found before one has begun.

        Raises:
            CaptureError: the function cannot be captured.
            torch.cuda.OutOfMemoryError, RuntimeError: the GPU has too little memory, or is broken. If CUDA reports
                that the capture was invalidated, the OutOfMemoryError is the context of that.
        """
        shapes = tuple(tensor.shape for tensor in tensors_of(arguments))
        if shapes in self._recordings:
            return self._recordings[shapes]
        static = map_state(Tensor.clone, arguments)
        stream = _stream_for(tensors_of(static)[0].device)
        with undone(self._model):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS - 1):
                    self._warm_up(*map_state(Tensor.clone, arguments))
                with _waiting_is_refused():
                    self._warm_up(*map_state(Tensor.clone, arguments))
            torch.cuda.current_stream().wait_stream(stream)
            buffers = dict(self._model.named_buffers())
            with _waiting_is_refused():
                graph, result = _capture(lambda: self._function(*static), stream)
            for name, buffer in self._model.named_buffers():
                if buffer is not buffers.get(name):
                    raise CaptureError(f"forward assigns another tensor to {name}, which a replay does not do")
        self._recordings[shapes] = (graph, tensors_of(static), result)
        return self._recordings[shapes]


def _capture(function: Callable[[], Result], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return the graph of a function, and its result in the memory of the graph.

    If that fails, PyTorch (2.8 to 2.13, by reading) stays on the stream of the capture, its allocator still serves the
    capture, so that it can give no free memory back, and in some versions nobody can draw from the generator until
    another capture has ended well.
    """
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):  # gives free memory back first; computes nothing
            result = function()
    except BaseException:
        graph.reset()
        torch.cuda.set_stream(before)
        with contextlib.suppress(RuntimeError):  # it serves the capture no more
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
            torch.zeros(1, device=stream.device)
        raise
    return graph, result


@contextlib.contextmanager
def _waiting_is_refused() -> Iterator[None]:
    """Raise a :class:`CaptureError` for what fails in the block, or waits for the device, as ``item`` does.

    A failed allocation and a broken device are raised as they are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the first use: PyTorch does not know of every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except Exception as error:
        if failure_kind(error) != "code":
            raise
        first: BaseException = error
        while first.__context__ is not None:  # the end of a capture raises another error
            first = first.__context__
        frames = traceback.extract_tb(first.__traceback__)
        own = [frame for frame in frames if "torch" not in Path(frame.filename).parts][-1]
        line = str(first).partition("\n")[0][:200]
        raise CaptureError(f"{type(first).__name__}: {line} ({Path(own.filename).name}:{own.lineno})") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- what a warm-up leaves as it was -------------------------------------------------------------------------------


@contextlib.contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Restore generators and the model's buffers after the block, also if it fails."""
    drawn_from = generators(next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
    states = [generator.get_state() for generator in drawn_from]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for generator, state in zip(drawn_from, states, strict=True):
            generator.set_state(state)
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer  # forward may have assigned another tensor
                if not torch.equal(buffer, copy):  # a constant may be a view that cannot be written
                    buffer.copy_(copy)


def generators(device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """Return the global generators of the CPU and of ``device``: a model may draw from both. On a CPU, they are one."""
    on_cpu = torch.default_generator
    return on_cpu, torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else on_cpu
