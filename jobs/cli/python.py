"""``seqlm.plan`` and ``seqlm.run``: the commands of that name, for scripts and notebooks.

They read the same manifests, write the same files and raise the same errors as the commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import terminal
from jobs.cli.arguments import COMMANDS, Arguments
from jobs.cli.launching import carry_out, prepared, write_report_of
from jobs.cli.planning import plan as plan_of
from jobs.registry import BACKENDS
from seqlm.environment import RUNS
from seqlm.errors import UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Study

COLUMNS = (
    *("name", "id", "action", "reason", "epochs_done", "parameters"),
    *("flops_per_token", "memory_bytes", "measured_memory_bytes", "seconds", "directory"),
)
"""The columns of :func:`plan`, which are keys of ``plan --json``."""


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

    ``attrs`` of the DataFrame has the rest of ``plan --json``: ``totals``, ``budget``, ``changes``, and ``refused``,
    which says why the data would be refused.

    Args:
        manifest: the study: a TOML file, or the name of one that comes with seqlm.
        only: conditions as after ``--only``, such as ``"arch=gru lr>1"``, or several of them.
        exclude: conditions as after ``--exclude``.
        changes: keys and their values, as with ``--set``: ``{"train.epochs": 2}``.
        backend: where runs go, as with ``--backend``.
        data: folder or zip of the corpus.
        max_parallel: most runs at once.
        runs_dir: folder of the studies; ``None``: ``SEQLM_RUNS``, else ``runs``.

    Raises:
        SeqlmError: as the command, such as ManifestError with one line for each problem of the manifest.
    """
    import pandas as pd

    with terminal.called_from_python():
        arguments = _arguments(
            "plan", manifest, only, exclude, changes, backend, data, max_parallel=max_parallel, runs_dir=runs_dir
        )
        document = plan_of(arguments).document()
    table = pd.DataFrame(document.pop("runs"), columns=list(COLUMNS))
    table.attrs = document
    return table


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
    """Train every run that is not done yet, with a progress bar, and return the study.

    A run that fails raises nothing: ``runs`` of the study has its ``state`` and ``reason``. An interrupted call goes on
    when it is repeated. The other arguments are those of :func:`plan`.

    Args:
        manifest: the study: a TOML file, or the name of one that comes with seqlm.
        canary: try a few steps of each architecture first; ``None``: above 10 runs.
        report: write the report at the end.

    Raises:
        SeqlmError: as the command, such as ManifestError with one line for each problem of the manifest.
    """
    with terminal.called_from_python():
        arguments = _arguments(
            "run", manifest, only, exclude, changes, backend, data,
            max_parallel=max_parallel, runs_dir=runs_dir, canary=canary,
        )  # fmt: skip
        study, order, chosen = prepared(arguments)
        carry_out(arguments, study, order, chosen)
        if report:
            write_report_of(arguments, [study.path])
    from analysis import open_study

    return open_study(study.path)


def _arguments(
    command: str,
    manifest: str | Path,
    only: str | Sequence[str],
    exclude: str | Sequence[str],
    changes: Mapping[str, Any] | None,
    backend: str | None,
    data: str | Path | None,
    *,
    runs_dir: str | Path | None,
    **more: Any,
) -> Arguments:
    """Return the arguments that the command would get.

    Raises:
        UsageError: there is no such backend, or a change is no value of TOML.
    """
    assert command in COMMANDS
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f'backend: expected one of {", ".join(BACKENDS)}, got "{backend}"{nearest(backend, BACKENDS)}')
    return Arguments(
        command=command,
        argv=(),
        manifest=str(manifest),
        only=_texts(only),
        exclude=_texts(exclude),
        changes=tuple(f"{key}={_toml(key, value)}" for key, value in (changes or {}).items()),
        backend=backend,
        data=None if data is None else Path(data),
        runs_dir=RUNS.read() if runs_dir is None else Path(runs_dir),
        **more,
    )


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _toml(key: str, value: Any) -> str:
    """Return a value as ``--set`` reads it. JSON and TOML write numbers, texts, truth values and lists alike."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UsageError(f"changes: {key}: expected a number, text, truth value or list, got {value!r}") from None
