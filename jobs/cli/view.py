"""What a person is shown of runs: the record, the columns of tables, and the lines about changes."""

from __future__ import annotations

import contextlib
import heapq
import math
import socket
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.tables import STATE, Column, show
from jobs.study.budget import KeptBudget
from jobs.study.folder import ObservedRun
from jobs.study.origin import NOTES
from seqlm import machine
from seqlm.config import varying_keys
from seqlm.errors import SeqlmError
from seqlm.files import read_json
from seqlm.run_layout import study_record_file
from seqlm.state import State

STATES: tuple[State, ...] = ("running", "failed", "cancelled", "queued", "done", "stopped", "pending")
"""Most urgent first, the order of display."""


WARM_STEPS = 5
"""Steps of an epoch after which its speed is compared with the estimate: the first of a process are slower."""
SLOW_SHARE = 1 / 3
"""Share of its estimated speed below which a run counts as several times slower."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What a person is shown of one run. :meth:`of` sets the fields before ``share``; a watcher sets the others too."""

    name: str
    id: str
    state: State
    reason: str | None = None
    """Why the run waits, has failed, or was stopped."""
    arch: str
    epochs: int
    """Epochs in all; 0 if ``config.json`` is damaged, and for a behaviour job."""
    epochs_done: int = 0
    best_val_ppl: float | None = None
    share: float | None = None
    """Share of the running epoch's training steps that is done, from 0 to 1."""
    phase: str | None = None
    """``train`` or ``valid`` while the run trains."""
    train_ppl: float | None = None
    """Perplexity of the running epoch so far, else of the last epoch."""
    val_ppl: float | None = None
    """Perplexity of the last epoch."""
    tokens_per_second: float | None = None
    expected_tokens_per_second: float | None = None
    """Of a running run: the speed that its launch estimated from measured ones. ``None``: none was measured."""
    host: str | None = None
    """Host of the latest attempt."""
    device: str | None = None
    """Device of the latest attempt: GPU or processor, with the host if runs are not all on this host."""
    shape: Hashable = None
    """All that an epoch's time depends on: runs of the same shape take the same time."""
    seconds_per_epoch: float | None = None
    """Measured on this run. ``None``: not measured yet."""
    seconds_left: float | None = None
    queue_place: int | None = None
    order: tuple[float, str] = (math.inf, "")
    """Sort key of the runs of a study: the order of the manifest."""
    is_over: bool = False
    """The run cannot change state without a new launch."""

    @classmethod
    def of(cls, observed: ObservedRun, **more: Any) -> RunView:
        """Return the view of a run as its folder describes it. ``more`` are further fields."""
        config, seen = observed.config, observed.observation
        return cls(
            name=observed.name,
            id=observed.run.id,
            state=seen.state,
            reason="; ".join(filter(None, (seen.reason, NOTES.get(observed.origin)))) or None,
            arch=config.model.kind if config else "?",
            epochs=observed.epochs_total or 0,
            epochs_done=observed.epochs_done,
            best_val_ppl=seen.best_val_ppl,
            order=observed.run.place(observed.provenance),
            **more,
        )

    @property
    def speed_share(self) -> float:
        """Share of the estimated speed at which it trains; 1 if either is not known."""
        measured, expected = self.tokens_per_second, self.expected_tokens_per_second
        return measured / expected if measured and expected else 1.0


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """The runs of a study at one moment, as a watcher sees them."""

    name: str
    runs: tuple[RunView, ...]
    """In manifest order."""
    is_starting: bool = False
    """A live launcher has not made the folders of all its runs yet."""

    def counts(self) -> dict[State, int]:
        """Return the number of runs in each state that has any."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def is_over(self) -> bool:
        """No run can change state without a new launch, and none is about to appear."""
        return not self.is_starting and all(run.is_over for run in self.runs)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last run ends, if each queued run starts when the next running one ends.

        ``None`` if nothing runs, or the time of any run is not known.
        """
        running = [run.seconds_left for run in self.runs if run.state == "running"]
        ends = [seconds for seconds in running if seconds is not None]
        if not ends or len(ends) < len(running):
            return None
        heapq.heapify(ends)
        for run in sorted((run for run in self.runs if run.state == "queued"), key=place_in_queue):
            if run.seconds_left is None:
                return None
            heapq.heapreplace(ends, ends[0] + run.seconds_left)
        return max(ends)

    @property
    def slow_line(self) -> str | None:
        """A line about the running runs that are several times slower than estimated. ``None``: there are none."""
        slow = sorted((run for run in self.runs if run.speed_share < SLOW_SHARE), key=lambda run: run.speed_share)
        if not slow:
            return None
        run = slow[0]
        who = run.name if len(slow) == 1 else f"{run.name} and {len(slow) - 1} more"
        speeds = (terminal.short_number(speed) for speed in (run.tokens_per_second, run.expected_tokens_per_second))
        return f"{who}: several times slower than estimated ({' of '.join(speeds)} tok/s); is this machine busy?"


