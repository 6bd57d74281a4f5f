"""The card itself: what it is, its peaks, and what the profiler sees of a step. Runs in a process of its own."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import device_name, seconds_of_call, synchronize
from benchmarks.names import PRECISIONS
from benchmarks.shapes import Shape, built_in
from seqlm.errors import BackendError
from seqlm.models.products import use_precision

PEAK_SIDE = {"cuda": 8192, "cpu": 256}
"""Side of the cubic product whose speed is the peak."""
COPIED_NUMBERS = {"cuda": 2**28, "cpu": 2**20}
"""Float32 numbers of the copy that measures the bandwidth: on a GPU far more than its caches hold."""
REPEATS = 10
PROFILED_STEPS = 3
MOST_KERNELS = 12
"""Kernels that are listed by name, those that take longest."""


def describe(device: torch.device) -> dict[str, Any]:
    """Return name, precisions, memory and compute capability of the device, and the versions of CUDA's libraries."""
    precisions = []
    for precision in PRECISIONS:
        with contextlib.suppress(BackendError):
            use_precision(precision, device)
            precisions.append(precision)
    if device.type == "cpu":
        return {"name": device_name(device), "precisions": precisions}
    found = torch.cuda.get_device_properties(device)
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None
    return {
        "name": found.name,
        "precisions": precisions,
        "memory_bytes": found.total_memory,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "visible_devices": torch.cuda.device_count(),
    }


def peaks(device: torch.device) -> dict[str, Any]:
    """Return the fastest product of each precision (GFLOP/s) and the fastest copy (GB/s, bytes read and written).

    A precision that the device lacks is ``None``.
    """
    side, numbers = PEAK_SIDE[device.type], COPIED_NUMBERS[device.type]
    gflops: dict[str, float | None] = {}
    for precision in PRECISIONS:
        try:
            dtype = use_precision(precision, device) or torch.float32
        except BackendError:
            gflops[precision] = None
            continue
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)  # type: ignore[misc]
        gflops[precision] = _rounded(2 * side**3 / seconds / 1e9)
    use_precision("fp32", device)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device)
    return {"gemm_gflops": gflops, "side": side, "copy_gbytes_per_second": _rounded(8 * numbers / seconds / 1e9)}


def _fastest(work: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of the fastest of some rounds of :data:`REPEATS` calls, divided by the calls."""
    return min([seconds_of_call(work, device, REPEATS) for _ in range(4)][1:])


def least_traffic_bytes(shape: Shape) -> int:
    """Return a lower bound of the bytes that a float32 step moves between the GPU's memory and its processors.

    With P parameters, N = T B tokens and V words. Weights are read in the forward and the backward pass; gradients are
    written, read for their norm, and scaled (read and written); the optimizer reads parameters and gradients and writes
    parameters, Adam also reads and writes two moments: 9 P numbers for SGD, 13 P for Adam, of which one pass may be
    saved by a kernel that does two things. Logits are written, read by the softmax, overwritten by their gradient, and
    read by two products: 5 N V. Nothing else is counted: activations and repeated reads of a recurrent weight may stay
    in the caches.
    """
    copies = 13 if shape.config.optim.optimizer == "adam" else 9
    return 4 * (copies * built_in(shape.config).parameter_count(shape.vocab_size) + 5 * shape.tokens * shape.vocab_size)


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return what the profiler sees of a step that has been warmed up: kernels and their time, for one step.

    On a CPU operators are counted, those within others included. ``None`` in place of the figures: the profiler saw
    nothing of the GPU (it needs CUPTI, which some machines forbid).
    """
    on_gpu = device.type == "cuda"
    kind = "CUDA" if on_gpu else "CPU"
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]
    synchronize(device)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize(device)
    count: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in found.events() or ():
        if event.device_type.name == kind and not getattr(event, "is_user_annotation", False):
            count[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    if not count:
        return {"kernels": None, "busy_ms": None, "longest": []}
    copies = sum(number for name, number in count.items() if name.startswith(("Memcpy", "Memset")))
    return {
        "kernels": round((count.total() - copies) / PROFILED_STEPS, 1),
        "copies_and_fills": round(copies / PROFILED_STEPS, 1),
        "busy_ms": _rounded(microseconds.total() / PROFILED_STEPS / 1e3) if on_gpu else None,
        "longest": [
            {
                "name": name[:160],
                "per_step": round(count[name] / PROFILED_STEPS, 1),
                "ms_per_step": _rounded(time_us / PROFILED_STEPS / 1e3),
            }
            for name, time_us in microseconds.most_common(MOST_KERNELS)
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
