"""Decide what each run needs: start, resume or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobs.attempt.retry import (
    FREE,
)
from jobs.spec import RunSpec
from seqlm.rundir import Observation, RunDirectory

Action: TypeAlias = Literal["start", "resume", "skip"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will happen to one run."""

    spec: RunSpec
    run: RunDirectory
    observation: Observation
    action: Action
    reason: str | None
    """Why the run is skipped, or after which epoch it resumes."""
    by_hand: bool = False
    """Whether a user retries a run that failed or was cancelled."""


def plan(
    spec: RunSpec,
    run: RunDirectory,
    observation: Observation,
    *,
    has_checkpoint: bool,
    retry: bool,
    undecided: bool = False,
) -> Planned:
    """Decide what to do with one run, from its observed state. Pure: nothing is read or written.

    A run that is done, running or queued is skipped. A run that was cancelled or failed is skipped, unless ``retry`` or
    ``undecided`` is set or the failure was not the run's own fault (``FREE``). Every other run resumes from its
    checkpoint, or starts if it has none. ``undecided`` means that the failure may be retried but the launcher exited
    before it did so.
    """
    action: Action = "skip"
    reason: str | None = None
    has_failed = observation.state in ("failed", "cancelled")
    match observation.state:
        case "done" | "running" | "queued":
            reason = observation.state
        case "failed" | "cancelled" if not (retry or undecided) and observation.kind not in FREE:
            reason = f"{observation.reason or observation.state}; `retry` starts it again"
        case _:
            action = "resume" if has_checkpoint else "start"
            reason = (
                f"after {observation.epoch + 1} epochs" if has_checkpoint and observation.epoch is not None else None
            )
    by_hand = retry and has_failed
    return Planned(spec=spec, run=run, observation=observation, action=action, reason=reason, by_hand=by_hand)
