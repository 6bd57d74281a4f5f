"""What a person is shown of runs: the record, the columns of tables, and the lines about changes."""

from __future__ import annotations

import contextlib
import heapq
import math
import socket
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.tables import STATE, Column, show
from jobs.study.budget import Budget
from jobs.study.folder import ObservedRun
from jobs.study.record import NOTES, StudyRecord
from seqlm import machine
from seqlm.config import varying_keys
from seqlm.errors import SeqlmError
from seqlm.files import read_json
from seqlm.state import State

STATES: tuple[State, ...] = ("running", "failed", "cancelled", "queued", "done", "stopped", "pending")
"""Most urgent first, the order of display."""
WARM_STEPS = 5
"""Steps of an epoch after which its speed is compared with the estimate: the first of a process are slower."""
LONG_REASON = 60
"""Letters above which a reason that several runs share is shown once."""
SLOW_SHARE = 1 / 3
"""Share of its estimated speed below which a run counts as several times slower."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What a person is shown of one run."""

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
    order: tuple[float, str] = (math.inf, "")
    """Sort key of the runs of a study: the order of the manifest."""
    is_over: bool = False
    """The run cannot change state without a new launch."""
    share: float | None = None
    """Share of the running epoch's training steps that is done, from 0 to 1. This and what follows may not be read."""
    train_ppl: float | None = None
    """Perplexity of the running epoch so far, else of the last epoch."""
    val_ppl: float | None = None
    """Perplexity of the last epoch."""
    tokens_per_second: float | None = None
    expected_tokens_per_second: float | None = None
    """Of a running run: the speed that its launch estimated from measured ones. ``None``: none was measured."""
    device: str | None = None
    """Device of the latest attempt: GPU or processor, after the host if that is another one than this."""
    shape: Hashable = None
    """All that an epoch's time depends on: runs of the same shape take the same time."""
    seconds_per_epoch: float | None = None
    """Measured on this run. ``None``: not measured yet."""
    seconds_left: float | None = None
    queue_place: int | None = None

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
        ends = [run.seconds_left for run in self.runs if run.state == "running"]
        waiting = sorted((run for run in self.runs if run.state == "queued"), key=place_in_queue)
        known = [seconds for seconds in [*ends, *(run.seconds_left for run in waiting)] if seconds is not None]
        if not ends or len(known) < len(ends) + len(waiting):
            return None
        heap = known[: len(ends)]
        heapq.heapify(heap)
        for seconds in known[len(ends) :]:
            heapq.heapreplace(heap, heap[0] + seconds)
        return max(heap)

    @property
    def slow_line(self) -> str | None:
        """A line about the running runs that are several times slower than estimated. ``None``: there are none."""
        slow = [run for run in self.runs if run.speed_share < SLOW_SHARE]
        if not slow:
            return None
        run = min(slow, key=lambda run: run.speed_share)
        who = run.name if len(slow) == 1 else f"{run.name} and {len(slow) - 1} more"
        speeds = (terminal.short_number(speed) for speed in (run.tokens_per_second, run.expected_tokens_per_second))
        return f"{who}: several times slower than estimated ({' of '.join(speeds)} tok/s); is this machine busy?"

    @property
    def summary(self) -> str:
        """The study in one line."""
        counts = "  ".join(f"{number} {state}" for state, number in self.counts().items()) or "no runs"
        left = f"  about {terminal.duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"{self.name}: {counts}{left}"


def place_in_queue(run: RunView) -> float:
    """Return the sort key of queued runs. A run that was just submitted comes first."""
    return -1 if run.queue_place is None else run.queue_place


# -- reading a run ----------------------------------------------------------------------------------------------------


