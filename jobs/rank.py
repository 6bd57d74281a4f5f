"""What every backend that starts processes itself has in common: a rank's variables, and what its exit says."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence

from jobs.backend import Ended
from jobs.spec import Submission

PEER_GRACE_SECONDS = 10.0
"""How long the other ranks of a run may take to notice that one has failed before they are ended."""


def rank_variables(submission: Submission, rank: int, device: str | None) -> dict[str, str]:
    """The variables of rank ``rank``, which computes on GPU ``device`` or without one.

    Those of the submission go first, apart from what says which rank this is: so a manifest may set ``SEQLM_DEVICE``.
    """
    resources = submission.resources
    return {
        "SEQLM_DEVICE": "cpu" if device is None else "cuda",
        "OMP_NUM_THREADS": str(resources.cpus),
        "MKL_NUM_THREADS": str(resources.cpus),
        **submission.env,
        "CUDA_VISIBLE_DEVICES": device or "",
        "RANK": str(rank),
        "WORLD_SIZE": str(resources.ranks),
        "LOCAL_RANK": "0",
    }


def ended(codes: Sequence[int], lost: Mapping[int, str] | None = None) -> Ended:
    """How a run ended whose ranks ended with ``codes``; ``lost`` says for some of them what became of their host.

    The first of ``lost`` is the one that was lost first.
    """
    failed = [(code, rank) for rank, code in enumerate(codes) if code]
    if not failed:
        return Ended(exit_code=0, message="ended")
    if lost:  # the first that was lost explains the others
        rank, message = next(iter(lost.items()))
        return Ended(exit_code=codes[rank], message=message)
    # A rank killed by a signal explains the others, which only lost it.
    code, rank = min(failed)
    who = f"rank {rank}" if len(codes) > 1 else "the worker"
    return Ended(exit_code=code, message=f"{who} {describe_exit(code)}")


def describe_exit(code: int) -> str:
    """What an exit code means; a negative one is a signal: ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
