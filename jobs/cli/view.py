"""Views of a study at one moment: each run with its progress within the epoch, its speed and its device."""

from __future__ import annotations

import heapq
import math
import socket
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.study.finality import FinalityTracker
from jobs.study.folder import AtWork, ObservedRun, at_work, look_at, observe_run
from jobs.study.squeue import Scheduler
from seqlm import machine
from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory, State, read_json

LOOK_SECONDS = 0.5
"""Time between two polls of a study."""
LOOK_SHARE = 0.2
"""Largest share of the time that polling may take: a study of thousands of runs is polled less often."""
STATES: tuple[State, ...] = ("running", "failed", "cancelled", "queued", "done", "pending")
"""Most urgent first, the order of display."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run in the live view."""

    name: str
    id: str
    state: State
    reason: str | None = None
    """Why the run waits or has failed."""
    arch: str
    optimizer: str
    epochs: int
    """Epochs in all; 0 if ``config.json`` is damaged."""
    epochs_done: int = 0
    share: float | None = None
    """Share of the running epoch's training steps that is done, from 0 to 1."""
    phase: str | None = None
    """``train`` or ``valid`` while the run trains."""
    train_ppl: float | None = None
    """Perplexity of the running epoch so far, else of the last epoch."""
    val_ppl: float | None = None
    """Perplexity of the last epoch."""
    best_val_ppl: float | None = None
    tokens_per_second: float | None = None
    device: str | None = None
    """Device of the latest attempt: GPU or processor, with the host if runs are not all on this host."""
    seconds_left: float | None = None
    queue_place: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study in the live view."""

    name: str
    runs: tuple[RunView, ...]
    """In manifest order."""
    seconds_left: float | None
    """Time until the last run ends. ``None``: not known."""
    is_over: bool
    """No run can change state without a new launch."""

    def counts(self) -> dict[State, int]:
        """Return the number of runs in each state that has any."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES if found[state]}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The files of one run, before it is compared with the others."""

    observed: ObservedRun
    epochs: Sequence[Mapping[str, Any]]
    progress: Mapping[str, Any]
    """``progress.json`` of the running epoch; empty if there is none."""
    worker: Mapping[str, Any]
    is_over: bool


@final
class Watcher:
    """Polls a study. Files that cannot change any more are read once; runs that are not watched are not read."""

    def __init__(
        self, study_dir: Path, ids: Collection[str] | None = None, *, every_seconds: float | None = None
    ) -> None:
        """``ids`` are the runs to watch; ``None``: all. ``every_seconds`` is the time between two polls."""
        self._study_dir = study_dir
        self._every_seconds = every_seconds
        self._ids = None if ids is None else frozenset(ids)
        self._settling = FinalityTracker()
        self._scheduler = Scheduler()
        self._over: dict[str, tuple[Path, float, _Reading]] = {}
        """Run id -> the file with its outcome, the time of its last change, and the run's reading."""
        self._known: dict[str, ObservedRun] = {}
        self._host = socket.gethostname()

    def look(self) -> StudyView:
        """Return the study as it is now."""
        ids = self._listed() if self._ids is None else self._ids
        over = {run_id: reading for run_id in ids if (reading := self._still_over(run_id)) is not None}
        rest = [run for run_id in ids if run_id not in over and self._is_run(run := self._run(run_id))]
        work = at_work(self._study_dir, self._scheduler, {run.id for run in rest})
        readings = [*over.values(), *(self._read(run, work) for run in rest)]
        readings.sort(key=lambda reading: reading.observed.run.place(reading.observed.provenance))
        return view(self._study_dir.name, readings, work, self._host)

    def pause(self, took_seconds: float) -> float:
        """Return the seconds to wait before the next poll, after one that took ``took_seconds``."""
        return max(self._every_seconds or LOOK_SECONDS, took_seconds / LOOK_SHARE)

    def _run(self, run_id: str) -> RunDirectory:
        return RunDirectory(self._study_dir / run_id)

    def _listed(self) -> list[str]:
        try:
            return [folder.name for folder in self._study_dir.iterdir()]
        except OSError:
            return []

    def _is_run(self, run: RunDirectory) -> bool:
        """Whether the folder is that of a run. A known run of a listed folder is not checked again."""
        return (self._ids is None and run.id in self._known) or run.config_file.is_file()

    def _still_over(self, run_id: str) -> _Reading | None:
        """Return the kept reading of a run that was over at the last poll; ``None`` if its outcome has changed."""
        if run_id not in self._over:
            return None
        file, written, reading = self._over[run_id]
        if _written(file) == written:
            return reading
        del self._over[run_id]
        return None

    def _read(self, run: RunDirectory, work: AtWork) -> _Reading:
        ends = [(file, _written(file)) for file in (run.result_file, run.failure_file)]
        observed = self._observe(run, work)
        reading = _read(observed, self._settling.is_over(run.id, observed.observation, work))
        file, written = next((end for end in ends if end[1] > 0), (run.path, 0.0))
        if reading.is_over and written > 0:
            self._over[run.id] = (file, written, reading)
        return reading

    def _observe(self, run: RunDirectory, work: AtWork) -> ObservedRun:
        known = self._known.get(run.id)
        if known is None:
            observed = look_at(run, work)
            if observed.config is not None:
                self._known[run.id] = observed
            return observed
        try:
            return replace(known, observation=observe_run(run, work))
        except SeqlmError:
            return look_at(run, work)  # a file was damaged meanwhile; the reason names it


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(observed: ObservedRun, is_over: bool) -> _Reading:
    run = observed.run
    epochs: Sequence[Mapping[str, Any]] = []
    progress: dict[str, Any] = {}
    worker: dict[str, Any] = {}
    try:
        epochs, _ = run.read_metrics()
        attempt = run.last_attempt() if observed.observation.state not in ("queued", "pending") else 0
        if attempt:
            worker = read_json(run.attempt_dir(attempt) / "worker.json") or {}
        if attempt and observed.observation.state == "running":
            progress = read_json(run.progress_file(attempt)) or {}
    except SeqlmError:
        pass  # the observation's reason names the file if it matters
    if progress.get("epoch") != observed.epochs_done:
        progress = {}  # of an epoch that is over
    return _Reading(observed=observed, epochs=epochs, progress=progress, worker=worker, is_over=is_over)


