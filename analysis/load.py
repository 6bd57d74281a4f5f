"""A study as its files tell it: one table of runs, one of epochs. Nothing is recomputed that a run has written down.

A run that is damaged, absent or diverged stays in the table with its reason and with NaN for what it cannot tell;
it is never shown as zero and never averaged in.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from analysis.origin import Origin, origin_of
from seqlm.config import valid_keys
from seqlm.errors import FileError, UsageError
from seqlm.rundir import Observation, RunDirectory

HYPERPARAMETERS = valid_keys()
"""Columns of the runs table that hold the configuration, such as ``optim.lr``; NaN where a key does not apply."""

METRICS = [
    *("epoch", "train_loss", "val_loss", "train_ppl", "val_ppl", "lr", "epoch_seconds", "elapsed_seconds"),
    *("train_tokens_per_second", "peak_memory_bytes", "attempt"),
]
"""Columns of the epochs table after ``id`` and ``number``; whatever else a run has recorded follows them."""

RUN_COLUMNS = [
    *("number", "name", "id", "arch", "optimizer", "state", "reason", "failure_kind", "failure_message"),
    *("failure_where", "epochs_done", "best_epoch", "train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl"),
    *("test_ppl", "parameters", "wall_seconds", *HYPERPARAMETERS, "command"),
]
"""Columns of the runs table. ``train_ppl`` and ``val_ppl`` are those of the best epoch, counted from 0."""

WHOLE_NUMBERS = ["epochs_done", "best_epoch", "parameters"]
LOG_LINES = 12
"""Last lines of the log that are shown for a run that failed."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LogTail:
    """The last lines of a log file."""

    file: str
    """The file, from the study's folder on."""
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the report is made of."""

    name: str
    directory: Path
    runs: pd.DataFrame
    """One row for each run directory, in manifest order; see ``RUN_COLUMNS``."""
    epochs: pd.DataFrame
    """One row for each finished epoch of each run; see ``METRICS``."""
    absent: list[int]
    """Numbers of runs that the manifest has before the last one known here, but that have no directory."""
    log_tails: dict[str, LogTail]
    """The end of the newest log of each failed or cancelled run that has one, by run id."""
    origin: Origin
    """Where the results come from: commits, versions, devices, times of launch."""
    warnings: list[str]
    """What could not be read, one line each."""

    @property
    def size(self) -> int:
        """Runs of the study, the absent ones too."""
        return len(self.runs) + len(self.absent)

    def epochs_of(self, run_id: str) -> pd.DataFrame:
        return self.epochs[self.epochs["id"] == run_id]


def load_study(study_dir: Path) -> Study:
    """Read every run below ``study_dir``.

    Raises:
        UsageError: the folder holds no runs.
    """
    found = [_read_run(RunDirectory(file.parent)) for file in sorted(study_dir.glob("*/config.json"))]
    if not found:
        raise UsageError(f"{study_dir} holds no runs, so there is nothing to report; `run` a manifest first")
    found.sort(key=lambda run: (math.inf if run.order is None else run.order, run.row["id"]))
    absent = _number(found)
    provenances = [run.provenance for run in found]
    names = [str(p["study"]) for p in provenances if p.get("study")]
    return Study(
        name=clean(names[0]) if names else clean(study_dir.resolve().name),
        directory=study_dir,
        runs=_runs_table(found),
        epochs=_epochs_table(found),
        absent=absent,
        log_tails={run.row["id"]: run.log_tail for run in found if run.log_tail},
        origin=origin_of(provenances),
        warnings=[clean(line.replace(f"{study_dir}/", "")) for run in found for line in run.warnings],
    )


def clean(text: str) -> str:
    """A text on one line, without characters that no page, table or figure can show."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# -- one run -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _LoadedRun:
    order: int | None
    row: dict[str, Any]
    epochs: list[dict[str, Any]]
    provenance: dict[str, Any]
    log_tail: LogTail | None
    warnings: list[str]


def _read_run(run: RunDirectory) -> _LoadedRun:
    warnings: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except FileError as error:
            warnings.append(str(error))
            return otherwise

    nothing: dict[str, Any] = {}
    no_epochs: tuple[list[dict[str, Any]], list[str]] = ([], [])
    provenance = attempt(run.read_provenance, nothing)
    hyperparameters = attempt(lambda: _dotted(run.read_config().to_dict()), nothing)
    epochs, cut_lines = attempt(run.read_metrics, no_epochs)
    result = attempt(run.read_result, None) or {}
    failure = attempt(run.read_failure, None) or {}
    reason = clean(warnings[0].replace(f"{run.path.parent}/", "")) if warnings else None
    damaged = Observation(state="failed", epoch=None, best_val_ppl=None, reason=reason, kind="code")
    observation = damaged if warnings else attempt(run.observe, damaged)
    order = provenance.get("order")
    row = {
        "name": clean(str(provenance.get("name") or run.id)),
        "id": run.id,
        "arch": hyperparameters.get("model.arch"),
        "optimizer": hyperparameters.get("optim.optimizer"),
        "state": observation.state,
        "reason": observation.reason and clean(observation.reason),
        **_failure_facts(failure, observation),
        **_outcome(epochs, result),
        **hyperparameters,
        "command": _command_line(provenance.get("command")),
    }
    tail = attempt(lambda: _log_tail(run), None) if observation.state in ("failed", "cancelled") else None
    return _LoadedRun(
        order=order if isinstance(order, int) and order >= 0 else None,
        row=row,
        epochs=epochs,
        provenance=provenance,
        log_tail=tail,
        warnings=warnings + cut_lines,
    )


