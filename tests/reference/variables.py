"""The tables of docs/reference/environment.md."""

import ast
import inspect
import itertools
from typing import Any

from jobs.registry import BACKENDS
from seqlm import environment
from seqlm.environment import BACKEND, VARIABLES, Variable
from seqlm.schema import words_of
from tests.reference.markdown import prose, table


def parts() -> dict[str, str]:
    """Return the table for users and the table of what launchers set for workers."""
    return {f"variables-{name}": _table(is_internal=name == "internal") for name in ("public", "internal")}


def _table(*, is_internal: bool) -> str:
    rows = []
    for variable, text in _described():
        meaning, _, unset = text.removesuffix(".").partition(" Unset: ")
        if variable.is_internal == is_internal:
            default = unset or f"{variable.default:g}"
            rows.append([f"`{variable.name}`", f"{meaning.removesuffix('.')}.", _expected(variable), default])
    return table(["variable", "meaning", "value", "default"], rows)


def _described() -> list[tuple[Variable[Any], str]]:
    """Return the variables with the docstrings below them."""
    body = ast.parse(inspect.getsource(environment)).body
    found = []
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ) if isinstance(variable := getattr(environment, name), Variable):
                found.append((variable, prose(doc)))
    assert [variable for variable, _ in found] == [*VARIABLES], "each has a docstring"
    return found


def _expected(variable: Variable[Any]) -> str:
    return ", ".join(BACKENDS) if variable is BACKEND else words_of(variable.kind)
