"""The backends, by name. No other module lists them: a new backend is one class and one line here."""

import functools
import importlib
import importlib.util
from typing import Any

from seqlm import machine

BACKENDS = {
    "local": "jobs.backends.local:LocalBackend",
    "ray": "jobs.backends.ray_backend:RayBackend",
    "slurm": "slurm.backend:SlurmBackend",
}
"""Name of a backend -> its subclass of :class:`jobs.backends.base.Backend` as ``module:Class``."""

MANY_GPUS = 2
"""From this number on, Ray is the default on a machine: several launches share them in one queue."""


@functools.cache
def backend_class(name: str) -> Any:
    """Import and return the class of a backend."""
    module, _, found = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), found)


def default_backend(ray_address: str | None = None) -> tuple[str, str]:
    """Return where runs go if nobody says it, and why: to Ray if it has more than one GPU to give out, else ``local``.

    Raises:
        BackendError: nvidia-smi gives no answer.
        UsageError: CUDA_VISIBLE_DEVICES names a GPU that does not exist, or names one twice.
    """
    if ray_address is not None:
        return "ray", f"the address {ray_address} is given"
    number = len(machine.gpus())
    gpus = {0: "no GPU", 1: "1 GPU"}.get(number, f"{number} GPUs")
    if number < MANY_GPUS:
        return "local", f"this machine has {gpus}"
    if not importlib.util.find_spec("ray"):
        return "local", f"this machine has {gpus}, but Ray is not installed"
    return "ray", f"this machine has {gpus}"