def _dotted(config: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for section, content in config.items():
        if isinstance(content, dict):
            values.update({f"{section}.{key}": value for key, value in content.items()})
        else:
            values[section] = content
    return values


def _failure_facts(failure: dict[str, Any], observation: Observation) -> dict[str, Any]:
    if observation.state not in ("failed", "cancelled"):
        return {}
    texts = {key: clean(str(failure[key])) for key in ("message", "where") if failure.get(key)}
    message = texts.get("message", observation.reason)
    return {"failure_kind": observation.kind, "failure_message": message, "failure_where": texts.get("where")}


def _outcome(epochs: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """Best and final figures: what ``result.json`` says, and for a run without one what its epochs say."""
    finite = [epoch for epoch in epochs if math.isfinite(_number_of(epoch["val_ppl"]))]
    best = min(finite, key=lambda epoch: _number_of(epoch["val_ppl"]), default={})
    final = epochs[-1] if epochs else {}
    final_epoch = result.get("final_epoch")
    return {
        "epochs_done": final_epoch + 1 if isinstance(final_epoch, int) else len(epochs),
        "best_epoch": result.get("best_epoch", best.get("epoch")),
        "train_ppl": result.get("best_train_ppl", best.get("train_ppl")),
        "val_ppl": result.get("best_val_ppl", best.get("val_ppl")),
        "final_train_ppl": result.get("final_train_ppl", final.get("train_ppl")),
        "final_val_ppl": result.get("final_val_ppl", final.get("val_ppl")),
        "test_ppl": result.get("test_ppl"),
        "parameters": result.get("parameters"),
        "wall_seconds": result.get("elapsed_seconds", final.get("elapsed_seconds")),
    }


def _number_of(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _command_line(command: Any) -> str | None:
    if not isinstance(command, list) or not command:
        return None
    return shlex.join(str(word) for word in command)


def _log_tail(run: RunDirectory) -> LogTail | None:
    """The last lines of the newest attempt's ``stderr.log``."""
    attempts = run.attempts()
    if not attempts:
        return None
    path = run.stderr_log(attempts[-1])
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            text = log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    lines = ["".join(c for c in line.expandtabs(4) if c.isprintable())[:300] for line in text.splitlines()]
    lines = [line for line in lines if line.strip()][-LOG_LINES:]
    return LogTail(file=path.relative_to(run.path.parent).as_posix(), lines=lines) if lines else None


# -- all runs ------------------------------------------------------------------------------------------------------


def _number(runs: list[_LoadedRun]) -> list[int]:
    """Give each run its number, its place in the manifest from 1; returns the numbers that have no run.

    Runs without a place follow. Where two runs claim one place (two manifests launched into one study), nothing is
    known of places, and all are counted through.
    """
    places = [run.order for run in runs if run.order is not None]
    if len(set(places)) < len(places):
        places = []
    following = max(places, default=-1) + 1
    for run in runs:
        if places and run.order is not None:
            run.row["number"] = run.order + 1
        else:
            run.row["number"] = following + 1
            following += 1
    taken = {place + 1 for place in places}
    return [number for number in range(1, max(taken, default=0) + 1) if number not in taken]


def _runs_table(runs: Iterable[_LoadedRun]) -> pd.DataFrame:
    table = pd.DataFrame([run.row for run in runs], columns=RUN_COLUMNS, dtype=object)
    for column in ("train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "wall_seconds"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in WHOLE_NUMBERS:
        table[column] = _whole(table[column])
    table["number"] = table["number"].astype(int)
    return table


def _epochs_table(runs: Iterable[_LoadedRun]) -> pd.DataFrame:
    rows = [{"id": run.row["id"], "number": run.row["number"], **epoch} for run in runs for epoch in run.epochs]
    more = sorted({key for row in rows for key in row} - {"id", "number", *METRICS})
    table = pd.DataFrame(rows, columns=["id", "number", *METRICS, *more])
    for column in METRICS:
        if column in ("epoch", "attempt", "peak_memory_bytes"):
            table[column] = _whole(table[column])
        else:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Whole numbers with room for missing ones; anything else is missing."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers.where(numbers % 1 == 0).astype("Int64")
