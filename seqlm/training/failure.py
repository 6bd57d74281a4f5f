"""What went wrong, as a rank records it at its end. Classified inside the worker, since schedulers cannot tell."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from seqlm import gpus, machine
from seqlm.environment import GPU_SHARE, MICRO_BATCHES, NODE
from seqlm.errors import DivergedError, ModelError, SeqlmError, is_storage_failure
from seqlm.reading import exists
from seqlm.records.attempts import RankEnd
from seqlm.state import FailureKind

_NO_MEMORY = (
    "defaultcpuallocator: can't allocate memory",
    "not enough memory: you tried to allocate",  # the same on Windows and in some builds
    "cuda out of memory",
    "cuda error: out of memory",  # from the driver: a context, a graph, a library's workspace
    "cuda failure 2 'out of memory'",  # NCCL's buffers
    "cuda failure 'out of memory'",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # no room for the handle, on a GPU that is full
    "cudnn_status_alloc_failed",
    "cudnn_status_not_initialized",
    "std::bad_alloc",
)
"""What libraries say when an allocation fails, in lower case."""

_BROKEN_DEVICE = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
    "has fallen off the bus",
    "busy or unavailable",
    "device unavailable",
    "no cuda-capable device is detected",
    "cuda driver initialization failed",
    "system not yet initialized",
    "no kernel image is available",
    "mps client",  # "has been terminated by the server", "failed to connect"
    "mps server",  # "is not ready": it recovers from the fault of a client
)
"""What CUDA says of a GPU that is broken or gone, or that another process has taken down."""

_FAULTS = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
)
"""What CUDA says of a fault in a kernel. Under MPS all processes on the GPU get it, whichever of them caused it
(https://docs.nvidia.com/deploy/mps, error containment)."""

_PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connect timeout",
    "timed out",
    "wait timeout",  # the others did not come to the meeting point
    "socket timeout",
    "broken pipe",
    "remote process exited or there was a network error",  # NCCL's ncclRemoteError
)

_NCCL_MISUSED = ("ncclinvalidusage", "ncclinvalidargument")
"""What NCCL says of a call that is wrong each time, such as two ranks on one GPU."""


NO_ROOM = "the model and its optimizer alone need more memory than there is"


def failure_kind(error: BaseException, ranks: int = 1) -> FailureKind:
    """The kind of a failure of a run with ``ranks``: ``diverged``, ``oom``, ``node``, ``preempted`` or ``code``.

    ``node`` is what the run may not be to blame for: its disk or GPU failed, it lost its other ranks, or a run that
    shares its GPU under MPS had a fault. Words are looked for in what libraries say, never in an error of ours, nor in
    one such as a KeyError, whose text may be anything.
    """
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, KeyboardInterrupt):
        return "preempted"
    if failed_allocation(error) is not None:
        return "oom"
    broken = _says(error, _BROKEN_DEVICE) or _may_be_of_a_neighbour(error) or _is_code_gone()
    return "node" if broken or is_storage_failure(error) or _is_peer_lost(error, ranks) else "code"


def _is_code_gone() -> bool:
    """Whether somebody has deleted the code of this process, as with the cache. An import then fails at any time."""
    return not exists(Path(__file__))


def _may_be_of_a_neighbour(error: BaseException) -> bool:
    return machine.mps_directory(os.environ) is not None and _says(error, _FAULTS)


def failed_allocation(error: BaseException) -> BaseException | None:
    """The failed allocation that ``error`` is or was raised because of: a failed capture raises an error of its own."""
    if isinstance(error, SeqlmError):
        return None
    passed: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in passed:
        if (
            isinstance(link, torch.cuda.OutOfMemoryError | MemoryError)
            or _says(link, _NO_MEMORY)
            or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
        ):
            return link
        passed.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


