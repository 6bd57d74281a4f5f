"""Read the files of one run, and where it comes from. A damaged file is a warning and stops nothing.

Damage of ``config.json`` or ``result.json`` also makes the run "failed". A run with a readable result is done whatever
else is damaged.
"""

import contextlib
import math
import re
import shlex
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.study import units
from analysis.study.attempts import read_attempts
from analysis.study.behaviour import Behaviour, read_behaviour
from analysis.study.columns import EPOCHS, as_columns
from analysis.study.comparison import OF_CHECKPOINT, OF_FREQUENCIES
from analysis.study.values import as_number, as_text, clean, columns_of, read_or_warn
from seqlm.errors import file_errors
from seqlm.reading import read_tail
from seqlm.records.runs import Provenance, Result, Rung
from seqlm.records.studies import MAX_RUNS
from seqlm.rundir import RunDirectory
from seqlm.state import Facts, state_of
from seqlm.trace import read_trace

LOG_LINES = 12
"""Last lines of the log that are shown for a run that failed."""

OF_EPOCHS = [key for key in EPOCHS if key not in ("id", "number")]
MOST_OTHERS = 16
"""Numbers of an epoch that are no column of ``EPOCHS`` and are kept."""

OF_RESULT = (
    "test_ppl",
    "test_bits_per_byte",
    "val_tokens",
    "test_tokens",
    "parameters",
    "lossless",
    "train_slice_loss",
)
"""Fields of ``result.json`` of which the epochs say nothing."""
RUNG_KEYS = ("value", "rank", "of", "goes_on", "cut")
"""What the decision at a rung says of a rung, besides its epochs."""


@dataclass(kw_only=True)
class LoadedRun:
    """What the files of a run hold."""

    order: int | None
    digits: str
    """The first digits of the run's fingerprint: the end of its folder's name."""
    config: dict[str, Any]
    """The configuration with dotted keys, and the digest of the text; empty if it cannot be read."""
    row: dict[str, Any]
    """Of the runs table, without what follows from other runs."""
    epochs: "dict[str, array[float]]"
    """Of the epochs table, a column for each key that has numbers; NaN is missing."""
    attempts: list[dict[str, Any]]
    """Of the attempts table, without the run's number and id."""
    provenance: Provenance
    log_tail: list[str]
    behaviour: Behaviour | None
    warnings: list[str]


def read_run(run: RunDirectory) -> LoadedRun:
    """Read every file of a run."""
    warnings: list[str] = []
    read = read_or_warn(run.read_config, None, warnings)
    config = as_columns(read.by_key()) if read else {}
    result = read_or_warn(run.read_result, None, warnings)
    damage = list(warnings)
    epochs, cut_lines = read_or_warn(run.read_metrics, None, warnings) or ([], [])
    finished = math.nan if damage else finished_epochs(result)
    gone = epochs[-1]["epoch"] + 1 if epochs else 0
    facts = None if damage else read_or_warn(lambda: run.facts(gone, result, read), None, warnings)
    if facts is None:
        facts = Facts(damage=warnings[0].replace(f"{run.path.parent}/", ""))
    observed = state_of(facts)
    state, reason, kind = observed.state, observed.reason and clean(observed.reason), observed.kind
    warnings += cut_lines
    # A configuration that was not resolved by a launch lacks the digest of its text; the result has it.
    if config and config["data.sha256"] is None and config["data.corpus"] != "ptb":
        config["data.sha256"] = None if result is None else as_text(result.corpus_sha256)
    # From here on, damage costs details, not the state.
    provenance = read_or_warn(run.read_provenance, Provenance(), warnings)
    order = provenance.order
    if order is not None and not 0 <= order < MAX_RUNS:
        warnings.append(
            f"{run.provenance_file}: order: expected a whole number from 0 to {MAX_RUNS - 1:,}, got "
            f"{str(order)[:40]!r}; the run is numbered after the others"
        )
        order = None
    row = {
        "name": clean(provenance.name or run.id),
        "id": run.id,
        "arch": config.get("model.arch"),
        "optimizer": read.optim.kind if read else None,
        "state": state,
        "reason": reason,
        "epochs_asked": config.get("train.epochs"),
        "finished_epochs": finished,
        **_outcome(epochs, result),
        **config,
        "command": shlex.join(provenance.command) or None,
    }
    if state == "stopped":
        stop = read_or_warn(run.read_stopped, None, warnings) or Rung()
        row |= {"rung": stop.rung} | {f"rung_{key}": getattr(stop, key) for key in RUNG_KEYS}
    tail: list[str] = []
    if state in ("failed", "cancelled"):
        tail = read_or_warn(lambda: [*_log_tail(run), *_last_steps(run)], [], warnings)
        end = read_or_warn(lambda: run.end(run.last_attempt()), None, [])
        row |= {
            "failure_kind": kind,
            "failure_message": (reason or "").removeprefix(f"{kind}: ") or None,
            "failure_where": clean(end.where or "") or None if end else None,
        }
    attempts = read_attempts(run, state=state, epochs=epochs, result=result, warnings=warnings)
    machines = [attempt["machine"] or "not recorded" for attempt in attempts if attempt["epochs"]]
    row["machine"] = ", then ".join(dict.fromkeys(machines)) or None
    behaviour, behaviour_warnings = read_behaviour(run)
    return LoadedRun(
        order=order,
        digits=run.id.rpartition("-")[2],
        config=config,
        row=row,
        epochs=columns_of(epochs, OF_EPOCHS, MOST_OTHERS),
        attempts=attempts,
        provenance=provenance,
        log_tail=tail,
        behaviour=behaviour,
        warnings=list(dict.fromkeys(warnings + behaviour_warnings)),
    )