def view_of(observed: ObservedRun, *, is_over: bool = False, measured: bool = True) -> RunView:
    """Return what is shown of a run. ``measured``: read its progress, its speed and its device too."""
    config, seen = observed.config, observed.observation
    view = RunView(
        name=observed.name,
        id=observed.run.id,
        state=seen.state,
        reason="; ".join(filter(None, (seen.reason, NOTES.get(observed.origin)))) or None,
        arch=config.model.kind if config else "?",
        epochs=observed.epochs_total or 0,
        epochs_done=observed.observation.epochs_done,
        best_val_ppl=seen.best_val_ppl,
        order=observed.run.place(observed.provenance),
        is_over=is_over,
    )
    return replace(view, **_measured(observed)) if measured else view


def _measured(observed: ObservedRun) -> dict[str, Any]:
    run, config, state = observed.run, observed.config, observed.observation.state
    epochs: Sequence[Mapping[str, Any]] = []
    progress: dict[str, Any] = {}
    worker: dict[str, Any] = {}
    with contextlib.suppress(SeqlmError):  # the observation's reason names the file if it matters
        epochs, _ = run.read_metrics()
        if state not in ("queued", "pending") and (attempt := run.last_attempt()):
            worker = read_json(run.attempt_dir(attempt) / "worker.json") or {}
            progress = (state == "running" and read_json(run.progress_file(attempt))) or {}
    if progress.get("epoch") != observed.observation.epochs_done:
        progress = {}  # of an epoch that is over
    last = epochs[-1] if epochs else {}
    step, steps, rate = (finite(progress.get(key)) for key in ("step", "steps", "train_tokens_per_second"))
    durations = [number for epoch in epochs if (number := finite(epoch.get("epoch_seconds"))) is not None]
    seconds = statistics.median(durations) if durations else None
    shape, expected = None, None
    if config is not None:
        train = config.train
        shape = (config.model, config.data, train.batch_size, train.seq_len, train.precision)
        tokens = (steps or 0) * train.batch_size * train.seq_len
        if seconds is None and rate and tokens:
            seconds = tokens / rate
        if tokens and (step or 0) >= WARM_STEPS:
            estimate = StudyRecord(run.path.parent).estimate(config.fingerprint())
            expected = tokens / (estimate[0] / estimate[1]) if estimate else None
    host, gpu = worker.get("host"), worker.get("gpu")
    where = (host != socket.gethostname() and host, gpu and machine.short_name(str(gpu)), worker.get("device"))
    return {
        "share": min(1.0, step / steps) if step is not None and steps else None,
        "train_ppl": finite(progress.get("train_ppl")) or finite(last.get("train_ppl")),
        "val_ppl": finite(last.get("val_ppl")),
        "tokens_per_second": (rate or finite(last.get("train_tokens_per_second"))) if state == "running" else None,
        "expected_tokens_per_second": expected,
        "device": " ".join(str(part) for part in where if part) or None,
        "shape": shape,
        "seconds_per_epoch": seconds,
    }


