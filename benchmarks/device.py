"""The device that is measured: chosen, named and waited for."""

from __future__ import annotations

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
