"""The backends, by name. No other module lists them: a new backend is one class and one line here."""

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


@functools.cache
def backend_class(name: str) -> Any:
    """Import and return the class of a backend."""
    module, _, found = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), found)


def default_backend() -> str:
    """Return ``ray`` if it is installed, else ``local``."""
    return "ray" if importlib.util.find_spec("ray") else "local"
