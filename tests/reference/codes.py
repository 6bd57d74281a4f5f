"""Exit codes of the command line and of workers, for docs/reference/exit-codes.md."""

import ast
import inspect
import itertools

import launch
from jobs.cli.arguments import EXIT_RUN_FAILED, EXIT_UNFINISHED
from seqlm import errors
from seqlm.errors import SeqlmError
from tests.reference.markdown import prose, table

MEANINGS = {
    0: "The command succeeded. A query succeeds even if no run passes its filter.",
    1: "A run or canary failed, was cancelled or waits for the study's budget, or a file cannot be written. A "
    "run of a search that diverged is no failure.",
    2: "The command line, the manifest or the data is wrong. Nothing was started.",
    3: "The backend cannot be reached, or can never run this. Nothing was started, unless the message says otherwise.",
    4: "`wait` ended before the runs.",
    130: "Interrupted: Ctrl-C, SIGTERM or a closed terminal. The workers have saved and stopped; jobs of SLURM go on.",
}


def parts() -> dict[str, str]:
    """Return the two tables."""
    return {"exit-codes": _command_line(), "worker-exit-codes": _workers()}


def _command_line() -> str:
    by_code: dict[int, list[str]] = {code: [] for code in MEANINGS}
    for kind in _family(SeqlmError):
        by_code[kind.exit_code].append(f"`{kind.__name__}`")
    assert {0, EXIT_RUN_FAILED, EXIT_UNFINISHED, launch.EXIT_INTERRUPTED} <= by_code.keys()
    rows = [[str(code), meaning, ", ".join(by_code[code])] for code, meaning in MEANINGS.items()]
    return table(["code", "meaning", "errors"], rows)


def _family(kind: type[SeqlmError]) -> list[type[SeqlmError]]:
    """Return a kind of error and those below it of ``seqlm.errors``: what else is imported does not matter."""
    below = (child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return [kind, *(found for child in below for found in _family(child))]


def _workers() -> str:
    """Return the codes ``EXIT_*`` of seqlm/errors.py with the docstrings below them."""
    body = ast.parse(inspect.getsource(errors)).body
    rows = [[str(0), "The run is done, or had nothing left to do."]]
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(doc))):
                if name.startswith("EXIT_"):
                    rows.append([str(int(getattr(errors, name))), prose(doc)])
    return table(["code", "meaning"], rows)
