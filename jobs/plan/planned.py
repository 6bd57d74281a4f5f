"""Decide what each run needs: start, resume or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobs.attempt.retry import FREE
from jobs.plan.estimate import Estimate
from jobs.spec import RunSpec
from seqlm.data.corpus import CorpusFacts
from seqlm.rundir import Observation, RunDirectory

Action: TypeAlias = Literal["start", "resume", "skip"]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What will happen to one run."""

    spec: RunSpec
    """The resources of a run that is not skipped are resolved when the launch is prepared (``jobs.launch.prepare``)."""
    run: RunDirectory
    observation: Observation
    action: Action
    reason: str | None
    """Why the run is skipped, or after which epoch it resumes."""
    by_hand: bool = False
    """Whether a user retries a run that failed or was cancelled, or lets a run go on that a search stopped."""
    facts: CorpusFacts | None = None
    """``None``: its corpus has not been read."""
    estimate: Estimate | None = None
    """``None``: nothing has been estimated, as for a canary."""

    @property
    def epochs_done(self) -> int:
        """Finished epochs that the run does not repeat."""
        epoch = self.observation.epoch
        return epoch + 1 if self.action == "resume" and epoch is not None else 0

    @property
    def flops(self) -> float:
        """Floating-point operations of the remaining epochs. 0 if unknown."""
        return self.estimate.flops if self.estimate else 0.0

    @property
    def seconds(self) -> float | None:
        """Expected time of the remaining epochs. ``None``: unknown."""
        return self.estimate.seconds if self.estimate else None


def plan(
    spec: RunSpec,
    run: RunDirectory,
    observation: Observation,
    *,
    has_checkpoint: bool,
    retry: bool,
    undecided: bool = False,
) -> PlannedRun:
    """Decide what to do with one run, from its observed state. Pure: nothing is read or written.

    A run that is done, running or queued is skipped. A run that a search stopped is skipped, unless ``retry`` is set. A
    run that was cancelled or failed is skipped, unless ``retry`` or
    ``undecided`` is set or the failure was not the run's own fault (``FREE``). Every other run resumes from its
    checkpoint, or starts if it has none. ``undecided`` means that the failure may be retried but the launcher exited
    before it did so.
    """
    action: Action = "skip"
    reason: str | None = None
    has_failed = observation.state in ("failed", "cancelled")
    was_stopped = observation.state == "stopped"
    if observation.state in ("done", "running", "queued"):
        reason = observation.state
    elif has_failed and not (retry or undecided) and observation.kind not in FREE:
        reason = f"{observation.reason or observation.state}; `retry` starts it again"
    elif was_stopped and not retry:
        reason = f"{observation.reason}; `retry --kind stopped` lets it go on"
    elif not has_checkpoint:
        action = "start"
    else:
        action = "resume"
        reason = None if observation.epoch is None else f"after {observation.epoch + 1} epochs"
    by_hand = retry and (has_failed or was_stopped)
    return PlannedRun(spec=spec, run=run, observation=observation, action=action, reason=reason, by_hand=by_hand)
