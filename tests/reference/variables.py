"""The tables of docs/reference/environment.md."""

from __future__ import annotations

from typing import Any

from jobs.registry import BACKENDS
from seqlm.environment import BACKEND, VARIABLES, Variable
from seqlm.schema import words_of
from tests.reference.markdown import table


def parts() -> dict[str, str]:
    """Return the table for users and the table of what launchers set for workers."""
    return {f"variables-{name}": _table(is_internal=name == "internal") for name in ("public", "internal")}


def _table(*, is_internal: bool) -> str:
    rows = [
        [f"`{variable.name}`", _expected(variable), variable.unset or f"{variable.default:g}", variable.meaning]
        for variable in VARIABLES
        if variable.is_internal == is_internal
    ]
    return table(["variable", "value", "default", "meaning"], rows)


def _expected(variable: Variable[Any]) -> str:
    return ", ".join(BACKENDS) if variable is BACKEND else words_of(variable.kind)
