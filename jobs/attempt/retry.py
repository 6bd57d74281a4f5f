"""When a run that failed is tried again by itself, and how long its launcher waits before.

Counted over the whole life of a run, apart by kind, from what each attempt has left in its folder: a new launcher, or
the next job of a cluster, counts on. A person who has a run tried again (``retry``) has decided: what has failed so far
in that way does not count any more.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, final

from jobs.manifests.policy import Policy
from seqlm.data.layout import own_columns
from seqlm.errors import FileError
from seqlm.rundir import FailureKind, Observation, RunDirectory, make_directory, read_json, write_json

FREE: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that are not the run's own fault: the same command goes on from the last checkpoint, in any launch."""

RETRIED: frozenset[FailureKind] = FREE | {"oom"}
"""Failures that a launcher may try again by itself, as the policy says."""

FIRST_DELAY_SECONDS = 1.0
DELAY_FACTOR = 5.0
"""Each further retry in a row waits so many times as long: a full disk or a sick node is not hammered."""
LONGEST_DELAY_SECONDS = 300.0

Progress: TypeAlias = tuple[int, int]
"""How far a run has come and is saved: finished epochs, then steps of the next one."""


@final
@dataclass(frozen=True, kw_only=True)
class Failed:
    """An attempt that has failed."""

    kind: FailureKind | None
    progress: Progress | None = None
    """What was saved by then; none where that is not known."""
    micro_batches: int = 1
    by_hand: bool = False
    """Whether a person has had the run tried again after it."""
    node: str | None = None
    """The node that failed. ``None``: not recorded, or one of several."""


@final
@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a run that has failed."""

    delay: float | None = None
    """Seconds to wait before the next attempt; none: the failure stands."""
    why: str = ""
    """Why it stands, to be put behind the failure's message; empty where its kind is never retried."""


def decide(policy: Policy, before: Sequence[Failed], failed: Failed, *, most_micro_batches: int) -> Decision:
    """Whether a run that has now ``failed``, after the failures ``before``, is tried again.

    ``most_micro_batches``: into so many parts the columns of its ranks can be cut.
    """
    kind = failed.kind
    if kind not in RETRIED:
        return Decision()
    used: Counter[FailureKind | None] = Counter()
    in_a_row, best = 0, (0, 0)
    for attempt in (*before, failed):
        if attempt.progress is not None and attempt.progress > best:
            in_a_row, best = 0, attempt.progress
        if attempt is failed:
            break
        used[attempt.kind] += 1
        in_a_row += 1
        if attempt.by_hand:
            in_a_row = used[attempt.kind] = 0
    limit = policy.retries(kind)
    if limit is not None and used[kind] >= limit:
        return Decision(why=_limit_reached(kind, limit))
    if kind == "oom" and 2 * failed.micro_batches > most_micro_batches:
        parts = _number(failed.micro_batches, "micro-batch", "micro-batches")
        return Decision(why=f", with {parts} a step; its ranks have too few columns for smaller ones")
    if in_a_row >= policy.without_progress:
        tries = _number(in_a_row, "retry", "retries")
        return Decision(why=f", after {tries} in a row without progress" if in_a_row else _never("without_progress"))
    grown = FIRST_DELAY_SECONDS * DELAY_FACTOR ** min(in_a_row, 10)  # beyond any limit, and far from overflow
    waits = FIRST_DELAY_SECONDS if kind == "oom" else min(grown, LONGEST_DELAY_SECONDS)
    return Decision(delay=waits)


def _limit_reached(kind: FailureKind | None, limit: int) -> str:
    if not limit:
        return _never(str(kind))
    tries = _number(limit, "retry", "retries")
    if kind == "oom":
        return f", after {tries} with ever smaller micro-batches"
    return f", after {tries} of this kind"


def _never(key: str) -> str:
    return f"; not tried again, since policy.{key} is 0"


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def sick_nodes(failures: Sequence[Failed]) -> list[str]:
    """The nodes that failed twice in a row, since a person last had the run tried again."""
    by_hand = [number for number, failed in enumerate(failures) if failed.by_hand]
    recent = failures[by_hand[-1] + 1 :] if by_hand else failures
    found = [
        second.node
        for first, second in itertools.pairwise(recent)
        if first.kind == second.kind == "node" and first.node == second.node and second.node is not None
    ]
    return list(dict.fromkeys(found))


# -- what the files of a run tell ----------------------------------------------------------------------------------


def progress_of(run: RunDirectory) -> Progress:
    """What is saved of a run: its epochs, and what its last checkpoint says that it holds."""
    epochs, _ = run.read_metrics()
    saved = (epochs[-1]["epoch"] + 1, 0) if epochs else (0, 0)
    with contextlib.suppress(FileError):
        position = read_json(run.position_file) or {}
        epoch, step = position.get("epoch"), position.get("step")
        if isinstance(epoch, int) and isinstance(step, int):
            return max(saved, (epoch, step))
    return saved


