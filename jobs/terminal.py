"""What the launcher prints for a person: tables, and a line for each thing that happens."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO, final

from jobs.dispatch import Event, Planned
from seqlm.errors import printable
from seqlm.rundir import Observation


class Progress(ABC):
    """Who is told of the events of a launch."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Something has happened to a run."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal as it was. May be called more than once."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns aligned with spaces; the columns numbered in ``right`` to the right. Cells cannot break a line."""
    lines = [list(header), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(render(line) for line in lines)


def quantity(value: float | None, units: Sequence[str], base: float) -> str:
    """A number with the unit that leaves one to three digits before the point, or a dash for none.

    >>> quantity(1_234_567, ("", "k", "M", "G"), 1000)
    '1.2M'
    """
    if value is None:
        return "-"
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.0f}{unit}" if unit == units[0] else f"{value:.1f}{unit}"
        value /= base
    return f"{value:.1f}{units[-1]}"


def count(value: float | None) -> str:
    """12.3M and the like."""
    return quantity(value, ("", "k", "M", "G", "T"), 1000)


def memory(value: float | None) -> str:
    """1.5 GiB and the like, from bytes."""
    return quantity(value, (" B", " KiB", " MiB", " GiB"), 1024)


def duration(seconds: float | None) -> str:
    """45 s, 12 min or 3.5 h; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def perplexity(value: float | None) -> str:
    """Two decimals below a thousand, none above; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


@final
class LaunchProgress(Progress):
    """What happens to the runs of a launch, one line each."""

    def __init__(self, planned: Sequence[Planned], say: Callable[[str], None] | None = None) -> None:
        self._say = say or tell
        todo = [item for item in planned if item.action != "skip"]
        self._total = len(todo)
        self._ended = 0
        self._width = max((len(item.spec.name) for item in todo), default=0)

    def __call__(self, event: Event) -> None:
        name = event.planned.spec.name.ljust(self._width)
        observation = event.observation
        epochs = event.planned.spec.config.train.epochs
        match event.kind:
            case "started":
                verb = "resumes" if event.planned.action == "resume" else "starts"
                self._say(f"{name}  {verb}{f' {event.planned.reason}' if event.planned.reason else ''}")
            case "epoch":
                done = 0 if observation.epoch is None else observation.epoch + 1
                self._say(f"{name}  epoch {done}/{epochs}  best val ppl {perplexity(observation.best_val_ppl)}")
            case "retried":
                reason = f": {observation.reason}" if observation.reason else ""
                self._say(f"{name}  {_cause(observation)}, tried again{reason}")
            case "ended":
                self._ended += 1
                best = observation.best_val_ppl  # none of a job that trains nothing
                detail = observation.reason or ("" if best is None else f"best val ppl {perplexity(best)}")
                words = [name, observation.state, detail, f"({self._ended}/{self._total})"]
                self._say("  ".join(word for word in words if word))

    def close(self) -> None:
        """Nothing to do: lines stay where they are."""


def _cause(observation: Observation) -> str:
    match observation.kind:
        case "oom":
            return "was short of memory (smaller micro-batches)"
        case "preempted":
            return "was preempted"
        case "timeout":
            return "ran out of time"
        case "node":
            return "lost its node"
        case _:  # its worker said so, and wrote nothing
            return "had another worker at it"


def tell(line: str) -> None:
    """A line on stderr, with control characters as escapes: what names and messages hold must not drive a terminal."""
    print(printable(line), file=sys.stderr, flush=True)


def can_redraw(stream: TextIO) -> bool:
    """Whether lines on ``stream`` can be drawn anew in place: a terminal, and not one that calls itself dumb."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def launch_progress(planned: Sequence[Planned], study_dir: Path) -> Progress:
    """Who is told of a launch's events: a table that updates in place on a terminal, else plain lines."""
    if can_redraw(sys.stderr) and any(item.action != "skip" for item in planned):
        from jobs.live import LiveProgress  # rich: only where the table is shown

        return LiveProgress(planned, study_dir)
    return LaunchProgress(planned)