# -- from readings to a view; pure ---------------------------------------------------------------------------------


def view(study: str, readings: Sequence[_Reading], work: AtWork, host: str) -> StudyView:
    """Return the view of a study: expected speeds, places in the queue, hosts. ``host`` is the name of this host."""
    expected = expected_seconds_per_epoch([_pace(reading) for reading in readings])
    hosts = {str(reading.worker["host"]) for reading in readings if reading.worker.get("host")}
    show_host = bool(hosts - {host})
    places = {run_id: place for place, run_id in enumerate(work.launcher.waiting)} if work.launcher is not None else {}
    runs = tuple(
        _run_view(reading, seconds, show_host, places.get(reading.observed.run.id))
        for reading, seconds in zip(readings, expected, strict=True)
    )
    queued = sorted((run for run in runs if run.state == "queued"), key=place_in_queue)
    return StudyView(
        name=study,
        runs=runs,
        seconds_left=study_seconds_left(
            [run.seconds_left for run in runs if run.state == "running"], [run.seconds_left for run in queued]
        ),
        is_over=all(reading.is_over for reading in readings),
    )


def place_in_queue(run: RunView) -> float:
    """Return the sort key of queued runs. A run that was just submitted comes first."""
    return -1 if run.queue_place is None else run.queue_place


def _pace(reading: _Reading) -> Pace:
    config = reading.observed.config
    if config is None:
        return Pace(arch="", shape=None, seconds_per_epoch=None)
    train = config.train
    seconds: float | None = None
    rate, steps = _number(reading.progress.get("train_tokens_per_second")), _number(reading.progress.get("steps"))
    durations = [number for epoch in reading.epochs if (number := _number(epoch.get("epoch_seconds"))) is not None]
    if durations:
        seconds = statistics.median(durations)
    elif rate and steps:
        seconds = steps * train.batch_size * train.seq_len / rate
    shape = (config.model, config.data, train.batch_size, train.seq_len, train.precision)
    return Pace(arch=config.model.arch, shape=shape, seconds_per_epoch=seconds)


