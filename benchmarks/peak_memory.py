"""The peak memory of training, each implementation in a process of its own."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from benchmarks.device import synchronize
from benchmarks.implementations import Step, build_step, draw_windows
from benchmarks.shapes import Shape
from seqlm.errors import RunError

STEPS = {"cpu": 3, "cuda": 6}
"""Steps after which nothing new is allocated. The optimizer's state comes in the first; on a GPU our step is captured
as a graph, with memory of its own, in the fourth."""

ROOT = Path(__file__).resolve().parent.parent

Counter: TypeAlias = Literal["VmHWM", "ru_maxrss", "max_memory_allocated"]
"""Who counted: Linux, where its mark can be reset; any Unix; torch on a GPU."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Bytes at the peak above those before the model was built."""

    bytes: int
    counter: Counter
    device_bytes: int | None = None
    """What the GPU has less of after the steps than before (``mem_get_info``): also the memory of graphs and libraries,
    and what is reserved for tensors. ``None``: not on a GPU."""


def measure_peak_memory(name: str, shape: Shape, device: torch.device) -> PeakMemory:
    """Build the implementation called ``name`` and train for some steps, in this process, which should be fresh.

    A shrunk copy trains first: what torch imports and sets up at its first step counts for nobody.

    Raises:
        UsageError: there is no such implementation.
        BackendError: the device has no such precision.
    """
    _train(name, shape.shrunk(), device)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        before, free = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
        torch.cuda.reset_peak_memory_stats(device)
        step = _train(name, shape, device)
        synchronize(device)
        peak, taken = torch.cuda.max_memory_allocated(device), free - torch.cuda.mem_get_info(device)[0]
        del step  # with its graph, which was counted
        return PeakMemory(bytes=peak - before, counter="max_memory_allocated", device_bytes=taken)
    if _reset_high_water_mark():
        before = _status_bytes("VmRSS")
        _train(name, shape, device)
        return PeakMemory(bytes=_status_bytes("VmHWM") - before, counter="VmHWM")
    before = _maxrss_bytes()
    _train(name, shape, device)
    return PeakMemory(bytes=_maxrss_bytes() - before, counter="ru_maxrss")


def measure_in_child(name: str, shape: Shape, *, threads: int, device: torch.device) -> PeakMemory:
    """The same in a fresh process, through the command line of ``benchmarks.models``.

    Raises:
        RunError: the process failed, for instance because there was not enough memory.
    """
    command = [sys.executable, "-m", "benchmarks.models", "--peak-memory-of", name, shape.name]
    command += ["--threads", str(threads), "--device", device.type]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"{name}: no peak memory, exit code {answer.returncode}: {last}")
    return PeakMemory(**json.loads(answer.stdout))


def print_peak_memory(name: str, shape: Shape, device: torch.device) -> None:
    """What the child says to its parent."""
    print(json.dumps(asdict(measure_peak_memory(name, shape, device))))


def _train(name: str, shape: Shape, device: torch.device) -> Step:
    step = build_step(name, shape, device)
    for inputs, targets in draw_windows(shape, device, STEPS[device.type]):
        step(inputs, targets)
    return step


def _reset_high_water_mark() -> bool:
    """Let VmHWM start again from the present size; whether that is possible here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def _maxrss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
