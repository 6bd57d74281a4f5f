"""Which precision a run's matrix products may have on a device."""

from __future__ import annotations

import torch

from seqlm import machine
from seqlm.config import Precision
from seqlm.errors import BackendError

AMPERE = (8, 0)
"""First compute capability with TF32 and bf16 products."""


def use_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Prepare this process for ``precision``; return the type of product operands (``None``: that of the parameters).

    Raises:
        BackendError: the device has no instructions for it. Nothing is emulated.
    """
    on_gpu = device.type == "cuda"
    is_ampere = on_gpu and torch.cuda.get_device_capability(device) >= AMPERE
    has = {"fp32": True, "tf32": is_ampere, "bf16": is_ampere or (not on_gpu and machine.has_bf16())}
    if not has[precision]:
        needed = "an NVIDIA GPU of compute capability 8.0 or more"
        if precision == "bf16":
            needed = f"a processor with bf16 instructions ({' or '.join(machine.BF16_FLAGS)}) or {needed}"
        found = torch.cuda.get_device_name(device) if on_gpu else machine.cpu_model()
        raise BackendError(f'train.precision = "{precision}" needs {needed}, found {found}; use "fp32"')
    set_switches(precision)
    return torch.bfloat16 if precision == "bf16" else None


def set_switches(precision: Precision) -> None:
    """Tell the libraries of this process which shortcuts products may take: TF32 for ``tf32``, none otherwise.

    Our models use no cuDNN. Its recurrent layers have a TF32 switch of their own, which is on by default and which
    ``torch.set_float32_matmul_precision`` leaves alone; comparisons with ``torch.nn`` need both. Both are PyTorch's
    older switches: PyTorch 2.9 and later raise an error if older and newer ones are mixed, and 2.8 has only these.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Without this, cuBLAS may add up parts of a bf16 product in bf16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
