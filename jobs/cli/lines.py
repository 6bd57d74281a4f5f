"""Plain progress of a launch: a line for each event."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

from jobs.launch.dispatch import Event
from jobs.plan.planned import PlannedRun
from jobs.terminal import perplexity, tell
from seqlm.rundir import Observation


class Progress(ABC):
    """What shows the events of a launch."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Show an event."""

    @abstractmethod
    def close(self) -> None:
        """Restore the terminal. May be called more than once."""


@final
class LaunchProgress(Progress):
    """Prints a line for each event of a launch."""

    def __init__(self, planned: Sequence[PlannedRun], say: Callable[[str], None] | None = None) -> None:
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
        """Do nothing: printed lines stay."""


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
        case _:  # the worker exited with EXIT_BUSY and wrote no failure
            return "had another worker at it"