def _run_view(reading: _Reading, seconds_per_epoch: float | None, show_host: bool, queue_place: int | None) -> RunView:
    observed, progress, config = reading.observed, reading.progress, reading.observed.config
    seen = observed.observation
    last = reading.epochs[-1] if reading.epochs else {}
    step, steps = _number(progress.get("step")), _number(progress.get("steps"))
    share = min(1.0, step / steps) if step is not None and steps else None
    epochs = config.train.epochs if config else 0
    left = max(0.0, epochs - observed.epochs_done - (share or 0.0))
    moves = seen.state in ("running", "queued")
    return RunView(
        name=observed.name,
        id=observed.run.id,
        state=seen.state,
        reason=seen.reason,
        arch=config.model.arch if config else "?",
        optimizer=config.optim.optimizer if config else "?",
        epochs=epochs,
        epochs_done=observed.epochs_done,
        share=share,
        phase=progress.get("phase"),
        train_ppl=_number(progress.get("train_ppl")) or _number(last.get("train_ppl")),
        val_ppl=_number(last.get("val_ppl")),
        best_val_ppl=seen.best_val_ppl,
        tokens_per_second=_number(progress.get("train_tokens_per_second"))
        or _number(last.get("train_tokens_per_second")),
        device=_device(reading.worker, show_host),
        seconds_left=seconds_per_epoch * left if moves and seconds_per_epoch is not None else None,
        queue_place=queue_place,
    )


def _number(value: Any) -> float | None:
    """Return a finite number from a file, else ``None``: another user's file must not break the view."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _device(worker: Mapping[str, Any], show_host: bool) -> str | None:
    """Return text such as ``node7 GPU-5d5ba0d6 NVIDIA H100``."""
    if not worker:
        return None
    words = [str(worker.get("host", "?"))] if show_host else []
    words += [machine.short_name(str(worker["gpu"]))] if worker.get("gpu") else []
    words += [str(worker["device"])] if worker.get("device") else []
    return " ".join(words)


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
        if run.epochs_done > (was.epochs_done if was else 0):
            yield (
                f"{name}  epoch {run.epochs_done}/{run.epochs}  train ppl {terminal.perplexity(run.train_ppl)}"
                f"  val ppl {terminal.perplexity(run.val_ppl)}  best val ppl {terminal.perplexity(run.best_val_ppl)}"
            )
        if was is None or run.state != was.state:
            best = f"best val ppl {terminal.perplexity(run.best_val_ppl)}" if run.state == "done" else None
            yield "  ".join(filter(None, (name, run.state, run.reason, best)))


def summary(study: StudyView) -> str:
    """Return the study in one line."""
    counts = "  ".join(f"{number} {state}" for state, number in study.counts().items())
    left = f"  about {terminal.duration(study.seconds_left)} left" if study.seconds_left is not None else ""
    return f"{study.name}: {counts}{left}"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The speed of one run, and which runs are as fast."""

    arch: str
    shape: Hashable
    """All that an epoch's time depends on: runs of the same shape take the same time."""
    seconds_per_epoch: float | None
    """Measured on this run. ``None``: not measured yet."""


def expected_seconds_per_epoch(paces: Sequence[Pace]) -> list[float | None]:
    """Return the time of each run's epoch: its own, else the median of its shape, of its architecture, or ``None``."""
    by_shape: defaultdict[Hashable, list[float]] = defaultdict(list)
    by_arch: defaultdict[str, list[float]] = defaultdict(list)
    for pace in paces:
        if pace.seconds_per_epoch is not None:
            by_shape[pace.shape].append(pace.seconds_per_epoch)
            by_arch[pace.arch].append(pace.seconds_per_epoch)
    shapes = {shape: statistics.median(seconds) for shape, seconds in by_shape.items()}
    archs = {arch: statistics.median(seconds) for arch, seconds in by_arch.items()}

    def expected(pace: Pace) -> float | None:
        if pace.seconds_per_epoch is not None:
            return pace.seconds_per_epoch
        return shapes.get(pace.shape, archs.get(pace.arch))

    return [expected(pace) for pace in paces]


def study_seconds_left(running: Sequence[float | None], waiting: Iterable[float | None]) -> float | None:
    """Return the seconds until the last run ends, if each waiting run starts when the next running one ends.

    ``None`` if nothing runs, or the time of any run is not known.
    """
    ends = [seconds for seconds in running if seconds is not None]
    if not ends or len(ends) < len(running):
        return None
    heapq.heapify(ends)
    last = max(ends)
    for seconds in waiting:
        if seconds is None:
            return None
        end = ends[0] + seconds
        heapq.heapreplace(ends, end)
        last = max(last, end)
    return last
