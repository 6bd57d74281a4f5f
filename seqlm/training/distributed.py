"""Which rank this process is, and the few collective operations that training needs."""

import contextlib
import ctypes
import datetime
import io
import json
import os
import resource
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined] # public, missing from its list of names
    PrefixStore,
    Store,
    TCPStore,
)

from seqlm.environment import COLLECTIVE_MINUTES, DEVICE, GPU_SHARE, RENDEZVOUS, RENDEZVOUS_HOST
from seqlm.errors import (
    EXIT_FAILED,
    EXIT_STORAGE,
    EXIT_UNPRINTED,
    BackendError,
    FileError,
    UsageError,
    file_errors,
    is_storage_failure,
)
from seqlm.files import open_at, remove
from seqlm.machine import CUDA_BYTES, cpu_generation, cpu_model
from seqlm.models.products import fp32_library
from seqlm.reading import LARGEST_RECORD, parse_json, read_bytes

POLL_SECONDS = 0.1
"""How often a rank looks for the file of the first one."""
PART_BYTES = 2**26
"""Bytes that a rank sends at a time."""
CONNECT_LIMIT = datetime.timedelta(seconds=5)
"""How long a rank tries one port before it reads the file again."""


class AllLeave(Exception):  # noqa: N818 -- not an error
    """All ranks leave the training after the same collective operation."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of a run."""

    index: int = 0
    """This process, from 0."""
    world_size: int = 1
    """Processes of the run."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 -- torch.device is immutable

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.index == 0

    @property
    def device_name(self) -> str:
        """What a person calls the device: the model of the GPU or of the processor."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_model()

    @property
    def instructions(self) -> str:
        """Instructions that PyTorch uses and generation of the processor, by which libraries choose their code.

        Empty on a GPU.
        """
        if self.device.type == "cuda":
            return ""
        return f"{torch.backends.cpu.get_cpu_capability()} {cpu_generation()}".rstrip()

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the GPU or of its MIG instance; 0 on a CPU.

        They decide which place in a tensor gets which number of the generator.
        """
        on_gpu = self.device.type == "cuda"
        return torch.cuda.get_device_properties(self.device).multi_processor_count if on_gpu else 0

    @property
    def matmul(self) -> str:
        """Library of float32 matrix products, ``onednn`` or ``blas``; empty on a GPU."""
        return "" if self.device.type == "cuda" else fp32_library()

    def peak_memory_bytes(self) -> int:
        """Return the peak memory of this rank so far: allocated on the GPU, or resident in the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resident_peak_bytes()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The element-wise sum of ``tensor`` over all ranks, in place; the same values on every rank."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        values = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        values[self.index] = value
        return int(self.sum(values).max())

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What each rank gives, in their order, on the CPU. Sizes may differ."""
        return [self.from_rank(index, tensor.cpu().clone()) for index in range(self.world_size)]

    def from_rank(self, source: int, value: Any) -> Any:
        """What the rank ``source`` gives, tensors and plain data, on every rank."""
        if self.world_size == 1:
            return value
        buffer = io.BytesIO()
        torch.save(value, buffer)
        size = torch.tensor(buffer.tell(), device=self.device)
        dist.broadcast(size, src=source)
        room = bytearray(buffer.getvalue() if self.index == source else int(size))
        received = torch.frombuffer(room, dtype=torch.uint8)
        for part in received.split(PART_BYTES):
            sent = part.to(self.device)
            dist.broadcast(sent, src=source)
            part.copy_(sent)
        return torch.load(io.BytesIO(received.numpy().tobytes()), weights_only=True)  # noqa: TID251


def resident_peak_bytes() -> int:
    """Return the most memory of the machine that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rank_from_environment(env: Mapping[str, str]) -> Rank:
    """The rank of this process as the launcher put it into the environment.

    ``RANK`` and ``WORLD_SIZE`` (default: one process), ``LOCAL_RANK``, and ``SEQLM_DEVICE``: ``cpu``, ``cuda``, or
    none for CUDA where there is a device.

    Raises:
        UsageError: ``SEQLM_DEVICE`` is neither.
        BackendError: ``SEQLM_DEVICE`` is ``cuda`` and PyTorch sees no CUDA device.
    """
    has_cuda = torch.cuda.is_available()
    if (DEVICE.read(env) or ("cuda" if has_cuda else "cpu")) == "cuda":
        if not has_cuda:
            raise BackendError(f"{DEVICE.name}=cuda: PyTorch sees no CUDA device here; use cpu, or a CUDA build")
        # A launcher that gives each rank its own CUDA_VISIBLE_DEVICES leaves one visible device, number 0.
        device = torch.device("cuda", int(env.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    else:
        device = torch.device("cpu")
    return Rank(index=int(env.get("RANK", "0")), world_size=int(env.get("WORLD_SIZE", "1")), device=device)


def limit_memory(rank: Rank, env: Mapping[str, str]) -> None:
    """Limit PyTorch's memory to this rank's share of its GPU, ``SEQLM_GPU_SHARE``.

    CUDA's own memory is taken off the share, since PyTorch's limit does not count it. Without the variable, or on a
    CPU, nothing is limited.

    Raises:
        UsageError: the variable is not a number above 0.
        BackendError: the share is too small for CUDA itself.
    """
    share = GPU_SHARE.read(env)
    if rank.device.type != "cuda" or share >= 1:
        return
    card = torch.cuda.get_device_properties(rank.device)
    limit = share * card.total_memory - CUDA_BYTES
    if limit <= 0:
        raise BackendError(
            f"its share of {share:g} of {card.name}, {share * card.total_memory / 2**30:.1f} GiB, is no more than CUDA "
            f"itself takes ({CUDA_BYTES / 2**30:g} GiB); use more"
        )
    torch.cuda.set_per_process_memory_fraction(limit / card.total_memory, rank.device)


def _offer_port(path: Path, host: str, limit: datetime.timedelta) -> Store:
    """Listen on a port that the system chooses, and write it into a file that only this user can read.

    Keys of the store begin with a secret, so that a process that has not read the file cannot take a rank's place.
    """
    secret = secrets.token_hex(16)
    options: dict[str, Any] = {"is_master": True, "timeout": limit, "wait_for_workers": False}
    if host.startswith("127."):
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        store = TCPStore(host, port, master_listen_fd=listener.detach(), **options)
    else:  # on all addresses: the host's name may mean another one here than elsewhere
        store = TCPStore(host, 0, **options)
    with file_errors("write", path):
        remove([path])
        with os.fdopen(open_at(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"port": store.port, "secret": secret}, file)
    return PrefixStore(secret, store)


def _find_port(path: Path, host: str, limit: datetime.timedelta) -> Store:
    """Connect to the port that the first rank offers, once its file is there."""
    deadline = time.monotonic() + limit.total_seconds()
    while True:
        try:
            offer = parse_json(read_bytes(path, LARGEST_RECORD).decode())
            once = min(limit, CONNECT_LIMIT)
            store = TCPStore(host, offer["port"], is_master=False, timeout=once, wait_for_workers=False)
        except (FileError, OSError, LookupError, TypeError, ValueError, dist.DistError) as error:
            # Not there yet, not written to its end, or of a first rank that has ended.
            if time.monotonic() > deadline:
                problem = str(error).partition("\n")[0]
                minutes = limit.total_seconds() / 60
                raise dist.DistError(f"found no first rank at {path} within {minutes:g} min: {problem}") from None
            time.sleep(POLL_SECONDS)
            continue
        store.set_timeout(limit)
        return PrefixStore(offer["secret"], store)


def _keep_for_ever(group: Any) -> None:
    """Give an object a reference that is never taken back.

    A gloo group joins its threads when it is freed. DistributedDataParallel frees it with the interpreter's lock held,
    for which the thread of the last collective may still wait: the rank then hangs and its run never ends
    (https://github.com/pytorch/pytorch/issues/56297). The threads of a group that is not freed end with the process.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


@contextlib.contextmanager
def process_group(rank: Rank) -> Iterator[None]:
    """Join the other ranks of the run while the block runs; nothing to join for a run of one process.

    Gloo on CPU, NCCL on GPU. The ranks meet at a port of ``SEQLM_RENDEZVOUS_HOST``, the first rank's host (default:
    127.0.0.1), which the first rank writes into the file ``SEQLM_RENDEZVOUS``. A rank that waits for another one longer
    than ``SEQLM_COLLECTIVE_MINUTES`` gives up: with an error of PyTorch that is a failure of kind ``node``, or, where
    NCCL waits, with the end of the process.

    If the block raises anything but :class:`AllLeave`, this rank stays in the group until its process ends, which
    writes down first what went wrong. Otherwise other ranks could notice the end first and report that.

    Raises:
        UsageError: ``SEQLM_COLLECTIVE_MINUTES`` is not a number above 0, or no file is named.
        FileError: the file cannot be written.
    """
    if rank.world_size == 1:
        yield
        return
    limit = datetime.timedelta(minutes=COLLECTIVE_MINUTES.read())
    path, on_gpu = RENDEZVOUS.read(), rank.device.type == "cuda"
    if path is None:
        raise UsageError(f"{RENDEZVOUS.name}: expected the file where {rank.world_size} ranks meet, got nothing")
    if on_gpu:
        torch.cuda.set_device(rank.device)
    store = (_offer_port if rank.is_first else _find_port)(path, RENDEZVOUS_HOST.read(), limit)
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        store=store,
        rank=rank.index,
        world_size=rank.world_size,
        timeout=limit,
        # NCCL connects at once, on this device; without it a barrier guesses the device.
        device_id=rank.device if on_gpu else None,
    )
    _keep_for_ever(dist.group.WORLD)
    try:
        yield
    except AllLeave:
        dist.destroy_process_group()
        raise
    finally:
        if rank.is_first:
            remove([path])  # the secret has served its purpose
    dist.destroy_process_group()


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and end the process with the exit code that it returns, 1 after an exception.

    An exception that comes from a disk, or that cannot be printed, has the exit code of one: that the program says
    nothing, on a full disk, must not look like a fault of its code.

    For every program that joins a :func:`process_group`. The interpreter is not finalized and functions of ``atexit``
    are not called: a thread of gloo may still hold a tensor of the last collective operation. If the thread frees it
    during the finalization, CPython ends the thread inside a destructor and the process aborts with "terminate called
    without an active exception" (https://github.com/pytorch/pytorch/issues/190489).
    """
    try:
        code = main()
    except BaseException as error:  # even KeyboardInterrupt: nothing may reach the interpreter's own end
        code = EXIT_STORAGE if is_storage_failure(error) else EXIT_FAILED
        try:
            print("".join(traceback.format_exception(error)), end="", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            code = EXIT_UNPRINTED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: closed
        code = EXIT_UNPRINTED
    os._exit(code)