@contextlib.contextmanager
def making_weights() -> Iterator[None]:
    """Mark an allocation that fails in the block, in which the model and its optimizer are made."""
    try:
        yield
    except Exception as error:
        if (allocation := failed_allocation(error)) is not None:
            allocation.add_note(NO_ROOM)
        raise


def _is_of_the_gpu(error: BaseException) -> bool:
    """Whether a failed allocation is one of a GPU's memory, not of the machine's."""
    is_cuda = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_cuda or _says(error, ("cuda", "cublas", "cudnn"))


def _is_peer_lost(error: BaseException, ranks: int) -> bool:
    if ranks == 1 or _says(error, _NCCL_MISUSED):
        return False
    return isinstance(error, torch.distributed.DistError) or _says(error, _PEER_LOST)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    if not isinstance(error, RuntimeError | OSError):
        return False
    text = str(error).lower()
    return any(sign in text for sign in signs)


def describe_failure(error: BaseException, *, rank: int, ranks: int = 1) -> RankEnd:
    """Return what one of ``ranks`` records of its failure: kind, a line for a person, where it happened, ..."""
    kind = failure_kind(error, ranks)
    error = failed_allocation(error) or error
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown"
    message = str(error).strip() or type(error).__name__
    if not isinstance(error, SeqlmError):
        message = f"{type(error).__name__}: {message}"
    if _says(error, ("duplicate gpu",)):  # NCCL, of two ranks on MIG instances of one card too
        message = f"two ranks are on one card, and NCCL needs one for each; use resources.ranks = 1 ({message})"
    if isinstance(error, torch.cuda.OutOfMemoryError) and (share := GPU_SHARE.read()) < 1:
        message = f"out of memory with its share of {share:g} of the GPU ({message})"
    peer_lost = kind != "oom" and _is_peer_lost(error, ranks)
    if kind == "oom" and _is_of_the_gpu(error) and (others := gpus.others_beside_this_process()):
        # Smaller micro-batches would not help, since nobody knows how much the others take. Another GPU does.
        kind, message = "node", f"out of memory on a GPU that is also used by {others} ({message})"
    is_weights = kind == "oom" and NO_ROOM in getattr(error, "__notes__", ())
    if is_weights:
        message = f"{NO_ROOM}, so smaller micro-batches would not help ({message})"
    if peer_lost:
        message = f"rank {rank} lost another rank of the run, which ended or whose machine is gone ({message})"
    if kind == "node" and _is_code_gone():
        message = f"the code of this run was deleted from the cache while it ran ({message})"
    if kind == "node" and _may_be_of_a_neighbour(error):
        message = f"this run, or another one on its GPU under MPS, had a fault ({message})"
    message = message.splitlines()[0][:300]
    if kind == "code" and not isinstance(error, SeqlmError) and (place := _own_place(error)):
        message = f"{message} ({place})"
    return RankEnd(
        rank=rank,
        outcome="failed",
        kind=kind,
        message=message,
        where=where,
        peer_lost=peer_lost,
        node=(NODE.read() or None) if kind == "node" and not peer_lost else None,
        micro_batches=MICRO_BATCHES.read(),
        before_batch=is_weights or None,
    )


def _own_place(error: BaseException) -> str | None:
    """Return the last line of the user's model that an error passed through: ``lstm.py line 12``. ``None``: none."""
    place = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if getattr(frame.f_globals.get("__loader__"), "is_own_code", False):
            place = f"{Path(frame.f_code.co_filename).name} line {number}"
    return place


def tell(text: str) -> None:
    """One or more lines on stderr; where even the log cannot be written, nothing."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def failure_text(error: BaseException) -> str:
    """One line for an error of the world; the traceback for one of the code, also of the user's own model."""
    if isinstance(error, SeqlmError):
        cause = error.__cause__ if isinstance(error, ModelError) else None
        traceback_of_cause = "".join(traceback.format_exception(cause)) if cause is not None else ""
        return f"{traceback_of_cause}error: {error}"
    return "".join(traceback.format_exception(error)).rstrip()
