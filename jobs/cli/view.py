"""What a person is shown of runs, once or live: the records of ``status``, its table, and lines about changes."""

from __future__ import annotations

import contextlib
import heapq
import socket
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, final

from jobs import terminal
from jobs.study.budget import Budget
from jobs.study.folder import ObservedRun, Seen, launcher_of, observe_study, study_name
from jobs.study.record import NOTES, KeptManifests
from jobs.terminal import STATE, Column, Result, lines_of, show
from seqlm import machine
from seqlm.config import varying_keys
from seqlm.errors import SeqlmError, printable
from seqlm.records.attempts import ProgressFile, Worker
from seqlm.state import State

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from tqdm.std import tqdm

    from jobs.plan.planned import PlannedRun

STATES: tuple[State, ...] = ("running", "failed", "cancelled", "queued", "done", "stopped", "pending")
"""Most urgent first, the order of display."""
_SPEEDS = ("tokens_per_second", "expected_tokens_per_second")
MEASURES = ("share", "train_ppl", "val_ppl", *_SPEEDS, "device", "seconds_left")
"""What a record has of a run while any run of the study is running; else they are ``None``."""
WARM_STEPS = 5
"""Steps of an epoch after which its speed is compared with the estimate: the first of a process are slower."""
SLOW_SHARE = 1 / 3
"""Share of its estimated speed below which a run counts as several times slower."""
LOOK_SECONDS = 0.5
"""Least time between two polls of a study."""
LOOK_SHARE = 0.2
"""Largest share of the time that polling may take: a large study, or one on a slow disk, is polled less often."""

