"""What is done about the failures of a study's runs, how often they are saved, and what they may use: ``[policy]``.

The policy is no part of a run's identity. It is kept in ``study.json``, for launches without the manifest, and sent
with each SLURM job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from jobs.manifests.fields import Valid
from seqlm.state import FailureKind

UNLIMITED = "unlimited"

_COUNT = "a whole number, 0 or more"
_Count = Annotated[int, Ge(0)]
_Limit = Annotated[int | None, Valid(f'{_COUNT}, or "{UNLIMITED}"', _Count | Literal["unlimited"])]
"""``None`` means no limit; a manifest writes it as ``"unlimited"``."""
_HOURS = f'a number of hours above 0, or "{UNLIMITED}"'
_Hours = Annotated[float | None, Valid(_HOURS, Annotated[float, Gt(0)] | Literal["unlimited"])]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How often a run is retried automatically after each kind of failure, how often saved, and the study's budget."""

    NO_KEYS: ClassVar[Mapping[str, str]] = {
        kind: f"{{name}}: such a failure is never retried automatically; use `retry --kind {kind}`"
        for kind in ("code", "diverged")
    }
    OLD_NAMES: ClassVar[Mapping[str, str]] = {"without_progress": "max_stalled_retries"}
    """Earlier name of a key -> its name. Manifests and ``study.json`` may have either."""

    checkpoint_min: Annotated[float, Gt(0), Valid("a number of minutes above 0")] = 10
    """Minutes between two checkpoints within an epoch."""
    oom: _Limit = 3
    """Retries of a run that ran out of memory, each with micro-batches of half the size."""
    timeout: _Limit = 20
    """Resumes after a job's time limit."""
    node: _Limit = None
    """Retries after a lost node, GPU, disk or rank."""
    preempted: _Limit = None
    """Resumes after a preemption."""
    max_stalled_retries: Annotated[_Count, Valid(_COUNT)] = 10
    """Consecutive retries, of any kind, without progress: no finished epoch and no later checkpoint.
    `--max-stalled-retries` overrides it. Earlier name: `policy.without_progress`."""
    keep_last: Annotated[bool, Valid("true or false")] = True
    """Whether a finished run keeps ``checkpoints/last.pt``. With ``false`` it is deleted once the run is done."""
    gpu_hours: _Hours = None
    """Budget of the whole study: hours times GPUs, over all attempts. When it is spent, runs stop at a checkpoint and
    the others wait; `run` with a higher budget goes on."""
    core_hours: _Hours = None
    """The same for hours times processor cores."""

    def retries(self, kind: FailureKind | None) -> int | None:
        """Return the retries allowed after failures of this kind: 0 if never retried, ``None`` if unlimited."""
        limit: int | None = getattr(self, kind) if kind in ("oom", "timeout", "node", "preempted") else 0
        return limit

    def with_retries(self, retries: int | None) -> Policy:
        """Return the policy with this value of ``max_stalled_retries``. ``None``: no override."""
        return self if retries is None else replace(self, max_stalled_retries=retries)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest would write it."""
        return {key: UNLIMITED if value is None else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Policy:
        """Read the result of :meth:`to_dict`, or a table in which ``read_table`` found no problem."""
        values: dict[str, Any] = {}
        for key, value in raw.items():
            values[cls.OLD_NAMES.get(key, key)] = None if value == UNLIMITED else value
        return cls(**values)
