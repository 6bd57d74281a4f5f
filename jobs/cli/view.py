"""What a study looks like at this moment: every run with its place within its epoch, its pace and its device."""

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
"""How often a study is looked at."""
LOOK_SHARE = 0.2
"""Share of the time that looking may take at most: a study of thousands of runs is looked at less often."""
STATES: tuple[State, ...] = ("running", "failed", "cancelled", "queued", "done", "pending")
"""In the order in which a person wants to see them."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run, as the live view shows it."""

    name: str
    id: str
    state: State
    reason: str | None = None
    """Why it waits, or has failed."""
    arch: str
    optimizer: str
    epochs: int
    """To be done in all; 0 where ``config.json`` is damaged."""
    epochs_done: int = 0
    share: float | None = None
    """Of the running epoch's training steps, those done."""
    phase: str | None = None
    """``train`` or ``valid``, while it runs."""
    train_ppl: float | None = None
    """Of the running epoch so far, else of the last one."""
    val_ppl: float | None = None
    """Of the last epoch."""
    best_val_ppl: float | None = None
    tokens_per_second: float | None = None
    device: str | None = None
    """Where it runs or ran last: host, where that is not this one alone, and GPU or processor."""
    seconds_left: float | None = None
    queue_place: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study, as the live view shows it."""

    name: str
    runs: tuple[RunView, ...]
    """In manifest order."""
    seconds_left: float | None
    """Until the last run ends, where that is known."""
    is_over: bool
    """Nothing more happens by itself."""

    def counts(self) -> dict[State, int]:
        """How many runs are in each state, without those in which there are none."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES if found[state]}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the files of one run say, before it is seen beside the others."""

    observed: ObservedRun
    epochs: Sequence[Mapping[str, Any]]
    progress: Mapping[str, Any]
    """Of the running epoch; empty where nothing is known of it."""
    worker: Mapping[str, Any]
    is_over: bool


@final
class Watcher:
    """Looks at a study again and again. What cannot change any more is read once; what is not watched, not touched."""

    def __init__(
        self, study_dir: Path, ids: Collection[str] | None = None, *, every_seconds: float | None = None
    ) -> None:
        """``ids`` are the runs to look at; ``None``: all. ``every_seconds`` is the time between two looks."""
        self._study_dir = study_dir
        self._every_seconds = every_seconds
        self._ids = None if ids is None else frozenset(ids)
        self._settling = FinalityTracker()
        self._scheduler = Scheduler()
        self._over: dict[str, tuple[Path, float, _Reading]] = {}
        """Run id -> the file that says how it ended, when that was written, and what there is to see."""
        self._known: dict[str, ObservedRun] = {}
        self._host = socket.gethostname()

    def look(self) -> StudyView:
        """The study as it is now."""
        ids = self._listed() if self._ids is None else self._ids
        over = {run_id: reading for run_id in ids if (reading := self._still_over(run_id)) is not None}
        rest = [run for run_id in ids if run_id not in over and self._is_run(run := self._run(run_id))]
        work = at_work(self._study_dir, self._scheduler, {run.id for run in rest})
        readings = [*over.values(), *(self._read(run, work) for run in rest)]
        readings.sort(key=lambda reading: reading.observed.run.place(reading.observed.provenance))
        return view(self._study_dir.name, readings, work, self._host)

    def pause(self, took_seconds: float) -> float:
        """Seconds to wait before the next look, after one that took so long."""
        return max(self._every_seconds or LOOK_SECONDS, took_seconds / LOOK_SHARE)

    def _run(self, run_id: str) -> RunDirectory:
        return RunDirectory(self._study_dir / run_id)

    def _listed(self) -> list[str]:
        try:
            return [folder.name for folder in self._study_dir.iterdir()]
        except OSError:
            return []

    def _is_run(self, run: RunDirectory) -> bool:
        """Whether the folder is that of a run; one that was listed and is known is not asked again."""
        return (self._ids is None and run.id in self._known) or run.config_file.is_file()

    def _still_over(self, run_id: str) -> _Reading | None:
        """What there is to see of a run that was over at the last look, unless that has changed."""
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
            return look_at(run, work)  # a file was damaged meanwhile; this says which


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
        pass  # it is in the observation's reason where it matters
    if progress.get("epoch") != observed.epochs_done:
        progress = {}  # of an epoch that is over
    return _Reading(observed=observed, epochs=epochs, progress=progress, worker=worker, is_over=is_over)


# -- from readings to a view; pure ---------------------------------------------------------------------------------


def view(study: str, readings: Sequence[_Reading], work: AtWork, host: str) -> StudyView:
    """The study with what its runs say about each other: paces, the queue, the hosts. ``host`` is this one."""
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
    """What queued runs are sorted by; one that has just been submitted comes first."""
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
    """The finite number that stands in a file, else none: a view does not break on what others wrote."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _device(worker: Mapping[str, Any], show_host: bool) -> str | None:
    """Such as ``node7 GPU-5d5ba0d6 NVIDIA H100``."""
    if not worker:
        return None
    words = [str(worker.get("host", "?"))] if show_host else []
    words += [machine.short_name(str(worker["gpu"]))] if worker.get("gpu") else []
    words += [str(worker["device"])] if worker.get("device") else []
    return " ".join(words)


# -- lines, where nothing can be drawn anew ------------------------------------------------------------------------


def changes(before: StudyView | None, after: StudyView) -> Iterable[str]:
    """A line for each run whose state or epoch is another than before; at first one line about the study."""
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
    """The study in one line."""
    counts = "  ".join(f"{number} {state}" for state, number in study.counts().items())
    left = f"  about {terminal.duration(study.seconds_left)} left" if study.seconds_left is not None else ""
    return f"{study.name}: {counts}{left}"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one run goes, and what else goes like it."""

    arch: str
    shape: Hashable
    """What decides how long an epoch takes: runs of the same shape take the same time."""
    seconds_per_epoch: float | None
    """As this run has gone so far."""


def expected_seconds_per_epoch(paces: Sequence[Pace]) -> list[float | None]:
    """For each run: its own figure, else the median of runs of its shape, else of its architecture, else none."""
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
    """Seconds until the last run ends, where each waiting run starts when the next of the running ones ends.

    As many go at once as do now. None where nothing runs or the time of any run is not known.
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
