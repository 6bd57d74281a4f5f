"""CUDA graphs: a function of tensors that a GPU does again and again, recorded once and launched as a whole."""

import contextlib
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, final

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

    failure: ClassVar[str | None] = None
    """Why a capture of this process has failed, after it had begun. Then nothing else is captured in the process."""

    def __init__(
        self, function: Callable[..., Result], model: nn.Module, warm_up: Callable[..., object] | None = None
    ) -> None:
        self._function, self._model = function, model
        self._warm_up = warm_up or function
        self._recordings: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        """Shapes -> a graph with the memory that it reads and writes."""

    def __call__(self, *arguments: State) -> Result:
        self.record(*arguments)
        tensors = tensors_of(arguments)
        graph, memory, result = self._recordings[_shapes(arguments)]
        for static, tensor in zip(memory, tensors, strict=True):
            static.copy_(tensor)
        graph.replay()
        return result

    def record(self, *arguments: State) -> None:
        """Record the function for the shapes of ``arguments``, if it has not been. Generators and buffers stay as is.

        The last warm-up may not wait for the device. So what a capture would refuse is nearly always found before one
        has begun.

        Raises:
            CaptureError: the function cannot be captured.
            torch.cuda.OutOfMemoryError, RuntimeError: the GPU has too little memory, or is broken. If CUDA reports
                that the capture was invalidated, the OutOfMemoryError is the context of that.
        """
        if _shapes(arguments) in self._recordings:
            return
        if Captured.failure is not None:
            raise CaptureError(Captured.failure)
        static = cloned(arguments)
        stream = _stream_for(tensors_of(static)[0].device)
        with undone(self._model):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS - 1):
                    self._warm_up(*cloned(arguments))
                with _refusals(), _waiting_is_an_error():
                    self._warm_up(*cloned(arguments))
            torch.cuda.current_stream().wait_stream(stream)
            with _refusals():
                graph, result = _capture(lambda: self._function(*static), stream)
        self._recordings[_shapes(arguments)] = (graph, tensors_of(static), result)


def _shapes(arguments: tuple[State, ...]) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in tensors_of(arguments))


def _capture(function: Callable[[], Result], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return the graph of a function, and its result in the memory of the graph.

    If that fails, PyTorch (read in versions 2.8 to 2.13) stays on the stream of the capture, its allocator still serves
    the capture, so that it can give no free memory back, and in some versions the generator still counts what the
    capture draws, so that nobody else can draw. A capture that ends well resets the generator.
    """
    graph, pool, before = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):  # gives free memory back first; computes nothing
            return graph, function()
    except BaseException as error:
        Captured.failure = _reason(error)
        graph.reset()
        torch.cuda.set_stream(before)
        with contextlib.suppress(AttributeError, RuntimeError):  # no such function; the allocator has ended it itself
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
            torch.zeros(1, device=stream.device)
        raise


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Have PyTorch raise an error where an operation waits for the device, as ``item`` and unpinned copies do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each first use: not every such operation is known to it
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise what the block raises as a :class:`CaptureError`, unless memory or the device have failed."""
    try:
        yield
    except Exception as error:
        if failure_kind(error) != "code":
            raise
        raise CaptureError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error, with the innermost line of code outside of PyTorch."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in Path(frame.filename).parts]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}{place}"


# -- what a warm-up leaves as it was ---------------------------------------------------------------------------------


def cloned(arguments: tuple[State, ...]) -> tuple[State, ...]:
    """Return copies: a user's own ``forward`` may write into its state."""
    return tuple(map_state(Tensor.clone, argument) for argument in arguments)


@contextlib.contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Restore the generators and the model's buffers after the block, also if it fails."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    generators = generator_states(device)
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        set_generator_states(device, *generators)
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer  # forward may have assigned another tensor
                if not torch.equal(buffer, copy):  # a constant may be a view that cannot be written
                    buffer.copy_(copy)


def generator_states(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the states of the global random generators of the CPU and of ``device``. On a CPU, both are one."""
    on_cpu = torch.get_rng_state()
    return on_cpu, torch.cuda.get_rng_state(device) if device.type == "cuda" else on_cpu


def set_generator_states(device: torch.device, on_cpu: Tensor, on_device: Tensor) -> None:
    """Restore what :func:`generator_states` returned."""
    torch.set_rng_state(on_cpu)
    if device.type == "cuda":
        torch.cuda.set_rng_state(on_device, device)
    else:
        torch.set_rng_state(on_device)
