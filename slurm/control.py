"""Control a job from inside it: why it ends, when its time is up, and how it gets back into the queue.

A requeued job waits as long as the policy says, and is kept off nodes that failed twice in a row.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import ParamSpec, TypeVar

from jobs.study.squeue import ask
from seqlm.ends import FIRST_DELAY_SECONDS, End, Verdict
from seqlm.errors import BackendError, FileError, is_storage_failure
from seqlm.files import write_text
from slurm.allocation import SlurmContext
from slurm.submission import CHANGES, JobPlan

TRIES = 5
AGAIN_SECONDS = 1.0
"""Time to wait after the first try; it doubles after each further one."""
_USABLE = ("idle", "mix", "alloc", "comp", "plnd")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def look_again(look: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``look`` returns. While a file or SLURM cannot be reached, call it again, for about 15 s.

    On NFS a file that another host has just replaced answers ESTALE for a moment.

    Raises:
        BackendError, FileError, OSError: the error of the last call.
    """
    for number in range(TRIES - 1):
        try:
            return look(*args, **kwargs)
        except (BackendError, FileError, OSError) as error:
            if not (isinstance(error, BackendError) or is_storage_failure(error)):
                raise
            time.sleep(AGAIN_SECONDS * 2**number)
    return look(*args, **kwargs)


def job_words(number: int) -> list[str]:
    """Return SLURM's state flags of one job, such as ``CANCELLED`` and ``COMPLETING``, by its own job number.

    Uses the JSON output, the only one that shows why a job is completing: plain output shows a requeued job as
    ``PENDING``. Empty if SLURM does not answer or is too old for JSON.
    """
    try:
        jobs = json.loads(ask("scontrol", "--json", "show", "job", str(number)))["jobs"]
        (words,) = [job["job_state"] for job in jobs if job["job_id"] == number]
    except (BackendError, ValueError, KeyError, TypeError):
        return []
    return [words] if isinstance(words, str) else list(words)


def clock_ahead_s() -> float:
    """Return the seconds by which the controller's clock is ahead of this machine's; 0 if it does not answer."""
    asked_at = time.time()
    with contextlib.suppress(BackendError, ValueError, IndexError):
        answer = ask("scontrol", "show", "config")
        at = datetime.fromisoformat(answer.removeprefix("Configuration data as of ").split()[0])  # in our time zone
        return at.timestamp() - (asked_at + time.time()) / 2
    return 0.0


# -- back into the queue ---------------------------------------------------------------------------------------------


def ask_back(
    plan: JobPlan, context: SlurmContext, failure: End, verdicts: Sequence[Verdict], raised: Sequence[str]
) -> None:
    """Write what the job's script changes when it puts the job back into the queue, for the exit code ``AGAIN``.

    The script does that on its node, since a container may have no ``scontrol``. The job waits as long as the run with
    the longest delay, and is kept off the nodes that any of its runs found sick. ``verdicts`` are those of the runs to
    try again, and ``failure`` is that of the first. ``raised`` are limits of the job to change, in SLURM's words.
    """
    delay = max(found.delay or 0.0 for found in verdicts)
    exclude = _excluded(plan, context, list(dict.fromkeys(node for found in verdicts for node in found.sick_nodes)))
    print(f"requeued: {failure.kind}: {failure.message}", flush=True)
    changes = list(raised)  # each line is a command of its own, since SLURM may refuse one of them
    if delay > FIRST_DELAY_SECONDS or exclude:  # SLURM itself waits that long
        changes.append(f"StartTime=now+{round(delay)}{' ExcNodeList=' * bool(exclude)}{','.join(exclude)}")
    try:
        write_text(plan.folder / CHANGES.format(context.number), "".join(f"{line}\n" for line in changes))
    except FileError as error:
        print(f"without {'; '.join(changes) or 'changes'}: {error}", flush=True)


def _excluded(plan: JobPlan, context: SlurmContext, sick: list[str]) -> list[str]:
    """Return the nodes that the job must not get again: those of its settings, and the sick ones.

    Empty: exclude no further node, because none is sick or too few others like it are left.
    """
    if not sick:
        return []
    excluded: list[str] = []
    try:
        named = ask("scontrol", "show", "hostnames", plan.exclude).split() if plan.exclude else []
        left = set(_nodes_like(sick, context.partition)) - {*named, *sick}
        if plan.must_have_nodes:
            so = "the settings name the nodes, so it is not excluded"
        elif len(left) < context.nodes:
            so = "it is not excluded, since too few other nodes like it are usable"
        else:
            so, excluded = "the job does not get it again", [*named, *sick]
    except BackendError as error:
        so = f"it is not excluded: {error}"
    print(f"{', '.join(sick)} has failed twice in a row; {so}", flush=True)
    return excluded


def _nodes_like(nodes: Collection[str], partition: str) -> list[str]:
    """Return the usable nodes of a partition that have the cores, memory, GPUs and features of one of ``nodes``."""
    lines = ask("sinfo", "-N", "-h", "-p", partition, "-o", "%N|%t|%c|%m|%G|%f").splitlines()
    rows = [parts for line in lines if len(parts := line.strip().split("|", 2)) == 3]
    wanted = {hardware for name, _, hardware in rows if name in nodes}
    return [name for name, state, hardware in rows if hardware in wanted and state.rstrip("~#-+") in _USABLE]
