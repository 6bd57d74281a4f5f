"""What the launcher prints for a person: tables, and a line for each thing that happens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO, final

from tqdm import tqdm

from jobs.dispatch import Event, Planned


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns aligned with spaces; the columns numbered in ``right`` to the right."""
    lines = [list(header), *[list(row) for row in rows]]
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
class LaunchProgress:
    """Lines for what happens to the runs of a launch, and on a terminal a bar over all their epochs."""

    def __init__(self, planned: Sequence[Planned], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        todo = [item for item in planned if item.action != "skip"]
        self._total = len(todo)
        self._ended = 0
        self._width = max((len(item.spec.name) for item in todo), default=0)
        epochs = sum(item.spec.config.train.epochs - _epochs_done(item.observation.epoch) for item in todo)
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty() and todo:
            self._bar = tqdm(total=epochs, unit="epoch", file=self._stream, leave=False, smoothing=0)
        self._seen = {item.run.id: _epochs_done(item.observation.epoch) for item in todo}

    def __call__(self, event: Event) -> None:
        name = event.planned.spec.name.ljust(self._width)
        observation = event.observation
        epochs = event.planned.spec.config.train.epochs
        match event.kind:
            case "started":
                verb = "resumes" if event.planned.action == "resume" else "starts"
                self._say(f"{name}  {verb}{f' {event.planned.reason}' if event.planned.reason else ''}")
            case "epoch":
                done = _epochs_done(observation.epoch)
                if self._bar is not None:
                    self._bar.update(max(0, done - self._seen[event.planned.run.id]))
                self._seen[event.planned.run.id] = done
                self._say(f"{name}  epoch {done}/{epochs}  best val ppl {perplexity(observation.best_val_ppl)}")
            case "ended":
                self._ended += 1
                detail = observation.reason or f"best val ppl {perplexity(observation.best_val_ppl)}"
                self._say(f"{name}  {observation.state}  {detail}  ({self._ended}/{self._total})")

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


def _epochs_done(epoch: int | None) -> int:
    return 0 if epoch is None else epoch + 1