def finite(value: Any) -> float | None:
    """Return a finite number from a file, else ``None``: another user's file must not break the view."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def compared(runs: Sequence[RunView], queue: Sequence[str] = ()) -> list[RunView]:
    """Return the runs with their place in the queue, of ids, and the time that each still takes.

    An epoch takes as long as those of the run itself, else as the median of its shape, else of its architecture.
    """
    paces: defaultdict[Hashable, list[float]] = defaultdict(list)
    for run in runs:
        for key in (run.shape, run.arch) if run.seconds_per_epoch is not None else ():
            paces[key].append(run.seconds_per_epoch or 0.0)
    typical = {key: statistics.median(seconds) for key, seconds in paces.items()}
    places = {run_id: place for place, run_id in enumerate(queue)}
    found = []
    for run in runs:
        seconds = run.seconds_per_epoch
        if seconds is None:
            seconds = typical.get(run.shape, typical.get(run.arch))
        left = None
        if seconds is not None and run.state in ("running", "queued"):
            left = seconds * max(0.0, run.epochs - run.epochs_done - (run.share or 0.0))
        found.append(replace(run, seconds_left=left, queue_place=places.get(run.id)))
    return found


# -- tables and lines -------------------------------------------------------------------------------------------------


def epochs_of(run: RunView) -> str:
    """Return the finished epochs of all, and how far the running one is: ``2/40 45%``."""
    share = f" {run.share:.0%}" if run.share is not None and run.state == "running" else ""
    return f"{run.epochs_done}/{run.epochs}{share}" if run.epochs else "-"


def _ppl(title: str, value: str, **how: Any) -> Column:
    return Column(title, value, terminal.perplexity, right=True, **how)


STATUS = (
    Column("run", "name"),
    Column("id", spare=5),
    STATE,
    Column("epochs", epochs_of, right=True),
    _ppl("train ppl", "train_ppl", spare=3, optional=True),
    _ppl("val ppl", "val_ppl", spare=1, optional=True),
    _ppl("best val ppl", "best_val_ppl"),
    Column("tok/s", "tokens_per_second", terminal.short_number, right=True, optional=True),
    Column(
        "ETA",
        lambda run: run.seconds_left if run.state == "running" else None,
        terminal.duration,
        right=True,
        optional=True,
    ),
    Column("device", spare=4, optional=True),
    Column("reason"),
)
"""The columns of ``status`` and of the live table. Those that are optional are read only while a run is running."""
ESTIMATES = ("tokens_per_second", "seconds_left")
"""What ``status --json`` has of a run besides what its folder says."""


def say_status(runs: Sequence[ObservedRun], study_dir: Path) -> dict[str, Any]:
    """Print the table of ``status``, and what is spent of the study's budget. Return the data of ``--json``."""
    is_live = any(run.observation.state == "running" for run in runs)
    views = [view_of(run, measured=is_live) for run in runs]
    study = StudyView(name=study_dir.name, runs=tuple(compared(views) if is_live else views))
    budget, left = Budget.kept(study_dir), study.seconds_left
    show(STATUS, _each_reason_once(study.runs))
    for line in (None if left is None else f"about {terminal.duration(left)} left", study.slow_line, budget.line()):
        if line is not None:
            terminal.say(line)
    records = [
        {**run.to_dict(), **{key: getattr(view, key) for key in ESTIMATES}, "differs": differs}
        for run, view, differs in zip(runs, study.runs, what_differs(runs), strict=True)
    ]
    return {"study": study.name, "runs": records, "seconds_left": left, "budget": budget.to_dict()}


def _each_reason_once(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs with "as above" for a long reason that the run before has too, such as that of a canary."""
    reasons = [run.reason for run in runs]
    return [
        replace(run, reason="as above") if run.reason == before and len(before or "") > LONG_REASON else run
        for run, before in zip(runs, [None, *reasons], strict=False)
    ]


def what_differs(runs: Sequence[ObservedRun]) -> list[dict[str, Any]]:
    """Return for each run its values of the keys in which these runs differ; none for a damaged configuration."""
    configs = [run.config.by_key() if run.config else {} for run in runs]
    keys = varying_keys(configs)
    return [{key: config[key] for key in keys if key in config} for config in configs]


def changes(before: StudyView | None, after: StudyView) -> list[str]:
    """Return a line for each run whose state or epoch has changed. Without ``before``: one line about the study."""
    if before is None:
        return [after.summary]
    width = max((len(run.name) for run in after.runs), default=0)
    known = {run.id: (run.state, run.epochs_done) for run in before.runs}
    return [_line(run, width) for run in after.runs if known.get(run.id) != (run.state, run.epochs_done)]


def _line(run: RunView, width: int) -> str:
    epochs = f"epoch {run.epochs_done}/{run.epochs}" if run.epochs_done else None
    known = {"val ppl": run.val_ppl, "best val ppl": run.best_val_ppl}
    ppl = [f"{title} {terminal.perplexity(value)}" for title, value in known.items() if value is not None]
    return "  ".join(filter(None, (run.name.ljust(width), run.state, epochs, *ppl, run.reason)))
