"""What a rank sees of itself: a thread that records what the rank uses, and where it is if the run makes no progress.

The thread reads no number from the training's device, so the training never waits for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import psutil
import torch
import torch.distributed as dist

import seqlm
from seqlm.environment import GPU_SHARE
from seqlm.errors import FileError, SeqlmError
from seqlm.files import append_to, make_directory, remove, write_once
from seqlm.hang import LOOKS, Heartbeat, hung_seconds
from seqlm.machine import VISIBLE, group_memory, own_groups
from seqlm.reading import timestamp
from seqlm.records.attempts import Environment, GpuUsage, HangFile, Usage, Worker
from seqlm.training.distributed import resident_peak_bytes

if TYPE_CHECKING:
    from seqlm.training.attempt import Attempt

LOOK_SECONDS = 5.0
"""Time between two looks."""
WRITE_SECONDS = 60.0
"""Time between two writes of what is used."""
END_SECONDS = 10.0
"""Longest time that the end of a rank waits for the thread, whose device or file system may not answer."""
SILENT_PART = 0.8
"""Part of the time after which a run counts as hung, after which a rank writes where it is."""
MOST_COLLECTIVES = 32
"""Number of the last collective operations in ``hang-N.json``."""
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "NVIDIA_TF32_OVERRIDE",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
)
"""The only environment variables whose values are recorded, since others might be secrets."""
THROTTLED = {0x4: "power cap", 0x8: "hardware", 0x20: "temperature", 0x40: "hardware temperature", 0x80: "power brake"}
"""Bits of NVML's reasons for a lower clock, without those of an idle card and of settings."""


@contextlib.contextmanager
def watched(attempt: Attempt, record: Worker) -> Iterator[None]:
    """Watch this rank while the block runs. What cannot be written is left out.

    ``record`` is what ``worker.json`` of the rank holds. It gets ``environment`` and ``resources``, and nothing else in
    it changes.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(attempt, record, ended), name="witness", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(END_SECONDS)


def _watch(attempt: Attempt, record: Worker, ended: threading.Event) -> None:
    """Write into the record of this rank until it has ended, or the run belongs to another worker."""
    run, rank, number = attempt.run, attempt.rank, attempt.number
    note, card = run.hang_file(number, rank.index), _card(rank.device)
    is_over = was_silent = False
    written_at = -math.inf
    dump = note.with_suffix(".txt")
    with contextlib.suppress(OSError, SeqlmError), append_to(dump) as stacks:
        try:
            silent_seconds = SILENT_PART * hung_seconds(os.environ)
            # A thread of C writes the stacks if this one does not call it off in time: the interpreter is held.
            faulthandler.dump_traceback_later(silent_seconds, file=stacks)
            heartbeat = Heartbeat(run, number, silent_seconds)
            record = replace(record, environment=_write_environment(attempt))
            while not is_over:
                is_over = ended.wait(0 if written_at < 0 else min(LOOK_SECONDS, silent_seconds / LOOKS))
                faulthandler.dump_traceback_later(silent_seconds, file=stacks)
                if os.fstat(stacks.fileno()).st_size:  # it was held for long, and goes on
                    os.ftruncate(stacks.fileno(), 0)
                if card is not None:
                    card.look()
                with contextlib.suppress(FileError):
                    if is_over or time.monotonic() - written_at >= WRITE_SECONDS:
                        written_at = time.monotonic()
                        used = replace(record, resources=resources(card))
                        used.write_file(run.worker_file(number, rank.index), guard=attempt.guard)
                    is_silent = heartbeat.is_hung()
                    if is_silent and not was_silent:
                        where_it_is(rank.index).write_file(note, guard=attempt.guard)
                    elif was_silent and not is_silent:
                        remove([note])
                    was_silent = is_silent
        finally:
            faulthandler.cancel_dump_traceback_later()
            attempt.guard()
            remove([dump])


# -- what it uses --------------------------------------------------------------------------------------------------


def resources(card: Card | None = None) -> Usage:
    """Return what this process, and those of its children that have ended, have used since its start."""
    process, read, written = psutil.Process(), None, None
    with contextlib.suppress(AttributeError, psutil.Error):  # macOS; a container that forbids it
        _, _, read, written, *_ = process.io_counters()
    peak, limit = group_memory(own_groups())
    gpu: GpuUsage | Literal["shared"] | None = None
    if card is not None:
        gpu = "shared" if GPU_SHARE.read() < 1 else card.record()
    return Usage(
        seconds=process_seconds(),
        cpu_seconds=math.fsum(process.cpu_times()[:4]),
        peak_resident_bytes=resident_peak_bytes(),
        read_bytes=read,
        written_bytes=written,
        group_peak_bytes=peak,
        group_limit_bytes=limit,
        gpu=gpu,
    )


def process_seconds() -> float:
    """Return the age of this process."""
    return max(0.0, time.time() - float(psutil.Process().create_time()))


@final
class Card:
    """A GPU as NVIDIA's management library shows it; what card or driver do not support is not finite."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._joules_before = self._joules()
        self._looks, self._throttled = 0, Counter[str]()
        self._percent, self._most_bytes = 0.0, -math.inf

    def _ask(self, function: str, field: str = "real") -> float:
        with contextlib.suppress(AttributeError, self._nvml.NVMLError):
            return getattr(getattr(self._nvml, function)(self._handle), field)  # type: ignore[no-any-return]
        return math.nan

    def _joules(self) -> float:
        return self._ask("nvmlDeviceGetTotalEnergyConsumption") / 1000

    def look(self) -> None:
        """Note what the card does at this moment."""
        self._looks += 1
        self._percent += self._ask("nvmlDeviceGetUtilizationRates", "gpu")
        self._most_bytes = max(self._most_bytes, self._ask("nvmlDeviceGetMemoryInfo", "used"))
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        self._throttled.update(name for bit, name in THROTTLED.items() if math.isfinite(reasons) and int(reasons) & bit)

    def record(self) -> GpuUsage:
        """Return what it did since the start: shares of the time, bytes and joules."""
        return GpuUsage(
            busy=self._percent / 100 / self._looks,
            peak_memory_bytes=self._most_bytes,
            joules=self._joules() - self._joules_before,
            throttled={name: number / self._looks for name, number in self._throttled.items()},
        )


