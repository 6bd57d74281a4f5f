"""The state of a run: one pure function of what its files say, and of what a launcher or a scheduler says.

Every command, launcher, job and report takes the state from :func:`state_of`. The first row of :data:`ROWS` that holds
decides. The table in docs/explanation/failures.md is generated from these rows. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["pending", "queued", "running", "done", "stopped", "failed", "cancelled"]
FailureKind: TypeAlias = Literal["oom", "diverged", "node", "preempted", "timeout", "code", "cancelled"]
Stage: TypeAlias = Literal["none", "queued", "running", "ended", "gone", "unknown"]

FREE: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that the run did not cause. Every launch resumes such a run from its last checkpoint."""

RETRIED: frozenset[FailureKind] = FREE | {"oom"}
"""Failures that may be tried again within the policy."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How the last attempt failed."""

    kind: FailureKind
    message: str
    is_final: bool = True
    """Whether nobody tries the run again by himself, as the policy of its newest request says."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files of a run say."""

    damage: str | None = None
    """Why a file that decides the state cannot be read."""
    is_done: bool = False
    """Whether there is a result for as many epochs as are requested."""
    has_owner: bool = False
    """Whether a worker that may live owns the run, whose attempt has not recorded its end."""
    is_cancelled: bool = False
    """Whether the newest request that names the run cancels it."""
    stopped: str | None = None
    """Why a search stopped the run. ``None``: none did, or a later request lets the run go on."""
    failure: Failure | None = None
    """``None``: the newest attempt has not failed, or it is older than the newest request that names the run."""
    lock_problem: str | None = None
    """Why no worker can start: a process that is no worker holds the lock."""
    has_attempt: bool = False
    has_begun: bool = False
    """Whether an attempt has begun that the newest request is about."""
    epochs: int = 0
    """Finished epochs, as the metrics have them."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a launcher or a scheduler says of a run."""

    stage: Stage = "none"
    """``none``: nothing will start the run. ``ended``: what ran it has ended. ``gone``: the scheduler no longer lists
    its job. ``unknown``: the scheduler does not answer."""
    reason: str = ""
    """Why the run waits, or how its job ended, for a person."""
    kind: FailureKind | None = None
    """Kind of failure of a job that ended, for a run whose files say nothing of it."""

    @property
    def may_run(self) -> bool:
        """Whether the run is running or may still start, as far as is known."""
        return self.stage in ("queued", "running", "unknown")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run."""

    state: State
    reason: str | None = None
    """Why the run is in this state, for a person."""
    kind: FailureKind | None = None
    """Kind of failure. ``None``: the run has not failed."""
    is_final: bool = True
    """Whether nobody tries a failed run again by himself. Of no meaning for other states."""
    waits_for_budget: bool = False
    """Whether the run waits because the budget of its study is spent."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that the state of a run depends on."""

    facts: Facts
    view: View = View()
    spent: Callable[[], str | None] = lambda: None
    """Returns why no run goes on: the budget of the study is spent. Called only if that decides the state."""


@dataclass(frozen=True)
class Row:
    """One row of the table of states."""

    condition: str
    """For the documentation."""
    state: State
    reason: str
    """For the documentation. Empty: the state has no reason."""
    holds: Callable[[Case], object]
    found: Callable[[Case], RunState]


def _failed(kind: FailureKind, message: str, *, is_final: bool = True) -> RunState:
    return RunState(state="failed", reason=f"{kind}: {message}", kind=kind, is_final=is_final)


def _failure(case: Case) -> Failure:
    assert case.facts.failure is not None, "only of runs that failed"
    return case.facts.failure


def _of_failure(case: Case) -> RunState:
    found = _failure(case)
    return _failed(found.kind, found.message, is_final=found.is_final)


def _ended(case: Case) -> RunState:
    """A job that had begun to follow its workers records what goes wrong, unless it is killed or cannot write."""
    kind = case.view.kind or "code"
    kind = "node" if kind == "code" and case.facts.has_begun else kind
    return _failed(kind, case.view.reason, is_final=kind not in RETRIED)


