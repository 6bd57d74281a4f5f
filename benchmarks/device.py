"""The device that is measured: chosen, named and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from seqlm import machine
from seqlm.errors import UsageError


def choose_device(name: str | None) -> torch.device:
    """The device called ``cpu`` or ``cuda``. ``None``: a GPU if there is one, else the processor.

    Raises:
        UsageError: there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected cpu (this machine has no GPU that torch can use), got cuda")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_model()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of_call(
    work: Callable[[], object], device: torch.device, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that the device needs for one call of ``work``, from ``repeats`` calls in a row.

    On a GPU its own events are read, behind a call that is not counted: while that computes, the host launches the
    others, so that their launches cost no time.
    """
    synchronize(device)
    if device.type != "cuda":
        start = clock()
        for _ in range(repeats):
            work()
        return (clock() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / repeats
