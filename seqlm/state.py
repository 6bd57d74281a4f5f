"""The state of a run: one pure function of what its files say, and of what a launcher or a scheduler says.

Every command, launcher, job and report takes the state from :func:`state_of`. The first of its :func:`rows` that holds
decides. The table in docs/explanation/failures.md is generated from these rows. Standard library alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["pending", "queued", "running", "done", "stopped", "failed", "cancelled"]
FailureKind: TypeAlias = Literal["oom", "diverged", "node", "preempted", "timeout", "start", "code", "cancelled"]
Stage: TypeAlias = Literal["none", "queued", "running", "ended", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What follows from a kind of failure."""

    retries: int | Literal["unlimited"] = 0
    """How often a launch tries such a run again if its policy does not say. 0: never, whatever the policy says."""
    is_free: bool = False
    """Whether the run did not cause it. Every launch resumes such a run from its last checkpoint."""
    advice: str | None = None
    """What a person can do once the failure is final. ``None``: `run` goes on from its last checkpoint."""


KINDS: dict[FailureKind, Kind] = {
    "oom": Kind(retries=3, advice="more ranks, a GPU with more memory, or more mem_gb; then `retry`"),
    "diverged": Kind(advice="lower optim.lr, which makes it another run; `retry` ends the same"),
    "node": Kind(retries="unlimited", is_free=True),
    "preempted": Kind(retries="unlimited", is_free=True),
    "timeout": Kind(retries=20, is_free=True),
    "start": Kind(retries=2, advice="see its log: its worker ended before it began; then `retry`"),
    "code": Kind(advice="correct what its log says, then `retry`"),
    "cancelled": Kind(advice="`retry` goes on from its last checkpoint"),
}
"""Every kind of failure. A new one is a row here, and a key of ``[policy]`` if a manifest may set its retries."""


def is_retried(kind: FailureKind | None) -> bool:
    """Return whether a failure of this kind may be tried again within the policy. ``None``: it has none."""
    return kind is not None and KINDS[kind].retries != 0


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
    """Why a search or a comparison stopped the run, or why a search does not train it.

    ``None``: none did, or a later request lets the run go on.
    """
    failure: RunState | None = None
    """That the newest attempt failed, or its job was cancelled. ``None``: neither, or the attempt is older than the
    newest request that names the run."""
    before: str | None = None
    """Kind and message of the failure before the newest attempt, if that has recorded no end. ``None``: there is none
    since the newest request that names the run."""
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


def rows(facts: Facts, view: View, spent: Callable[[], str | None]) -> Iterator[tuple[object, RunState]]:
    """Yield the rows of the table of states, in the order in which they decide: whether one holds, and the state then.

    The comment above each ``yield`` has the condition, and after "->" what the reason says, for the documentation.
    """
    failure, has_failed = facts.failure or RunState("failed"), facts.failure is not None
    running = RunState("running", (view.stage == "running" and view.reason) or None)
    #: a file that decides cannot be read, or is damaged -> the file, with kind `code`
    yield facts.damage, RunState("failed", facts.damage, "code")
    #: the result covers the requested epochs
    yield facts.is_done, RunState("done")
    #: a worker that may live owns the run, and its attempt has not recorded its end
    yield facts.has_owner, running
    cancelled = RunState("cancelled", "cancelled by the user" if facts.is_cancelled else failure.reason, "cancelled")
    #: the newest request that names the run cancels it, or its job has recorded a `scancel` -> by whom
    yield facts.is_cancelled or failure.state == "cancelled", cancelled
    #: a search or comparison stopped the run, or it is a final seed of a setting that stopped -> its place at the rung,
    #: the verdict, or the run that it follows
    yield facts.stopped, RunState("stopped", facts.stopped)
    why_again = f"tried again after {failure.reason if has_failed else facts.before}"
    waits = f"{why_again}; {view.reason}" if view.reason else why_again
    #: its attempt failed, the policy allows a retry, and a launcher or a job can start it -> kind and message, and what
    #: it waits for
    yield has_failed and not failure.is_final and view.may_run, RunState("queued", waits)
    #: its attempt failed -> kind and message
    yield has_failed, failure
    #: a launcher or a job will start the run, or the scheduler does not answer -> what it waits for, and how the
    #: attempt before failed
    yield view.stage in ("queued", "unknown"), RunState("queued", waits if facts.before else view.reason or None)
    #: its job runs, and its worker has not reported yet
    yield view.stage == "running", running
    #: its job was cancelled with `scancel` -> what the scheduler reports
    yield view.kind == "cancelled", RunState("cancelled", view.reason, "cancelled")
    budget = spent()
    #: the budget of the study is spent -> the budget
    yield budget is not None, RunState("pending", f"waits: {budget}")
    # A job that had begun to follow its workers records what goes wrong, unless it is killed or cannot write.
    kind = "node" if facts.has_begun and view.kind == "code" else view.kind or "code"
    ended = RunState("failed", f"{kind}: {view.reason}", kind, is_final=not is_retried(kind))
    #: its job failed and wrote nothing -> what the scheduler reports; `node` if an attempt had begun
    yield view.kind, ended
    epochs = f"{facts.epochs} epoch{'s' if facts.epochs > 1 else ''}"
    after = f"after {epochs}" if facts.epochs else "before the first epoch ended"
    before = f" (the attempt before failed: {facts.before})" if facts.before else ""
    interrupted = RunState("pending", view.reason or f"interrupted {after}{before}; run again to resume")
    #: it has an attempt, or had a job that is no longer listed -> after which epoch it was interrupted, and how the
    #: attempt before failed
    yield facts.has_attempt or view.reason, interrupted
    #: none of these
    yield True, RunState("pending")


def state_of(facts: Facts, view: View = View(), spent: Callable[[], str | None] = lambda: None) -> RunState:
    """Return the state of a run: that of the first row which holds.

    ``spent`` returns why no run of the study goes on: its budget is spent. It is called only if that may decide.
    """
    return next(found for holds, found in rows(facts, view, spent) if holds)