def finished_epochs(result: Result | None) -> float:
    """Return the epochs of a result; NaN without one."""
    return math.nan if result is None else as_number(result.epochs)


def _outcome(epochs: list[dict[str, Any]], result: Result | None) -> dict[str, Any]:
    """Best and final figures: what ``result.json`` says, or what the epochs say of a run that has gone further."""
    finite = [epoch for epoch in epochs if math.isfinite(as_number(epoch["val_ppl"]))]
    best = min(finite, key=lambda epoch: float(epoch["val_ppl"]), default={})
    final = epochs[-1] if epochs else {}
    gone, finished = final.get("epoch", -1) + 1, finished_epochs(result)
    result = result or Result()
    facts = {key: getattr(result, key) for key in OF_RESULT}
    facts |= dict(zip(OF_FREQUENCIES, result.frequency_losses, strict=False))
    if gone > finished and best.get("epoch") != result.best_epoch:
        facts |= dict.fromkeys(OF_CHECKPOINT)
    if result.epochs is None or gone > finished:
        return {
            "epochs_done": gone,
            "best_epoch": best.get("epoch"),
            "train_ppl": best.get("train_ppl"),
            "val_ppl": best.get("val_ppl"),
            "final_train_ppl": final.get("train_ppl"),
            "final_val_ppl": final.get("val_ppl"),
            "val_bits_per_byte": best.get("val_bits_per_byte"),
            "wall_seconds": final.get("elapsed_seconds"),
            **facts,
        }
    return {
        "epochs_done": finished,
        "best_epoch": result.best_epoch,
        "train_ppl": result.best_train_ppl,
        "val_ppl": result.best_val_ppl,
        "final_train_ppl": result.final_train_ppl,
        "final_val_ppl": result.final_val_ppl,
        "val_bits_per_byte": result.best_val_bits_per_byte,
        "wall_seconds": result.elapsed_seconds,
        **facts,
    }


def _log_tail(run: RunDirectory) -> list[str]:
    """The last lines of what the newest attempt has printed on stderr, those of its first node last."""
    text = ""
    for path in [path for path in run.logs(run.last_attempt()) if path.name.startswith("stderr")][::-1]:
        with file_errors("read", path), contextlib.suppress(FileNotFoundError):
            text += read_tail(path, 16_384).decode("utf-8", errors="replace")
    lines = ["".join(c for c in line.expandtabs(4) if c.isprintable())[:300] for line in text.splitlines()]
    return [line for line in lines if line.strip()][-LOG_LINES:]


def _last_steps(run: RunDirectory) -> list[str]:
    """The last steps of a run that diverged."""
    trace = read_trace(run)
    if trace is None or not trace.rows or all(map(math.isfinite, trace.rows[-1])):
        return []
    first = max(0, len(trace.rows) - LOG_LINES)  # the others may be many
    numbered = enumerate(trace.rows[first:], start=first)
    places = ((number // trace.steps + 1, number % trace.steps + 1, *row) for number, row in numbered)
    return [f"epoch {epoch}, step {n}: loss {loss:.4g}, gradient norm {norm:.4g}" for epoch, n, loss, norm, _ in places]


# -- origin --------------------------------------------------------------------------------------------------------


def origin_of(runs: Sequence[LoadedRun]) -> dict[str, list[str]]:
    """Sum up where all runs come from: for each title the distinct values, in the order of the runs.

    ``provenance.json`` is of the newest launch. Devices, hosts and versions are those of the attempts. If attempts ran
    other code than one another, each is listed.
    """
    attempts = [attempt for run in runs for attempt in run.attempts]
    provenances = [run.provenance for run in runs]
    codes = Counter(code for attempt in attempts if (code := attempt["code"]))
    several = [f"{code}: {units.count(number, 'attempt')}" for code, number in codes.items()]
    times = sorted(record.launched_at for record in provenances if record.launched_at)
    ends = [re.sub(r"T(\d\d:\d\d):\d\d\+00:00$", r" \1 UTC", time) for time in _distinct([*times[:1], *times[-1:]])]
    return {
        "Launched": [" to ".join(ends)] if ends else [],
        "Code": _distinct(map(_commit, provenances)),
        **({"Code of attempts": several} if len(several) > 1 else {}),
        "Devices": _distinct(attempt["machine"] or "" for attempt in attempts),
        "Hosts": _distinct(attempt["host"] or "" for attempt in attempts),
        "Versions": _distinct(attempt["versions"] or "" for attempt in attempts),
    }


def _commit(record: Provenance) -> str:
    git = record.git
    if git is None or not git.commit:
        return ""
    return git.commit[:12] + (" + uncommitted changes" if git.dirty else "")


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]