def history(run: RunDirectory) -> list[Failed]:
    """The failures of a run's attempts, in order, without one that has not been put aside yet.

    An attempt that was stopped, or killed together with its launcher, is none.
    """
    found = []
    for attempt in run.attempts():
        record: dict[str, Any] = {}
        with contextlib.suppress(FileError):  # a damaged record counts for nothing, as one that was lost
            record = read_json(run.attempt_dir(attempt) / "failure.json") or {}
        if record:
            found.append(failed_of(record))
    return found


def failed_of(record: dict[str, Any], progress: Progress | None = None) -> Failed:
    """A failure from its record, with the ``progress`` that it was made at where the record does not say."""
    told = record.get("progress")
    if isinstance(told, list) and len(told) == 2 and all(isinstance(number, int) for number in told):
        progress = (told[0], told[1])
    parts = record.get("micro_batches")
    return Failed(
        kind=record.get("kind"),
        progress=progress,
        micro_batches=parts if isinstance(parts, int) and parts > 0 else 1,
        by_hand=record.get("retried") == "by hand",
        node=record.get("node"),
    )


def may_go_on(run: RunDirectory) -> bool:
    """Whether the failure that a run has left is one that nobody has decided about yet: its launcher was gone."""
    failure = None
    with contextlib.suppress(FileError):
        failure = run.read_failure()
    return failure is not None and failure.get("kind") in RETRIED and not failure.get("stands")


def let_stand(run: RunDirectory, decision: Decision) -> None:
    """Say in a run's failure why it is not tried again."""
    failure = run.read_failure() or {}
    if failure.get("kind") in RETRIED:
        write_json(run.failure_file, {**failure, "message": f"{failure.get('message')}{decision.why}", "stands": True})


def put_failure_aside(
    run: RunDirectory,
    *,
    by_hand: bool = False,
    micro_batches: int | None = None,
    node: str | None = None,
    seen: Observation | None = None,
) -> None:
    """Move the failure of the attempt before into that attempt's folder: it stays on record, with what was saved.

    ``by_hand``: a person has the run tried again. ``micro_batches``: of the attempt, where its worker could not say.
    ``node``: the one that failed, for a scheduler. ``seen``: how the run was found, for a failure that only its
    scheduler knows of.

    Raises:
        FileError: it cannot be read or moved.
    """
    folder = run.attempt_dir(max(1, run.last_attempt()))
    failure = run.read_failure()
    if failure is None and seen is not None and seen.state == "failed" and run.attempts():
        failure = {"kind": seen.kind, "message": seen.reason, "failed_at": timestamp()}
    if failure is None:
        return
    failure = {"progress": list(progress_of(run)), **failure}
    if micro_batches is not None:
        failure["micro_batches"] = micro_batches
    if node is not None:
        failure["node"] = node
    if by_hand:
        failure["retried"] = "by hand"
    if isinstance(failure.get("attempt"), int):  # the next one may have its folder already
        folder = run.attempt_dir(failure["attempt"])
    make_directory(folder)
    write_json(folder / "failure.json", failure)
    _remove(run.failure_file)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError.from_os_error("remove", path, error) from None


def timestamp() -> str:
    """The time, as records tell it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


VARIABLE = "SEQLM_MICRO_BATCHES"
"""How a worker is told."""


def most_micro_batches(batch_size: int, ranks: int) -> int:
    """The largest of 1, 2, 4, ... that gives each part of each rank a column."""
    columns = len(own_columns(batch_size, ranks - 1, ranks))  # the last rank has the fewest
    return 1 << (columns.bit_length() - 1)


def micro_batches(run: RunDirectory, batch_size: int, ranks: int) -> int:
    """The number for the next attempt: twice as many after each that was short of memory, else what it was.

    So a run that needed four keeps them for the rest of its life, whoever launches it. A canary has the number of the
    run that it stands for, and the job of a model's behaviour, which takes no steps, one.
    """
    if run.task_file.exists():
        return 1
    if run.is_canary:
        run = RunDirectory(run.path.parents[1] / run.id)
    failures = history(run)
    if (last := run.read_failure()) is not None:  # of a run that is about to be launched again
        failures.append(failed_of(last))
    return min(after(failures), most_micro_batches(batch_size, ranks))


def after(failures: list[Failed]) -> int:
    """The number that follows from a run's failures, in order."""
    number = 1
    for failed in failures:
        if failed.kind == "oom":
            number = 2 * failed.micro_batches
    return number
