"""What every backend that starts processes itself has in common: a rank's variables, and what its exit says."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Mapping, Sequence

from jobs.backend import Ended
from jobs.spec import Submission
from seqlm import machine
from seqlm.rundir import RunDirectory

PEER_GRACE_SECONDS = 10.0
"""How long the other ranks of a run may take to notice that one has failed before they are ended."""

OWN_WORDS = (74, 75, 143)
"""Exit codes of a worker that say why: its files cannot be written, another worker is at it, it was asked to stop."""


def rank_variables(submission: Submission, rank: int, device: str | None) -> dict[str, str]:
    """The variables of rank ``rank``, which computes on GPU ``device``, or its share of it, or without one.

    Those of the submission go first, apart from what says which rank this is: so a manifest may set ``SEQLM_DEVICE``.
    """
    resources = submission.resources
    return {
        "SEQLM_DEVICE": "cpu" if device is None else "cuda",
        "OMP_NUM_THREADS": str(resources.cpus),
        "MKL_NUM_THREADS": str(resources.cpus),
        **submission.env,
        machine.VISIBLE: device or "",
        **({machine.SHARE_VARIABLE: f"{resources.gpus:g}"} if device is not None else {}),
        "RANK": str(rank),
        "WORLD_SIZE": str(resources.ranks),
        "LOCAL_RANK": "0",
    }


def rendezvous_variables(run: RunDirectory, attempt: int, first_host: str) -> dict[str, str]:
    """The variables with which the ranks of an attempt find each other.

    The first rank listens on a port of ``first_host`` and writes it into the file (``seqlm.training.distributed``).
    """
    meeting = run.attempt_dir(attempt) / "rendezvous"
    return {"SEQLM_RENDEZVOUS": meeting.absolute().as_uri(), "SEQLM_RENDEZVOUS_HOST": first_host}


def ended(codes: Sequence[int], lost: Mapping[int, str] | None = None, out_of_memory: Collection[int] = ()) -> Ended:
    """How a run ended whose ranks ended with ``codes``; ``lost`` says for some of them what became of their host.

    The first of ``lost`` is the one that was lost first. ``out_of_memory`` are the ranks that the system killed because
    it was out of memory: the others only lost those.
    """
    failed = [(code, rank) for rank, code in enumerate(codes) if code]
    if not failed:
        return Ended(exit_code=0, message="ended")
    if out_of_memory:
        rank = min(out_of_memory)
        who = f"rank {rank}" if len(codes) > 1 else "the worker"
        return Ended(exit_code=codes[rank], message=f"{who} {describe_exit(codes[rank])}", out_of_memory=True)
    if lost:  # the first that was lost explains the others
        rank, message = next(iter(lost.items()))
        return Ended(exit_code=codes[rank], message=message)
    code, rank = min(failed, key=_explains)
    who = f"rank {rank}" if len(codes) > 1 else "the worker"
    return Ended(exit_code=code, message=f"{who} {describe_exit(code)}")


def _explains(failed: tuple[int, int]) -> tuple[int, int]:
    """Sorts ranks that failed, as (exit code, rank), by how much they explain.

    First one that a signal killed, then one that had a word of its own for it, such as a full disk: the others, with
    exit code 1, may only have lost that one, and where the disk is full they could not write down so much.
    """
    code, rank = failed
    return (0 if code < 0 else 1 if code in OWN_WORDS else 2, rank)


def describe_exit(code: int) -> str:
    """What an exit code means; a negative one is a signal: ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