def place_in_queue(run: RunView) -> float:
    """Return the sort key of queued runs. A run that was just submitted comes first."""
    return -1 if run.queue_place is None else run.queue_place


# -- speed and time left ----------------------------------------------------------------------------------------------


def view_of(observed: ObservedRun, *, is_over: bool = False) -> RunView:
    """Read the progress, the speed and the device of a run."""
    run, config = observed.run, observed.config
    epochs: Sequence[Mapping[str, Any]] = []
    progress: dict[str, Any] = {}
    worker: dict[str, Any] = {}
    with contextlib.suppress(SeqlmError):  # the observation's reason names the file if it matters
        epochs, _ = run.read_metrics()
        attempt = run.last_attempt() if observed.observation.state not in ("queued", "pending") else 0
        if attempt:
            worker = read_json(run.attempt_dir(attempt) / "worker.json") or {}
        if attempt and observed.observation.state == "running":
            progress = read_json(run.progress_file(attempt)) or {}
    if progress.get("epoch") != observed.epochs_done:
        progress = {}  # of an epoch that is over
    last = epochs[-1] if epochs else {}
    step, steps = _number(progress.get("step")), _number(progress.get("steps"))
    rate = _number(progress.get("train_tokens_per_second"))
    expected = None
    durations = [number for epoch in epochs if (number := _number(epoch.get("epoch_seconds"))) is not None]
    shape, seconds = None, None
    if config is not None:
        train = config.train
        shape = (config.model, config.data, train.batch_size, train.seq_len, train.precision)
        if durations:
            seconds = statistics.median(durations)
        elif rate and steps:
            seconds = steps * train.batch_size * train.seq_len / rate
        if steps and step and step >= WARM_STEPS and (estimated := _estimated_seconds_per_epoch(observed)):
            expected = steps * train.batch_size * train.seq_len / estimated
    gpu = machine.short_name(str(worker["gpu"])) if worker.get("gpu") else None
    return RunView.of(
        observed,
        share=min(1.0, step / steps) if step is not None and steps else None,
        phase=progress.get("phase"),
        train_ppl=_number(progress.get("train_ppl")) or _number(last.get("train_ppl")),
        val_ppl=_number(last.get("val_ppl")),
        tokens_per_second=(rate or _number(last.get("train_tokens_per_second")))
        if observed.observation.state == "running"
        else None,
        expected_tokens_per_second=expected,
        host=str(worker["host"]) if worker.get("host") else None,
        device=" ".join(str(part) for part in (gpu, worker.get("device")) if part) or None,
        shape=shape,
        seconds_per_epoch=seconds,
        is_over=is_over,
    )


def _estimated_seconds_per_epoch(observed: ObservedRun) -> float | None:
    """Return what the launch of a run has estimated, from measured speeds. ``None``: none was measured."""
    assert observed.config is not None
    with contextlib.suppress(SeqlmError):
        estimates = (read_json(study_record_file(observed.run.path.parent)) or {}).get("estimates")
        estimate = estimates.get(observed.config.fingerprint()) if isinstance(estimates, dict) else None
        if isinstance(estimate, dict):
            seconds, epochs = _number(estimate.get("seconds")), _number(estimate.get("epochs"))
            return seconds / epochs if seconds and epochs else None
    return None


def _number(value: Any) -> float | None:
    """Return a finite number from a file, else ``None``: another user's file must not break the view."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def compared(runs: Sequence[RunView], places: Mapping[str, int], host: str) -> list[RunView]:
    """Set expected times, places in the queue (by run id) and, if runs are not all on this ``host``, their hosts."""
    show_host = bool({run.host for run in runs} - {host, None})
    made = []
    for run, seconds in zip(runs, expected_seconds_per_epoch(runs), strict=True):
        left = None
        if seconds is not None and run.state in ("running", "queued"):
            left = seconds * max(0.0, run.epochs - run.epochs_done - (run.share or 0.0))
        device = " ".join(filter(None, (run.host, run.device))) if show_host else run.device
        made.append(replace(run, seconds_left=left, queue_place=places.get(run.id), device=device))
    return made


def expected_seconds_per_epoch(runs: Sequence[RunView]) -> list[float | None]:
    """Return the time of each run's epoch: its own, else the median of its shape, of its architecture, or ``None``."""
    measured: defaultdict[Hashable, list[float]] = defaultdict(list)
    for run in runs:
        if run.seconds_per_epoch is not None:
            measured["shape", run.shape].append(run.seconds_per_epoch)
            measured["arch", run.arch].append(run.seconds_per_epoch)
    typical = {key: statistics.median(seconds) for key, seconds in measured.items()}
    return [
        typical.get(("shape", run.shape), typical.get(("arch", run.arch)))
        if run.seconds_per_epoch is None
        else run.seconds_per_epoch
        for run in runs
    ]