Record = dict[str, Any]
"""A run in ``status --json``: its entry of :meth:`ObservedRun.to_dict`, :data:`MEASURES`, and what differs."""


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """The runs of a study at one moment."""

    name: str
    runs: Sequence[Record]
    """In manifest order."""
    is_starting: bool = False
    """A live launcher has not requested its runs yet."""

    @property
    def is_over(self) -> bool:
        """No run can change state without a new launch, and none is about to appear."""
        return not self.is_starting and not any(run["state"] in ("running", "queued") for run in self.runs)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last run ends, if as many runs go at once as now.

        ``None`` if nothing runs, or the time of any run is not known.
        """
        running, queued = (
            [run["seconds_left"] for run in self.runs if run["state"] == s] for s in ("running", "queued")
        )
        return played(running, queued)[1]

    @property
    def slow_line(self) -> str | None:
        """A line about the running runs that are several times slower than estimated. ``None``: there are none."""
        slow = [run for run in self.runs if _speed_share(run) < SLOW_SHARE]
        if not slow:
            return None
        run = min(slow, key=_speed_share)
        who = run["name"] if len(slow) == 1 else f"{run['name']} and {len(slow) - 1} more"
        speeds = [terminal.short_number(run[key]) for key in _SPEEDS]
        return f"{who}: several times slower than estimated ({' of '.join(speeds)} tok/s); is this machine busy?"

    @property
    def summary(self) -> str:
        """The study in one line."""
        found = Counter(run["state"] for run in self.runs)
        counts = "  ".join(f"{found[state]} {state}" for state in STATES if found[state]) or "no runs"
        left = f"  about {terminal.duration(self.seconds_left)} left" if self.seconds_left is not None else ""
        return f"{self.name}: {counts}{left}"


def played(running: Sequence[float | None], queued: Iterable[float | None]) -> tuple[list[float | None], float | None]:
    """Return in how many seconds each queued run starts and all runs have ended, if a run starts when another ends.

    ``running`` and ``queued`` are the seconds that runs still take. ``None``: not known, like all that follows.
    """
    ends = [] if None in running else [end for end in running if end is not None]
    heapq.heapify(ends)
    starts = []
    for seconds in queued:
        start = heapq.heappop(ends) if ends else None
        starts.append(start)
        if start is not None and seconds is not None:
            heapq.heappush(ends, start + seconds)
        else:
            ends = []
    return starts, max(ends, default=None)


def _speed_share(run: Record) -> float:
    """Return the share of its estimated speed at which a run trains; 1 if either is not known."""
    measured, expected = run["tokens_per_second"], run["expected_tokens_per_second"]
    return measured / expected if measured and expected else 1.0


# -- records ----------------------------------------------------------------------------------------------------------


def records_of(runs: Sequence[ObservedRun]) -> list[Record]:
    """Return the record of each run.

    An epoch takes as long as those of the run itself, else as the median of runs of the same shape.
    """
    is_live = any(run.observation.state == "running" for run in runs)
    found = [(run, *(_measured(run) if is_live else ({}, None, None))) for run in runs]
    paces: defaultdict[Hashable, list[float]] = defaultdict(list)
    for _, _, shape, seconds in found:
        if seconds is not None:
            paces[shape].append(seconds)
    records = []
    for (run, measured, shape, seconds), differs in zip(found, what_differs(runs), strict=True):
        record = {**run.to_dict(), **dict.fromkeys(MEASURES), **measured, "differs": differs}
        if seconds is None and shape in paces:
            seconds = statistics.median(paces[shape])
        if seconds is not None and record["epochs_total"] and record["state"] in ("running", "queued"):
            left = record["epochs_total"] - record["epochs_done"] - (record["share"] or 0.0)
            record["seconds_left"] = seconds * max(0.0, left)
        records.append(record)
    return records


def what_differs(runs: Sequence[ObservedRun]) -> list[dict[str, Any]]:
    """Return for each run its values of the keys in which these runs differ; none for a damaged configuration."""
    configs = [run.config.by_key() if run.config else {} for run in runs]
    keys = varying_keys(configs)
    return [{key: config[key] for key in keys if key in config} for config in configs]


def _measured(observed: ObservedRun) -> tuple[dict[str, Any], Hashable, float | None]:
    """Return the measures of a run, all that an epoch's time depends on, and that time; ``None``: not measured yet."""
    run, config, seen = observed.run, observed.config, observed.observation
    progress = ProgressFile()
    worker = Worker()
    with contextlib.suppress(SeqlmError):  # the observation's reason names the file if it matters
        if seen.state == "running" and (attempt := run.working_attempt()):
            progress = ProgressFile.read(run.attempt_dir(attempt)) or ProgressFile()
            worker = run.read_worker(attempt)
    if progress.epoch != seen.epochs_done:
        progress = ProgressFile()  # of an epoch that is over
    step, steps, rate = progress.step, progress.steps, progress.train_tokens_per_second
    seconds, last = observed.pace
    shape, expected = None, None
    if config is not None:
        train = config.train
        shape = (config.model, config.data, train.batch_size, train.seq_len, train.precision)
        tokens = (steps or 0) * train.batch_size * train.seq_len
        if seconds is None and rate and tokens:
            seconds = tokens / rate
        if tokens and (step or 0) >= WARM_STEPS:
            estimate = KeptManifests(run.path.parent, only=("estimates",)).estimate(config.fingerprint())
            expected = tokens / (estimate[0] / estimate[1]) if estimate else None
    other_host = worker.host if worker.host != socket.gethostname() else None
    gpu = None if worker.gpu is None else machine.short_name(worker.gpu)
    where = (other_host, gpu, worker.device)
    measures = {
        "share": min(1.0, step / steps) if step is not None and steps else None,
        "train_ppl": progress.train_ppl or last.get("train_ppl"),
        "val_ppl": last.get("val_ppl"),
        "tokens_per_second": (rate or last.get("train_tokens_per_second")) if seen.state == "running" else None,
        "expected_tokens_per_second": expected,
        "device": " ".join(part for part in where if part) or None,
    }
    return measures, shape, seconds


# -- tables and lines -------------------------------------------------------------------------------------------------


def _epochs(run: Record) -> str:
    """Return the finished epochs of all, and how far the running one is: ``2/40 45%``."""
    share = f" {run['share']:.0%}" if run["share"] is not None else ""
    return f"{run['epochs_done']}/{run['epochs_total']}{share}" if run["epochs_total"] else "-"


def _reason(run: Record) -> str:
    return "; ".join(filter(None, (run["reason"], NOTES.get(run["origin"]))))


STATUS = (
    Column("run", "name"),
    Column("id", spare=4),
    STATE,
    Column("epochs", _epochs, right=True),
    Column("train ppl", "train_ppl", terminal.perplexity, right=True, spare=3, optional=True),
    Column("val ppl", "val_ppl", terminal.perplexity, right=True, spare=1, optional=True),
    Column("best val ppl", "best_val_ppl", terminal.perplexity, right=True),
    Column("tok/s", "tokens_per_second", terminal.short_number, right=True, optional=True),
    Column(
        "ETA",
        lambda run: run["seconds_left"] if run["state"] == "running" else None,
        terminal.duration,
        right=True,
        optional=True,
    ),
    Column("device", spare=5, optional=True),
    Column("reason", _reason, cut=True, folded=True),
)
"""The columns of ``status`` and of the live table. Those that are optional are read only while a run is running."""


