"""Decide whether a failed run is tried again, and after how long.

Failures are counted by kind over the whole life of a run, from the records in the folders of its attempts. The command
``retry`` resets the count for the kind of the last failure.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias, final

from jobs.manifests.policy import Policy
from seqlm.data.layout import own_columns
from seqlm.errors import DamagedFileError, FileError, UnfitFileError
from seqlm.files import make_directory, read_json, write_json
from seqlm.lease import last_beat
from seqlm.reading import exists
from seqlm.rundir import Observation, RunDirectory
from seqlm.search import epochs_finished, let_go_on
from seqlm.state import FailureKind

FREE: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that the run did not cause. Every launch resumes such a run from its last checkpoint."""

RETRIED: frozenset[FailureKind] = FREE | {"oom"}
"""Failures that a launcher may try again within the policy."""

FIRST_DELAY_SECONDS = 1.0
DELAY_FACTOR = 5.0
"""Factor by which each further retry in a row waits longer: a full disk or a sick node needs time."""
LONGEST_DELAY_SECONDS = 300.0

Progress: TypeAlias = tuple[int, int]
"""What is saved of a run: finished epochs, then steps of the next one."""


@final
@dataclass(frozen=True, kw_only=True)
class Failed:
    """An attempt that has failed."""

    kind: FailureKind | None
    progress: Progress | None = None
    """What was saved at that time. ``None``: unknown."""
    micro_batches: int = 1
    by_hand: bool = False
    """Whether the command ``retry`` was used after it."""
    node: str | None = None
    """The node that failed. ``None``: not recorded, or one of several."""


@final
@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a failed run is tried again."""

    delay: float | None = None
    """Seconds to wait before the next attempt. ``None``: the failure is final."""
    why: str = ""
    """Why the failure is final, to append to its message. Empty: its kind is never retried."""
    sick_nodes: tuple[str, ...] = ()
    """Nodes that failed twice in a row, which the next attempt should avoid."""


def decide(policy: Policy, before: Sequence[Failed], failed: Failed, *, most_micro_batches: int) -> Decision:
    """Decide whether a run that has now ``failed``, after the failures ``before``, is tried again.

    ``most_micro_batches``: the most parts into which the columns of a rank can be cut.
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
        cause = "with ever smaller micro-batches" if kind == "oom" else "of this kind"
        return _after(limit, cause, str(kind))
    if kind == "oom" and 2 * failed.micro_batches > most_micro_batches:
        parts = f"{failed.micro_batches} micro-batch{'' if failed.micro_batches == 1 else 'es'}"
        return Decision(why=f", with {parts} a step; its ranks have too few columns for smaller ones")
    if in_a_row >= policy.max_stalled_retries:
        return _after(in_a_row, "in a row without progress", "max_stalled_retries")
    grown = FIRST_DELAY_SECONDS * DELAY_FACTOR ** min(in_a_row, 10)  # beyond any limit, and far from overflow
    waits = FIRST_DELAY_SECONDS if kind == "oom" else min(grown, LONGEST_DELAY_SECONDS)
    return Decision(delay=waits, sick_nodes=_sick_nodes([*before, failed]))


def _after(retries: int, cause: str, key: str) -> Decision:
    """Return that a failure is final, after these retries. ``key``: the one of the policy that allows no more."""
    if not retries:
        return Decision(why=f"; not tried again, since policy.{key} is 0")
    return Decision(why=f", after {retries} {'retry' if retries == 1 else 'retries'} {cause}")


def _sick_nodes(failures: Sequence[Failed]) -> tuple[str, ...]:
    """Return the nodes that failed twice in a row since the last use of the command ``retry``."""
    found: dict[str, None] = {}
    for first, second in itertools.pairwise(failures):
        if first.by_hand:
            found.clear()
        elif first.kind == second.kind == "node" and first.node == second.node and second.node is not None:
            found[second.node] = None
    return tuple(found)


# -- the files of a run --------------------------------------------------------------------------------------------


def progress_of(run: RunDirectory) -> Progress:
    """Return what is saved of a run, from its metrics and the position of its last checkpoint."""
    saved = (epochs_finished(run), 0)
    with contextlib.suppress(FileError):
        match read_json(run.position_file):
            case {"epoch": int(epoch), "step": int(step)}:
                return max(saved, (epoch, step))
    return saved


def history(run: RunDirectory) -> list[Failed]:
    """Return the failures of a run's attempts, in order, without one that has not been put aside yet.

    An attempt that was stopped, or killed together with its launcher, is no failure.

    Raises:
        FileError: a file cannot be read.
    """
    found = []
    for attempt in run.attempts():
        with contextlib.suppress(DamagedFileError, UnfitFileError):  # it does not count
            if record := read_json(run.attempt_dir(attempt) / "failure.json"):
                found.append(failed_of(record))
    return found