# -- tables --------------------------------------------------------------------------------------------------------


def _epochs(run: RunView) -> str:
    return f"{run.epochs_done}/{run.epochs}" if run.epochs else "-"


def _seconds_left(run: RunView) -> float | None:
    return run.seconds_left if run.state == "running" else None


TRAIN_PPL = Column("train ppl", "train_ppl", terminal.perplexity, right=True, spare=3)
VAL_PPL = Column("val ppl", "val_ppl", terminal.perplexity, right=True, spare=1)
NUMBERS = (
    Column("best val ppl", "best_val_ppl", terminal.perplexity, right=True),
    Column("tok/s", "tokens_per_second", terminal.short_number, right=True, optional=True),
    Column("ETA", _seconds_left, terminal.duration, right=True, optional=True),
)
"""Columns of ``status`` and of the live table."""
STATUS = (
    Column("run", "name"),
    Column("id", spare=1),
    STATE,
    Column("epochs", _epochs, right=True),
    *NUMBERS,
    Column("reason"),
)
"""The columns of ``status``."""
ESTIMATES = ("tokens_per_second", "seconds_left")
"""What ``status --json`` has of a run besides what its folder says."""


def say_status(runs: Sequence[ObservedRun], study_dir: Path) -> dict[str, Any]:
    """Print the table of ``status``, and what is spent of the study's budget. Return the data of ``--json``."""
    views = [RunView.of(run) for run in runs]
    if any(view.state == "running" for view in views):
        views = compared([view_of(run) for run in runs], {}, socket.gethostname())
    show(STATUS, views)
    study, budget = StudyView(name=study_dir.name, runs=tuple(views)), KeptBudget(study_dir)
    left = study.seconds_left
    for line in (None if left is None else f"about {terminal.duration(left)} left", study.slow_line, budget.line()):
        if line is not None:
            terminal.say(line)
    records = [
        {**run.to_dict(), **{key: getattr(view, key) for key in ESTIMATES}, "differs": differs}
        for run, view, differs in zip(runs, views, what_differs(runs), strict=True)
    ]
    return {"study": study.name, "runs": records, "seconds_left": left, "budget": budget.to_dict()}


def what_differs(runs: Sequence[ObservedRun]) -> list[dict[str, Any]]:
    """Return for each run its values of the keys in which these runs differ; none for a damaged configuration."""
    configs = [run.config.by_key() if run.config else {} for run in runs]
    keys = varying_keys(configs)
    return [{key: config[key] for key in keys if key in config} for config in configs]


# -- lines, for a pipe ---------------------------------------------------------------------------------------------


def changes(before: StudyView | None, after: StudyView) -> Iterable[str]:
    """Return a line for each run whose state or epoch has changed. Without ``before``: one line about the study."""
    if before is None:
        yield summary(after)
        return
    width = max((len(run.name) for run in after.runs), default=0)
    earlier = {run.id: run for run in before.runs}
    for run in after.runs:
        was = earlier.get(run.id)
        name = run.name.ljust(width)
        best = f"best val ppl {terminal.perplexity(run.best_val_ppl)}"
        if run.epochs_done > (was.epochs_done if was else 0):
            ppl = "  ".join(f"{column.title} {column.text(column.of(run))}" for column in (TRAIN_PPL, VAL_PPL))
            yield f"{name}  epoch {run.epochs_done}/{run.epochs}  {ppl}  {best}"
        if was is None or run.state != was.state:
            yield "  ".join(
                filter(None, (name, *outcome(run.state, run.reason), best if run.state == "done" else None))
            )


def outcome(state: State, reason: str | None) -> tuple[str, ...]:
    """Return a state and its reason as the words of a line. The reason of a stopped run begins with its state."""
    return tuple(filter(None, (None if state == "stopped" else state, reason)))


def summary(study: StudyView) -> str:
    """Return the study in one line."""
    counts = "  ".join(f"{number} {state}" for state, number in study.counts().items()) or "no runs"
    left = f"  about {terminal.duration(study.seconds_left)} left" if study.seconds_left is not None else ""
    return f"{study.name}: {counts}{left}"
