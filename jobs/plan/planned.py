"""Decide what each run needs: start, resume, extend or nothing."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from jobs.plan.estimate import Estimate
from jobs.spec import RunSpec
from seqlm.data.corpus import CorpusFacts
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import KINDS

Action: TypeAlias = Literal["start", "resume", "extend", "skip"]
"""``extend``: the run is done, and this launch requests more epochs."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What will happen to one run."""

    spec: RunSpec
    """The resources of a run that is not skipped are resolved when the launch is prepared (``jobs.launch.prepare``)."""
    run: RunDirectory
    observation: Observation
    action: Action
    reason: str | None
    """Why the run is skipped, after which epoch it resumes, or ``40 -> 60`` for the epochs of a run to extend."""
    facts: CorpusFacts | None = None
    """``None``: its corpus has not been read."""
    estimate: Estimate | None = None
    """``None``: nothing has been estimated, as for a canary."""
    after: RunDirectory | None = None
    """Of a final seed of a search: the run that it follows, which has to be done before it starts. ``None``: none."""

    @property
    def falls_short(self) -> bool:
        """Whether the run is done with fewer epochs than requested, and cannot go on."""
        seen = self.observation
        return seen.state == "done" and self.action == "skip" and 0 < seen.epochs_done < self.spec.config.train.epochs

    @property
    def epochs_done(self) -> int:
        """Finished epochs that the run does not repeat."""
        return self.observation.epochs_done if self.action in ("resume", "extend") else 0

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
    before: int | None = None,
    is_open: bool = False,
) -> PlannedRun:
    """Decide what to do with one run, from its observed state. Pure: nothing is read or written.

    A run that is running or queued is skipped. A run that is done is extended if more epochs are requested, else
    skipped. A run that was stopped is skipped unless ``retry`` is set, or comparisons stopped it and it ``is_open``
    again: they are undecided by now, or of another number of epochs. A run that was cancelled or failed is skipped,
    unless ``retry`` is set, the failure is not final, or it was not the run's own fault. Every other run resumes from
    its checkpoint, or starts if it has none.

    ``before`` is the number of epochs that the latest launch requested; ``None``: there was none. This launch replaces
    it, so a run may also end earlier than planned. A run that has trained more epochs than requested ends where it is.
    """
    epochs, gone = spec.config.train.epochs, observation.epochs_done
    before = epochs if before is None else before
    action: Action = "skip"
    reason: str | None = None
    has_failed = observation.state in ("failed", "cancelled")
    is_free = observation.kind is not None and KINDS[observation.kind].is_free
    was_stopped = observation.state == "stopped"
    ends_here = has_checkpoint and epochs <= gone and epochs < before
    if observation.state in ("running", "queued"):
        reason = observation.state
        if epochs != before:
            reason += f", for {before} epochs; run this again once it has ended, for {epochs}"
    elif observation.state == "done":
        gone = gone or before
        reason = "done"
        if epochs < gone:
            reason += f"; it has trained {gone} epochs, and {epochs} are requested"
        elif epochs > gone and has_checkpoint:
            action, reason = "extend", f"{gone} -> {epochs}"
        elif epochs > gone:
            reason += f" after {gone} epochs; it cannot go on to {epochs}, because its last.pt was deleted"
            reason += f"; move {run.path} away to train it again"
    elif has_failed and observation.is_final and not (retry or ends_here or is_free):
        reason = f"{observation.reason or observation.state}; `retry` starts it again"
    elif was_stopped and not (retry or is_open):
        reason = f"{observation.reason}; `retry --kind stopped` lets it go on"
    elif not has_checkpoint:
        action = "start"
    else:
        action = "resume"
        reason = f"after {gone} epochs" if gone else None
        if ends_here:
            reason = f"after {gone} epochs, and ends there, since {epochs} are requested"
            spec = replace(spec, config=spec.config.with_epochs(max(epochs, gone)))
        elif epochs != before:
            reason = f"{reason or 'in the first epoch'}, for {epochs} epochs instead of {before}"
    return PlannedRun(spec=spec, run=run, observation=observation, action=action, reason=reason)