def _card(device: torch.device) -> Card | None:
    """Return the GPU of this rank. ``None``: it has none, or ``pynvml`` is not installed or does not find it."""
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # pynvml has the class of its errors
            import pynvml

            pynvml.nvmlInit()
            uuid = os.environ.get(VISIBLE, "")
            if not uuid.startswith("MIG-"):  # PyTorch does not give the UUID of an instance
                uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return Card(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    return None


def _write_environment(attempt: Attempt) -> str:
    """Write what a worker runs with, once for all workers of the study with the same. Return the digest of that."""
    packages: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        packages.setdefault(package.name, package.version)  # the first one on the path is imported
    driver, system = None, os.uname()  # platform.platform() starts a process
    with contextlib.suppress(OSError):
        driver = re.search(r"Module\b.*?(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text("utf-8"))
    environment = Environment(
        python=platform.python_version(),
        system=" ".join((system.sysname, system.release, system.machine, *platform.libc_ver())),
        driver=driver[1] if driver else None,
        cuda=torch.version.cuda,
        packages=dict(sorted(packages.items())) | {"seqlm": seqlm.__version__},
        variables={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )
    text = environment.to_text().encode()
    digest = hashlib.sha256(text).hexdigest()
    file = attempt.run.environment(digest)
    with contextlib.suppress(FileError):
        make_directory(file.parent)
        own = attempt.run.worker_file(attempt.number, attempt.rank.index)  # the next worker sweeps its folder
        write_once(file, text, guard=attempt.guard, beside=own)
    return digest


# -- where it is ---------------------------------------------------------------------------------------------------


def where_it_is(rank: int = 0) -> HangFile:
    """Return the stacks of all threads, innermost frame first, and the last collective operations."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {
        f"{names.get(ident, 'thread')} {ident}": tuple(
            f"{frame.f_code.co_name}, {frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_stack(frame)
        )
        for ident, frame in sys._current_frames().items()
    }
    main = threading.main_thread()
    in_torch = f", {Path(torch.__file__).parent}/"
    own = [frame for frame in stacks[f"{main.name} {main.ident}"] if in_torch not in frame]
    where = re.sub(", .*/", ", ", own[0])  # without the folder
    return HangFile(rank=rank, at=timestamp(), where=where, collectives=collectives(), threads=stacks)


def collectives() -> tuple[tuple[int, str, bool], ...]:
    """Return the last collective operations that this rank has come to: number, name, and whether it is over.

    They are those of PyTorch's flight recorder. Empty: there are none, or this PyTorch records none.
    """
    if not dist.is_initialized():
        return ()
    recorder = "nccl" if dist.get_backend() == "nccl" else "fr"  # NCCL's group has one of its own
    dump: Any = getattr(torch._C._distributed_c10d, f"_dump_{recorder}_trace_json", None)
    with contextlib.suppress(LookupError, TypeError, ValueError):
        return tuple(
            (
                entry["collective_seq_id"],
                entry["profiling_name"].rpartition(":")[2],
                bool(entry["retired"] or entry["state"] == "completed"),
            )
            for entry in json.loads(dump())["entries"][-MOST_COLLECTIVES:]
        )
    return ()