def _cancelled(case: Case) -> RunState:
    if case.facts.is_cancelled:
        return CANCELLED
    return RunState(state="cancelled", reason=_failure(case).message, kind="cancelled")


def _is_tried_again(case: Case) -> bool:
    return case.facts.failure is not None and not case.facts.failure.is_final and case.view.may_run


def _tried_again(case: Case) -> RunState:
    found = _failure(case)
    return RunState(state="queued", reason=f"tried again after {found.kind}: {found.message}")


CANCELLED = RunState(state="cancelled", reason="cancelled by the user", kind="cancelled")


def _interrupted(case: Case) -> RunState:
    epochs = case.facts.epochs
    after = f"after {epochs} epoch{'s' if epochs > 1 else ''}" if epochs else "before the first epoch ended"
    return RunState(state="pending", reason=case.view.reason or f"interrupted {after}; run again to resume")


ROWS = (
    Row(
        "a file that decides cannot be read, or is damaged",
        "failed",
        "the file, with kind `code`",
        lambda case: case.facts.damage,
        lambda case: RunState(state="failed", reason=case.facts.damage, kind="code"),
    ),
    Row(
        "the result covers the requested epochs",
        "done",
        "",
        lambda case: case.facts.is_done,
        lambda case: RunState(state="done"),
    ),
    Row(
        "a worker that may live owns the run, and its attempt has not recorded its end",
        "running",
        "",
        lambda case: case.facts.has_owner,
        lambda case: RunState(state="running", reason=(case.view.stage == "running" and case.view.reason) or None),
    ),
    Row(
        "the newest request that names the run cancels it, or its job has recorded a `scancel`",
        "cancelled",
        "by whom",
        lambda case: case.facts.is_cancelled or (case.facts.failure and case.facts.failure.kind == "cancelled"),
        _cancelled,
    ),
    Row(
        "a search stopped the run",
        "stopped",
        "its place at the rung",
        lambda case: case.facts.stopped,
        lambda case: RunState(state="stopped", reason=case.facts.stopped),
    ),
    Row(
        "its attempt failed, the policy has it tried again, and a launcher or a job is there for that",
        "queued",
        "kind and message",
        _is_tried_again,
        _tried_again,
    ),
    Row("its attempt failed", "failed", "kind and message", lambda case: case.facts.failure, _of_failure),
    Row(
        "a launcher or a job will start the run, or the scheduler does not answer",
        "queued",
        "what it waits for",
        lambda case: case.view.stage in ("queued", "unknown"),
        lambda case: RunState(state="queued", reason=case.facts.lock_problem or case.view.reason or None),
    ),
    Row(
        "its job runs, and its worker has not reported yet",
        "running",
        "",
        lambda case: case.view.stage == "running",
        lambda case: RunState(state="running", reason=case.view.reason or None),
    ),
    Row(
        "its job was cancelled with `scancel`",
        "cancelled",
        "what the scheduler reports",
        lambda case: case.view.kind == "cancelled",
        lambda case: RunState(state="cancelled", reason=case.view.reason, kind="cancelled"),
    ),
    Row(
        "the budget of the study is spent",
        "pending",
        "the budget",
        lambda case: case.spent() is not None,
        lambda case: RunState(state="pending", reason=f"waits: {case.spent()}", waits_for_budget=True),
    ),
    Row(
        "its job ended in another way than well, and wrote nothing",
        "failed",
        "what the scheduler reports; `node` if an attempt had begun",
        lambda case: case.view.kind,
        _ended,
    ),
    Row(
        "a process that is no worker holds its lock",
        "pending",
        "the file that is locked",
        lambda case: case.facts.lock_problem,
        lambda case: RunState(state="pending", reason=case.facts.lock_problem),
    ),
    Row(
        "it has an attempt, or had a job that is no longer listed",
        "pending",
        "after which epoch it was interrupted",
        lambda case: case.facts.has_attempt or case.view.reason,
        _interrupted,
    ),
    Row("none of these", "pending", "", lambda case: True, lambda case: RunState(state="pending")),
)


def state_of(case: Case) -> RunState:
    """Return the state of a run: that of the first row which holds."""
    return next(row for row in ROWS if row.holds(case)).found(case)
