"""The backends and schedulers, by name. No other module lists them: a new one is its classes, and their lines here."""

import functools
import importlib
import importlib.util
from typing import Any

BACKENDS = {
    "local": "jobs.backends.local:LocalBackend",
    "ray": "jobs.backends.ray_backend:RayBackend",
    "slurm": "slurm.backend:SlurmBackend",
}
"""Name of a backend -> its subclass of :class:`jobs.backends.base.Backend` as ``module:Class``."""

SCHEDULERS = {"slurm": "slurm.scheduler:Slurm"}
"""Backend whose jobs need no launcher -> its subclass of :class:`jobs.study.scheduler.Scheduler`."""

MANY_GPUS = 2
"""From this number on, Ray is the default on a machine: several launches share them in one queue."""


@functools.cache
def backend_class(name: str) -> Any:
    """Import and return the class of a backend."""
    return _imported(BACKENDS[name])


@functools.cache
def scheduler(name: str) -> Any:
    """Return the scheduler of a backend."""
    return _imported(SCHEDULERS[name])()


def _imported(place: str) -> Any:
    module, _, found = place.partition(":")
    return getattr(importlib.import_module(module), found)


def default_backend(ray_address: str | None = None) -> tuple[str, str]:
    """Return where runs go if nobody says it, and why: to Ray if it has more than one GPU to give out, else ``local``.

    Raises:
        BackendError: nvidia-smi gives no answer.
        UsageError: CUDA_VISIBLE_DEVICES names a GPU that does not exist, or names one twice.
    """
    if ray_address is not None:
        return "ray", f"the address {ray_address} is given"
    from seqlm import machine  # it takes long to import, and the help needs only the names

    number = len(machine.gpus())
    gpus = {0: "no GPU", 1: "1 GPU"}.get(number, f"{number} GPUs")
    if number < MANY_GPUS:
        return "local", f"this machine has {gpus}"
    if not importlib.util.find_spec("ray"):
        return "local", f"this machine has {gpus}, but Ray is not installed"
    return "ray", f"this machine has {gpus}"