@dataclass(frozen=True, kw_only=True)
class StatusResult(Result):
    """The state of each run, and what is spent of the study's budget."""

    HIDDEN = frozenset({"lines"})

    study: str
    runs: Sequence[Record]
    counts: Mapping[State, int]
    seconds_left: float | None
    budget: Mapping[str, Any] | None
    lines: Sequence[str]
    """What a person is told below the table."""

    def render(self) -> None:
        show(STATUS, self.runs)
        for line in self.lines:
            terminal.say(line)


def status_of(runs: Sequence[ObservedRun], study_dir: Path) -> StatusResult:
    """Return the state of runs of a study."""
    study, budget = StudyView(name=study_dir.name, runs=records_of(runs)), Budget.kept(study_dir)
    left = study.seconds_left
    time_left = None if left is None else f"about {terminal.duration(left)} left"
    return StatusResult(
        study=study.name,
        runs=study.runs,
        counts=Counter(run["state"] for run in study.runs),
        seconds_left=left,
        budget=budget.to_dict(),
        lines=[line for line in (time_left, study.slow_line, budget.line()) if line is not None],
    )


def changes(before: StudyView, after: StudyView, keys: Sequence[str] = ("state", "epochs_done")) -> list[str]:
    """Return a line for each run of which one of these keys has changed."""
    width = max((len(run["name"]) for run in after.runs), default=0)
    known = {run["id"]: [run[key] for key in keys] for run in before.runs}
    return [_line(run, width) for run in after.runs if known.get(run["id"]) != [run[key] for key in keys]]


def _line(run: Record, width: int) -> str:
    epochs = f"epoch {run['epochs_done']}/{run['epochs_total']}" if run["epochs_done"] else None
    best = f"best val ppl {terminal.perplexity(run['best_val_ppl'])}" if run["best_val_ppl"] is not None else None
    return "  ".join(filter(None, (run["name"].ljust(width), run["state"], epochs, best, _reason(run))))


# -- following ---------------------------------------------------------------------------------------------------------


@final
class Watcher:
    """Polls a study."""

    def __init__(self, study_dir: Path, ids: Collection[str] | None = None) -> None:
        """``ids`` are the runs to watch; ``None``: all."""
        self._study_dir, self._ids = study_dir, ids
        self._seen = Seen(study_dir)
        self.pause_seconds = LOOK_SECONDS
        """How long to wait before the next poll: longer after one that took long."""

    def look(self) -> StudyView:
        """Return the study as it is now."""
        started, launcher = time.monotonic(), launcher_of(self._study_dir)
        study = StudyView(
            name=study_name(self._study_dir),
            runs=records_of(observe_study(self._study_dir, ids=self._ids, seen=self._seen)),
            is_starting=launcher is not None and not launcher.has_listed,
        )
        took = time.monotonic() - started
        self.pause_seconds = max(LOOK_SECONDS, took / LOOK_SHARE)
        return study


# -- the live table ---------------------------------------------------------------------------------------------------


def table_lines(study: StudyView, width: int, height: int) -> list[str]:
    """Return the lines of the table, at most ``height``; those wider than ``width`` are to be cut.

    The runs are in the order of ``STATES``, so that running and failed ones are hidden last.
    """
    runs = sorted(study.runs, key=lambda run: STATES.index(run["state"]))
    below = ["", study.summary, *filter(None, [study.slow_line])]
    rows = max(1, height - 1 - len(below))
    shown = runs if len(runs) <= rows else runs[: rows - 1]
    lines = lines_of(STATUS, shown, width=width, colored=True)
    if hidden := Counter(run["state"] for run in runs[len(shown) :]):
        lines.append(f"... and {', '.join(f'{count} {state}' for state, count in hidden.items())}")
    return [*lines, *map(printable, below)][:height]


def drawn(study: StudyView, console: Console) -> Group:
    """Return a study as a table that fits the console. The cursor needs the line after the last."""
    from rich.console import Group
    from rich.text import Text

    width, height = console.size
    return Group(Text.from_ansi("\n".join(table_lines(study, width, height - 1)), no_wrap=True, overflow="crop"))


# -- ways to follow ---------------------------------------------------------------------------------------------------


