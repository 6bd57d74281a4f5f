"""What this machine has: cores and GPUs, found without importing torch."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_count() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""What /proc/cpuinfo calls products of bfloat16 numbers: Intel and AMD, Intel, ARM."""


def has_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16 numbers; false where it does not tell."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return not {*BF16_FLAGS}.isdisjoint(flags.split())
    return False


def gpus() -> list[tuple[str, str]]:
    """(identifier for CUDA_VISIBLE_DEVICES, name) of each NVIDIA GPU that this process may use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [(index.strip(), name.strip()) for index, _, name in (line.partition(",") for line in answer.splitlines())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    names = dict(found)
    return [(device, names.get(device, "GPU")) for device in visible.split(",") if device and device != "-1"]


def devices() -> list[str]:
    """The machine's devices for a person: its GPUs, else its processor."""
    return [name for _, name in gpus()] or [f"{cpu_model()} ({cpu_count()} cores)"]
