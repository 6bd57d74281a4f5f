"""The tables ``[backend.*]`` of a manifest. The class of each backend declares its keys, as a dataclass."""

from collections.abc import Mapping
from typing import Any

from jobs.manifests.reader import Problems
from jobs.registry import BACKENDS, backend_class
from seqlm.schema import Table, fields_of, unknown_key


def table_of(backend: str) -> type[Table]:
    """Return the dataclass of a backend's table."""
    found: type[Table] = backend_class(backend).TABLE
    return found


def check_table(backend: str, table: Any, where: str, problems: Problems, *, prefix: str) -> None:
    """Check one backend's table; ``prefix`` precedes its keys in messages, such as ``backend.ray.``."""

    def unknown(key: str) -> str:
        """Compare a key with those of all backends, unless there is one only."""
        prefixes = {name: f"backend.{name}." for name in BACKENDS} if prefix else {backend: ""}
        valid = [f"{start}{one}" for name, start in prefixes.items() for one in fields_of(table_of(name))]
        return unknown_key(f"{prefix}{key}", valid)

    problems.read(table_of(backend), table, where, prefix=prefix, unknown=unknown)


def check_tables(tables: Any, where: str, problems: Problems) -> dict[str, Mapping[str, Any]]:
    """Check ``[backend.*]`` of a file, and return the table of each backend as written."""
    found = {}
    for name, table in problems.table(tables, f"{where}: backend").items():
        if name in BACKENDS:
            found[name] = table
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.add(where, unknown_key(f"backend.{name}", [f"backend.{known}" for known in BACKENDS]))
    return found