@final
class Display:
    """Shows a study: a line for each change of a run, and on a terminal that can redraw its table below them."""

    def __init__(self, watcher: Watcher, stream: TextIO, tell: Callable[[str], object], *, transient: bool) -> None:
        """The table is on ``stream``, and ``tell`` prints the lines. ``transient``: the table is removed at the end."""
        self._watcher, self._stream, self._tell = watcher, stream, tell
        self._transient = transient
        self._before: StudyView | None = None
        self._table: Live | None = None

    def __enter__(self) -> Display:
        if terminal.can_redraw(self._stream):
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, no_color=not terminal.has_color(self._stream))
            self._table = Live(console=console, auto_refresh=False, transient=self._transient)
            self._table.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with terminal.survives(self._stream):
            if self._table is not None:
                self._table.stop()

    def look(self) -> StudyView:
        """Show the study as it is now, and return it. Show nothing until a launcher that starts has requested runs."""
        before, study = self._before, self._watcher.look()
        if before is not None or not study.is_starting:
            self._before = study
            keys = ["state", "epochs_done"] if self._table is None else ["state"]  # the table shows epochs
            with terminal.survives(self._stream):
                for line in changes(before, study, keys) if before else [study.summary]:
                    self._tell(line)
                if self._table is not None:
                    self._table.update(drawn(study, self._table.console), refresh=True)
                self._stream.flush()
        return study


@final
class Bar:
    """Shows a study that a script or a notebook has launched: a bar of the epochs of all of its runs."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def look(self) -> StudyView:
        """Show the study as it is now, and return it."""
        study = self._watcher.look()
        total = sum(run["epochs_total"] or 0 for run in study.runs)
        if self._bar is None:
            from tqdm.std import tqdm  # text, which a notebook shows without further packages

            form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} epochs [{elapsed}{postfix}]"
            self._bar = tqdm(desc=study.name, total=total, bar_format=form, file=sys.stderr)
        counts = Counter(run["state"] for run in study.runs)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        done = sum((run["epochs_done"] or 0) + (run["share"] or 0.0) for run in study.runs)
        if (done, states) != (self._bar.n, self._bar.postfix):
            self._bar.n, self._bar.total = done, total
            self._bar.set_postfix_str(states)
        return study


def _display(watcher: Watcher, stream: TextIO, tell: Callable[[str], object], *, transient: bool) -> Display | Bar:
    """Return what shows a study: a bar to a script or a notebook, else as :class:`Display` is made."""
    if terminal.is_library():
        return Bar(watcher)
    return Display(watcher, stream, tell, transient=transient)


def watch(watcher: Watcher) -> None:
    """Show a study as a result until every run is over."""
    with _display(watcher, terminal.results(), terminal.say, transient=False) as display:
        first = study = display.look()
        while not study.is_over:
            time.sleep(watcher.pause_seconds)
            study = display.look()
    if study is not first and not terminal.is_library():  # whose summary the display has shown
        terminal.say(study.summary)


def tell_skipped(planned: Sequence[PlannedRun]) -> None:
    """Print which runs a launch leaves alone, and why: the first in each state. ``--verbose`` prints all."""
    by_state = defaultdict[str, list[str]](list)
    for item in planned:
        if item.action == "skip":
            state = "done" if item.reason == "done" else f"more {item.observation.state}"
            state = "more that cannot go on" if item.falls_short else state
            by_state[state].append(f"skipped {item.spec.name}: {item.reason}")
    terminal.detail("\n".join(by_state.pop("done", [])))
    for state, (first, *others) in by_state.items():
        terminal.tell(f"{first}; and {len(others)} {state} (--verbose names them)" if others else first)
        terminal.detail("\n".join(others))


@contextlib.contextmanager
def following(study_dir: Path, where: str, planned: Sequence[PlannedRun]) -> Iterator[None]:
    """Show a launch on stderr while the block runs it to its end."""
    actions = Counter(item.action for item in planned if item.action != "skip")
    kinds = ", ".join(f"{actions[action]} {action}" for action in ("start", "resume", "extend") if actions[action])
    todo = f"{actions.total()} of {len(planned)} runs to do on {where}"
    terminal.tell_progress(f"{study_name(study_dir)}: {todo}: {kinds}" if kinds else f"{study_name(study_dir)}: {todo}")
    tell_skipped(planned)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(watcher.pause_seconds):
            with contextlib.suppress(SeqlmError, OSError):  # a file that cannot be read for a moment ends no display
                display.look()

    watcher, thread = Watcher(study_dir, [item.run.id for item in planned]), threading.Thread(target=follow)
    with _display(watcher, terminal.progress(), terminal.tell_progress, transient=True) as display:
        display.look()
        thread.start()
        try:
            try:
                yield
            finally:
                ended.set()
                thread.join()
        except KeyboardInterrupt:
            terminal.tell("the workers have stopped; the same command goes on from here")
            raise
        display.look()
