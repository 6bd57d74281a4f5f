"""What is done about the failures of a study's runs, and how often they are saved: the manifest's ``[policy]``.

Part of no run's identity. It is kept in ``study.json``, for who launches runs again without their manifest, and goes
along with each job of SLURM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jobs.manifests.problems import Problems
from jobs.manifests.reader import show
from seqlm.rundir import FailureKind

UNLIMITED = "unlimited"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How often a run is tried again by itself after each kind of failure, over its whole life, and saved meanwhile."""

    checkpoint_min: float = 10
    """Minutes between two checkpoints within an epoch."""
    oom: int | None = 3
    """Retries of a run that was short of memory, each with micro-batches of half the size; none: unlimited."""
    timeout: int | None = 20
    """Resumes after a job's time limit; none: unlimited."""
    node: int | None = None
    """Retries after a lost node, GPU, disk or rank; none: unlimited."""
    preempted: int | None = None
    """Resumes after a preemption; none: unlimited."""
    without_progress: int = 10
    """Retries in a row, of whatever kinds, that gained nothing: no epoch, and no later checkpoint."""
    keep_last: bool = True
    """Whether a finished run keeps ``last.pt``, with which it can go on."""

    def retries(self, kind: FailureKind | None) -> int | None:
        """Retries that failures of this kind get, 0 for kinds that are never retried; none: unlimited."""
        match kind:
            case "oom" | "timeout" | "node" | "preempted":
                limit: int | None = getattr(self, kind)
                return limit
            case _:
                return 0

    def with_retries(self, retries: int | None) -> Policy:
        """The same with what ``--retries`` or ``backend.*.retries`` says; none: nothing."""
        return self if retries is None else replace(self, without_progress=retries)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest would write it."""
        return {key: UNLIMITED if value is None else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Policy:
        """Read what :meth:`to_dict` gave, or a table that :func:`check_policy` has found nothing wrong with."""
        values: dict[str, Any] = {key: None if value == UNLIMITED else value for key, value in raw.items()}
        return cls(**values)


POLICY_KEYS = tuple(f"policy.{name}" for name in Policy.__dataclass_fields__)

NEVER_RETRIED = ("code", "diverged")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_COUNT = "a whole number, 0 or more"
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "checkpoint_min": (
        lambda value: type(value) in (int, float) and math.isfinite(value) and value > 0,
        "a number of minutes above 0",
    ),
    **dict.fromkeys(
        ("oom", "timeout", "node", "preempted"),
        (lambda value: value == UNLIMITED or _is_count(value), f'{_COUNT}, or "{UNLIMITED}"'),
    ),
    "without_progress": (_is_count, _COUNT),
    "keep_last": (lambda value: type(value) is bool, "true or false"),
}


def check_policy(key: str, value: Any, where: str, problems: Problems) -> None:
    """Check one key, in full (``policy.oom``), and its value; ``problems`` receives a line if one of them is wrong."""
    name = key.partition(".")[2]
    if name in NEVER_RETRIED:
        problems.add(where, f"{key}: a run that failed so is never tried again by itself; use `retry --kind {name}`")
    elif name not in _CHECKS:
        problems.unknown(where, key, POLICY_KEYS)
    elif not _CHECKS[name][0](value):
        problems.add(where, f"{key}: found {show(value)}, valid is {_CHECKS[name][1]}")
