"""``seqlm.plan`` and ``seqlm.run``: the commands of that name, for scripts and notebooks.

Their arguments are made into a command line, so a mistake has the same message as in the command.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jobs import terminal
from jobs.cli.arguments import Arguments, read
from jobs.cli.launching import carry_out, prepared, write_report_of
from jobs.cli.planning import plan as plan_of
from seqlm.errors import SeqlmError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Study

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _called_from_python(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function as called from Python. The traceback of an error or interrupt has none of its inner frames."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with terminal.called_from_python():
                return function(*args, **kwargs)
        except (SeqlmError, KeyboardInterrupt) as error:
            found = error
        found.__suppress_context__ = True
        raise found.with_traceback(None)

    return call


@_called_from_python
def plan(
    manifest: str | Path,
    *,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    backend: str | None = None,
    data: str | Path | None = None,
    max_parallel: int | None = None,
    runs_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Return what :func:`run` would do: a row for each run, with its costs. Nothing is started.

    The columns are keys of the runs in ``plan --json``. ``attrs`` of the DataFrame has the rest of that document:
    ``totals``, ``budget``, ``changes``, and ``refused``, which says why ``run`` would refuse this.

    Args:
        manifest: a TOML file, or the name of one that comes with seqlm.
        only: as ``--only``, such as ``"arch=gru lr>1"``, or several.
        exclude: as ``--exclude``.
        changes: as ``--set``: ``{"train.epochs": 2}``.
        backend: as ``--backend``.
        data: folder or zip of the corpus.
        max_parallel: most runs at once.
        runs_dir: folder of the studies; ``None``: ``SEQLM_RUNS``, else ``runs``.

    Raises:
        SeqlmError: as the command, such as ManifestError with a line for each problem.
    """
    import pandas as pd

    given = {"only": only, "exclude": exclude, "backend": backend, "data": data}
    arguments = _arguments("plan", manifest, changes, **given, max_parallel=max_parallel, runs_dir=runs_dir)
    document = plan_of(arguments).document()
    table = pd.DataFrame(document.pop("runs")).drop(columns=["config", "resources"])
    table.attrs.update(document)
    return table


@_called_from_python
def run(
    manifest: str | Path,
    *,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    backend: str | None = None,
    data: str | Path | None = None,
    max_parallel: int | None = None,
    runs_dir: str | Path | None = None,
    canary: bool | None = None,
    report: bool = False,
) -> Study:
    """Train every run that is not done yet, with a progress bar on stderr, and return the study.

    A failed run raises nothing: ``runs`` of the study has its ``state`` and ``reason``. Repeat an interrupted call to
    resume.

    Besides the arguments of :func:`plan`, ``canary`` tries a few steps of each architecture first (``None``: above 10
    runs), and ``report`` writes the report at the end.

    Raises:
        SeqlmError: as the command, such as ManifestError with a line for each problem.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    from analysis import open_study

    given = {"only": only, "exclude": exclude, "backend": backend, "data": data, "canary": canary}
    arguments = _arguments("run", manifest, changes, **given, max_parallel=max_parallel, runs_dir=runs_dir)
    study, order, chosen = prepared(arguments)
    carry_out(arguments, study, order, chosen)
    if report:
        write_report_of(arguments, [study.path])
    return open_study(study.path)


def _arguments(command: str, manifest: str | Path, changes: Mapping[str, Any] | None, **given: Any) -> Arguments:
    """Return the arguments of the command line that says the same. An argument that is ``None`` is left out.

    Raises:
        UsageError: an argument is wrong.
    """
    words = [command, str(manifest)]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{flag}={one}" for one in value]
        elif value is not None:
            words.append(f"--{flag}={value}")
    words += [f"--set={key}={_toml(key, value)}" for key, value in (changes or {}).items()]
    arguments = read(words)
    assert arguments is not None, "there is a command"
    return arguments


def _toml(key: str, value: Any) -> str:
    """Return a value as ``--set`` reads it. JSON and TOML write numbers, texts, truth values and lists alike."""
    if isinstance(value, bool | int | float | str | list | tuple):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            pass
    raise UsageError(f"changes: {key}: expected a number, text, truth value or list, got {value!r}")
