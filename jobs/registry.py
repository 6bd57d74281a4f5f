"""The backends, by name. No other module lists them: a new backend is one class and one line here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
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


def scheduled_in(study_dir: Path) -> list[Any]:
    """Return the classes of the backends that queue jobs themselves and have had requests of a study."""
    from seqlm.requests import Requests  # not for `--help`

    names = {request.record.get("backend") for request in Requests(study_dir).newest_first()}
    return [kind for name in BACKENDS if name in names and (kind := backend_class(name)).is_scheduled]