def failed_of(record: Mapping[str, Any], progress: Progress | None = None) -> Failed:
    """Return a failure from its record. ``progress``: used if the record holds none."""
    match record.get("progress"):
        case [int(epochs), int(steps)]:
            progress = (epochs, steps)
    parts = record.get("micro_batches")
    return Failed(
        kind=record.get("kind"),
        progress=progress,
        micro_batches=parts if isinstance(parts, int) and parts > 0 else 1,
        by_hand=record.get("retried") == "by hand",
        node=record.get("node"),
    )


def may_go_on(run: RunDirectory) -> bool:
    """Return whether a run's failure may be retried and no launcher has decided about it, since it was gone."""
    with contextlib.suppress(FileError):
        failure = run.read_failure() or {}
        return failure.get("kind") in RETRIED and not failure.get("stands")
    return False


def let_stand(run: RunDirectory, decision: Decision) -> None:
    """Record in a run's failure why it is final."""
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
    """Put the failure of the previous attempt, if there is one, into that attempt's folder; add what was saved by then.

    ``by_hand``: the command ``retry`` does this, and a run that a search stopped goes on. ``micro_batches`` and
    ``node`` override the record. ``seen`` is the run's state, for a failure that only its scheduler knows.

    Raises:
        FileError: it cannot be read or moved.
    """
    if by_hand:
        let_go_on(run)
    failure = run.read_failure()
    if failure is None and seen is not None and seen.state == "failed":
        failure = _known_to_scheduler(run, seen)
    if failure is None:
        return
    known = {"micro_batches": micro_batches, "node": node, "retried": "by hand" if by_hand else None}
    added = {name: value for name, value in known.items() if value is not None}
    attempt = failure.get("attempt")  # the next attempt may have its folder already
    path = run.attempt_dir(attempt if isinstance(attempt, int) else max(1, run.last_attempt())) / "failure.json"
    if isinstance(attempt, int) or not exists(path):  # a cancellation while the run waits is no attempt's failure
        make_directory(path.parent)
        write_json(path, {"progress": list(progress_of(run)), **failure, **added})
    try:
        run.failure_file.unlink(missing_ok=True)
    except OSError as error:
        raise FileError.from_os_error("remove", run.failure_file, error) from None


def _known_to_scheduler(run: RunDirectory, seen: Observation) -> dict[str, Any] | None:
    """Return the record of the last attempt, which was killed with its whole job, maybe days ago.

    It failed when its lease was last renewed. ``None``: there is no attempt, or it has a record.
    """
    attempt = run.last_attempt()
    if not attempt or exists(run.attempt_dir(attempt) / "failure.json"):
        return None
    beat, worker = last_beat(run.lease_dir, attempt), None
    with contextlib.suppress(FileError):
        worker = read_json(run.worker_file(attempt))
    known = {
        "failed_at": None if beat is None else timestamp(beat),
        "micro_batches": (worker or {}).get("micro_batches"),
    }
    added = {name: value for name, value in known.items() if value is not None}
    return {"kind": seen.kind, "message": seen.reason, "attempt": attempt, **added}


def timestamp(seconds: float | None = None) -> str:
    """Return a time, in seconds since 1970, in the format of the records. ``None``: the current time."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat(timespec="seconds")


def most_micro_batches(batch_size: int, ranks: int) -> int:
    """Return the largest of 1, 2, 4, ... that gives each part of each rank a column."""
    columns = len(own_columns(batch_size, ranks - 1, ranks))  # the last rank has the fewest
    return 1 << (columns.bit_length() - 1)


def micro_batches(run: RunDirectory, batch_size: int, ranks: int) -> int:
    """Return the number for the next attempt. It doubles after each attempt that ran out of memory.

    A run that needed four keeps them for the rest of its life, in every launch. A canary gets the number of its run. A
    behaviour job takes no steps and gets one.
    """
    if exists(run.task_file):
        return 1
    if run.is_canary:
        run = RunDirectory(run.path.parents[1] / run.id)
    failures = history(run)
    if (last := run.read_failure()) is not None:  # of a run that is about to be launched again
        failures.append(failed_of(last))
    return min(after(failures), most_micro_batches(batch_size, ranks))


def after(failures: list[Failed]) -> int:
    """Return the number of micro-batches after a run's failures, given in order."""
    return next((2 * failed.micro_batches for failed in reversed(failures) if failed.kind == "oom"), 1)
