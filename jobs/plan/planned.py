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
    """Why it is skipped, or from where it resumes."""
    by_hand: bool = False
    """Whether a person has a run tried again that has failed or was cancelled."""


def plan(
    spec: RunSpec,
    run: RunDirectory,
    observation: Observation,
    *,
    has_checkpoint: bool,
    retry: bool,
    undecided: bool = False,
) -> Planned:
    """Decide about one run from what its files say. Pure: nothing is read or written.

    A run that is done, running or queued is skipped; one that failed by its own fault or was cancelled is skipped
    unless ``retry``; every other goes on from its checkpoint, or starts. ``undecided``: it has failed in a way that may
    be tried again, and its launcher was gone before it could.
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
