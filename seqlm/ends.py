"""How an attempt of a run ended, told from what its witnesses wrote, and whether a failure is final.

Each witness writes one file in the folder of the attempt, once:

    end.json, end-1.json, ...   a rank, at its end
    exit.json                   the launcher or job that waited for the ranks, if that adds something

Nobody has to be first, since the order of the files does not matter. Whether a failure is final is not stored:
:func:`verdict` says it to everybody from the same facts. Standard library alone.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from seqlm.errors import OWN_SIGNALS
from seqlm.records.attempts import Exit, RankEnd
from seqlm.state import KINDS, FailureKind, is_retried

FIRST_DELAY_SECONDS = 1.0
DELAY_FACTOR = 5.0
"""Factor by which each further retry in a row waits longer: a full disk or a sick node needs time."""
LONGEST_DELAY_SECONDS = 300.0
LONGEST_TEXT = 1000
"""Characters of a text in a record of an end that are used. Workers and launchers write a few hundred."""

Progress: TypeAlias = tuple[int, int]
"""What is saved of a run: finished epochs, then steps of the next one."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended, as far as it has."""

    attempt: int
    kind: FailureKind | None = None
    """``None``: it has not failed."""
    message: str = ""
    where: str | None = None
    """Where in the code it failed, or who found that."""
    outcome: str | None = None
    """What the first rank says: ``done``, ``rung``, ``interrupted`` or ``failed``. ``None``: nothing."""
    has_ended: bool = False
    """Whether the first rank has recorded its end, or somebody its exit."""
    at: str | None = None
    """When the failure was recorded."""
    progress: Progress | None = None
    """What was saved at that time. ``None``: unknown."""
    micro_batches: int = 1
    before_batch: bool = False
    """Whether an allocation failed before the first batch, so that smaller micro-batches change nothing."""
    node: str | None = None
    """The node that failed. ``None``: not recorded, or one of several."""
    memory_mb: int | None = None
    """Memory of each node of its job, if the system killed a run on a GPU for it: smaller micro-batches spare none of
    that. ``None``: it did not, or the memory is not known."""
    stands: bool = False
    """Whether nothing tries it again: its launcher or job has given the run up, or its weights do not fit."""


def end_of(attempt: int, ranks: Iterable[RankEnd], exits: Iterable[Exit]) -> End:
    """Return how an attempt ended, from the records of its ranks and of those who waited for them, in any order.

    A kill by the system, which was out of memory, explains all others. Then comes a rank that diverged or ran out of
    memory, then a lost node or a signal that was not sent from here, then the error that a rank has recorded. A rank
    that aborted may only have lost another one, so it comes after that. Last are a rank that has recorded that it lost
    another one, and what else was seen from outside.
    """
    ends, seen = list(ranks), list(exits)
    first = next((record for record in ends if record.rank == 0), None)
    outcome = None if first is None else first.outcome
    has_ended = first is not None or bool(seen)
    causes: list[tuple[int, RankEnd | Exit]] = [(_weight_of_rank(record), record) for record in ends if record.kind]
    causes += [(_weight_of_exit(record), record) for record in seen if record.kind]
    if not causes:
        return End(attempt=attempt, outcome=_cut(outcome), has_ended=has_ended)
    _, cause = min(causes, key=lambda weighed: (weighed[0], weighed[1].ended_at or ""))
    return End(
        attempt=attempt,
        kind=next((kind for kind in KINDS if kind == cause.kind), "code"),
        message=_cut(cause.message) or "",
        where=_cut(cause.where),
        outcome=_cut(outcome),
        has_ended=has_ended,
        at=_cut(cause.ended_at),
        progress=cause.progress,
        micro_batches=cause.micro_batches or 1,
        before_batch=isinstance(cause, RankEnd) and cause.before_batch is True,
        node=_cut(cause.node),
        stands=cause.stands is True if isinstance(cause, Exit) else cause.before_batch is True,
    )


