"""Try again: files that cannot be read for a moment, and a whole job, by putting it back into the queue.

A requeued job waits as long as the policy says, and is kept off nodes that failed twice in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from jobs.attempt.retry import FIRST_DELAY_SECONDS
from seqlm.errors import BackendError, FileError, is_storage_failure
from slurm import control
from slurm.job import JobPlan, SlurmContext

TRIES = 5
AGAIN_SECONDS = 1.0
"""Time to wait after the first try; it doubles after each further one."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


def look_again(look: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``look`` returns. While files cannot be read or written, call it again, for about 15 s.

    On NFS a file that another host has just replaced answers ESTALE for a moment.

    Raises:
        FileError, OSError: the error of the last call.
    """
    for number in range(TRIES - 1):
        try:
            return look(*args, **kwargs)
        except (FileError, OSError) as error:
            if not is_storage_failure(error):
                raise
            time.sleep(AGAIN_SECONDS * 2**number)
    return look(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Again:
    """One run's reason to run its job again."""

    reason: str
    delay: float
    """Seconds to wait before."""
    sick: tuple[str, ...]
    """Nodes that failed twice in a row."""


def requeue(plan: JobPlan, context: SlurmContext, again: Sequence[Again]) -> str | None:
    """Put the job back into the queue.

    It waits as long as the run with the longest delay, and is kept off the nodes that any of its runs found sick.

    Returns:
        ``None`` if the job is in the queue, else why SLURM refused it.
    """
    delay = max(found.delay for found in again)
    exclude = _excluded(plan, context, list(dict.fromkeys(node for found in again for node in found.sick)))
    problem = ""
    for number in range(TRIES):
        try:
            control.requeue(context.job)
        except BackendError as error:
            problem = str(error)
            time.sleep(AGAIN_SECONDS * 2**number)
            continue
        print(f"requeued: {again[0].reason}", flush=True)
        if delay > FIRST_DELAY_SECONDS or exclude:  # SLURM itself waits that long
            try:
                control.hold_back(context.job, delay, exclude)
            except BackendError as error:
                print(f"without the wait of {delay:g} s, and without excluding a node: {error}", flush=True)
        return None
    return problem


def _excluded(plan: JobPlan, context: SlurmContext, sick: list[str]) -> list[str]:
    """Return the nodes that the job must not get again: those of its settings, and the sick ones.

    Empty: exclude no further node, because none is sick or too few others like it are left.
    """
    if not sick:
        return []
    found = f"{', '.join(sick)} has failed twice in a row"
    if plan.must_have_nodes:
        print(f"{found}; the settings name the nodes, so it is not excluded", flush=True)
        return []
    try:
        excluded = [*(control.host_names(plan.exclude) if plan.exclude else []), *sick]
        left = set(control.nodes_like(sick, context.partition)) - set(excluded)
    except BackendError as error:
        print(f"{found}; it is not excluded: {error}", flush=True)
        return []
    if len(left) < context.nodes:
        print(f"{found}; it is not excluded, since too few other nodes like it are usable", flush=True)
        return []
    print(f"{found}; the job does not get it again", flush=True)
    return excluded
