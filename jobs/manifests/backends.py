"""The tables ``[backend.*]`` of a manifest. The class of each backend declares its keys, as a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.manifests.fields import Problems, as_table, full_keys, read_table
from jobs.registry import BACKENDS, backend_class


def table_of(backend: str) -> type:
    """Return the dataclass of a backend's table."""
    found: type = backend_class(backend).TABLE
    return found


def check_table(backend: str, table: Any, where: str, problems: Problems, *, prefix: str) -> None:
    """Check one backend's table; ``prefix`` precedes its keys in messages, such as ``backend.ray.``."""
    names = [name for name in BACKENDS if name != backend] if prefix else []
    others = [key for name in names for key in full_keys(table_of(name), f"backend.{name}.")]
    read_table(table_of(backend), table, where, problems, prefix=prefix, others=others)


def check_tables(tables: Any, where: str, problems: Problems) -> dict[str, Mapping[str, Any]]:
    """Check ``[backend.*]`` of a file, and return the table of each backend as written."""
    found = {}
    for name, table in as_table(tables, f"{where}: backend", problems).items():
        if name in BACKENDS:
            found[name] = table
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.unknown(where, f"backend.{name}", [f"backend.{known}" for known in BACKENDS])
    return found