def _weight_of_rank(record: RankEnd) -> int:
    if record.kind in ("diverged", "oom"):
        return 1
    return 5 if record.peer_lost else 3


def _weight_of_exit(record: Exit) -> int:
    if record.kind == "oom":
        return 0
    if record.exit_code in OWN_SIGNALS:
        return 4
    was_killed = record.exit_code is not None and record.exit_code < 0
    return 2 if was_killed else 6


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:LONGEST_TEXT]


# -- whether a failure is final ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a failed run is tried again."""

    delay: float | None = None
    """Seconds to wait before the next attempt. ``None``: the failure is final."""
    why: str = ""
    """Why the failure is final, to append to its message. Empty: its kind is never retried."""
    sick_nodes: tuple[str, ...] = ()
    """Nodes that failed twice in a row, or on which a worker ended before it began. The next attempt should avoid
    them."""


def verdict(policy: Mapping[str, Any], failures: Sequence[End], *, most_micro_batches: int) -> Verdict:
    """Say whether a run is tried again after the last of its ``failures``, which are those since it was launched.

    Args:
        policy: the retries after failures of each kind, and in a row without progress, as a manifest or a request has
            them. A kind that is missing has the retries of its row in :data:`seqlm.state.KINDS`, since the request may
            be older than the kind. What is damaged allows no retry.
        failures: how its attempts failed, in their order.
        most_micro_batches: the most parts into which the columns of a rank can be cut.
    """
    failed = failures[-1]
    kind = failed.kind
    if kind is None or not is_retried(kind) or failed.stands:
        return Verdict()
    of_kind = _limit(policy.get(kind, KINDS[kind].retries))
    in_a_row_most = _limit(policy.get("max_stalled_retries"))
    used: Counter[FailureKind | None] = Counter(one.kind for one in failures[:-1])
    in_a_row, best = -1, (0, 0)
    for one in failures:
        in_a_row += 1
        if one.progress is not None and one.progress > best:
            in_a_row, best = 0, one.progress
    if used[kind] >= of_kind:
        return _after(round(of_kind), "with ever smaller micro-batches" if kind == "oom" else "of this kind", kind)
    if kind == "oom" and failed.memory_mb is None and 2 * failed.micro_batches > most_micro_batches:
        parts = f"{failed.micro_batches} micro-batch{'' if failed.micro_batches == 1 else 'es'}"
        return Verdict(why=f", with {parts} a step; its ranks have too few columns for smaller ones")
    if in_a_row >= in_a_row_most:
        return _after(in_a_row, "in a row without progress", "max_stalled_retries")
    grown = FIRST_DELAY_SECONDS * DELAY_FACTOR ** min(in_a_row, 10)  # beyond any limit, and far from overflow
    waits = FIRST_DELAY_SECONDS if kind == "oom" else min(grown, LONGEST_DELAY_SECONDS)
    sick = [
        second.node
        for first, second in itertools.pairwise(failures)
        if first.kind == second.kind == "node" and first.node == second.node and second.node is not None
    ]
    sick += [one.node for one in failures if one.kind == "start" and one.node is not None]
    return Verdict(delay=waits, sick_nodes=tuple(dict.fromkeys(sick)))


def _limit(value: object) -> float:
    """Return the number of retries that a value of a policy allows."""
    if value == "unlimited":
        return math.inf
    return value if type(value) is int else 0


def most_micro_batches(batch_size: int, ranks: int) -> int:
    """Return the largest of 1, 2, 4, ... that gives each part of each rank a column."""
    columns = max(1, batch_size // ranks)  # of the rank with the fewest
    return 1 << (columns.bit_length() - 1)


def _after(retries: int, cause: str, key: str) -> Verdict:
    """Return that a failure is final, after these retries. ``key``: the one of the policy that allows no more."""
    if not retries:
        return Verdict(why=f"; not tried again, since policy.{key} is 0")
    return Verdict(why=f", after {retries} {'retry' if retries == 1 else 'retries'} {cause}")
