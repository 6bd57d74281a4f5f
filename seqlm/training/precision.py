"""Which precision a run's matrix products may have on a device."""

from __future__ import annotations

from typing import Literal

import torch

from seqlm import machine
from seqlm.errors import BackendError

AMPERE = (8, 0)
"""First compute capability with TF32 and bf16 products."""


def use_precision(precision: Literal["fp32", "tf32", "bf16"], device: torch.device) -> torch.dtype | None:
    """Prepare this process for ``precision`` and return the type of the models' products (none: that of parameters).

    ``fp32`` means fp32: libraries that would round its operands to a shorter type are told not to.

    Raises:
        BackendError: the device has no instructions for it; nothing is emulated.
    """
    if precision == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE):
        raise BackendError(
            f'train.precision = "tf32" needs an NVIDIA GPU of compute capability 8.0 or more, found {_name(device)}; '
            f'use "fp32"'
        )
    if precision == "bf16" and not _has_bf16(device):
        raise BackendError(
            f'train.precision = "bf16" needs a processor with bf16 instructions ({" or ".join(machine.BF16_FLAGS)}) or '
            f'an NVIDIA GPU of compute capability 8.0 or more, found {_name(device)}; use "fp32"'
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return torch.bfloat16 if precision == "bf16" else None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    return machine.has_bf16()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_model()
