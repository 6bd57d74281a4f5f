"""The state of a run: one pure function of what its files say, and of what a launcher or a scheduler says.

Every command, launcher, job and report takes the state from :func:`state_of`. The first of its :func:`rows` that holds
decides. The table in docs/explanation/failures.md is generated from these rows. Standard library alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

State: TypeAlias = Literal["pending", "queued", "running", "done", "stopped", "failed", "cancelled"]
FailureKind: TypeAlias = Literal["oom", "diverged", "node", "preempted", "timeout", "code", "cancelled"]
Stage: TypeAlias = Literal["none", "queued", "running", "ended", "gone", "unknown"]

FREE: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that the run did not cause. Every launch resumes such a run from its last checkpoint."""

RETRIED: frozenset[FailureKind] = FREE | {"oom"}
"""Failures that may be tried again within the policy."""


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    state: State
    reason: str | None = None
    """Why the run is in this state, for a person."""
    kind: FailureKind | None = None
    """Kind of failure. ``None``: the run has not failed."""
    is_final: bool = True
    """Whether nobody tries a failed run again by himself. Of no meaning for other states."""


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
    failure: RunState | None = None
    """That the newest attempt failed, or its job was cancelled. ``None``: neither, or the attempt is older than the
    newest request that names the run."""
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


class Row(NamedTuple):
    """One row of the table of states. The first two fields are for the documentation."""

    condition: str
    meaning: str
    """What the reason says. Empty: the state has no reason."""
    holds: object
    found: RunState
    """The state, if it holds."""


def rows(facts: Facts, view: View, spent: Callable[[], str | None]) -> Iterator[Row]:
    """Yield the rows of the table of states, as they are for one run, in the order in which they decide."""
    failure, has_failed = facts.failure or RunState("failed"), facts.failure is not None
    running = RunState("running", (view.stage == "running" and view.reason) or None)
    yield Row(
        "a file that decides cannot be read, or is damaged",
        "the file, with kind `code`",
        facts.damage,
        RunState("failed", facts.damage, "code"),
    )
    yield Row("the result covers the requested epochs", "", facts.is_done, RunState("done"))
    yield Row(
        "a worker that may live owns the run, and its attempt has not recorded its end", "", facts.has_owner, running
    )
    yield Row(
        "the newest request that names the run cancels it, or its job has recorded a `scancel`",
        "by whom",
        facts.is_cancelled or failure.state == "cancelled",
        RunState("cancelled", "cancelled by the user" if facts.is_cancelled else failure.reason, "cancelled"),
    )
    yield Row("a search stopped the run", "its place at the rung", facts.stopped, RunState("stopped", facts.stopped))
    yield Row(
        "its attempt failed, the policy has it tried again, and a launcher or a job is there for that",
        "kind and message",
        has_failed and not failure.is_final and view.may_run,
        RunState("queued", f"tried again after {failure.reason}"),
    )
    yield Row("its attempt failed", "kind and message", has_failed, failure)
    yield Row(
        "a launcher or a job will start the run, or the scheduler does not answer",
        "what it waits for",
        view.stage in ("queued", "unknown"),
        RunState("queued", view.reason or None),
    )
    yield Row("its job runs, and its worker has not reported yet", "", view.stage == "running", running)
    yield Row(
        "its job was cancelled with `scancel`",
        "what the scheduler reports",
        view.kind == "cancelled",
        RunState("cancelled", view.reason, "cancelled"),
    )
    budget = spent()
    waiting = RunState("pending", f"waits: {budget}")
    yield Row("the budget of the study is spent", "the budget", budget is not None, waiting)
    # A job that had begun to follow its workers records what goes wrong, unless it is killed or cannot write.
    kind = "node" if facts.has_begun and view.kind == "code" else view.kind or "code"
    yield Row(
        "its job ended in another way than well, and wrote nothing",
        "what the scheduler reports; `node` if an attempt had begun",
        view.kind,
        RunState("failed", f"{kind}: {view.reason}", kind, is_final=kind not in RETRIED),
    )
    epochs = f"{facts.epochs} epoch{'s' if facts.epochs > 1 else ''}"
    after = f"after {epochs}" if facts.epochs else "before the first epoch ended"
    yield Row(
        "it has an attempt, or had a job that is no longer listed",
        "after which epoch it was interrupted",
        facts.has_attempt or view.reason,
        RunState("pending", view.reason or f"interrupted {after}; run again to resume"),
    )
    yield Row("none of these", "", True, RunState("pending"))


def state_of(facts: Facts, view: View = View(), spent: Callable[[], str | None] = lambda: None) -> RunState:
    """Return the state of a run: that of the first row which holds.

    ``spent`` returns why no run of the study goes on: its budget is spent. It is called only if that may decide.
    """
    return next(row.found for row in rows(facts, view, spent) if row.holds)
