"""What a launcher handles: a run to be done, the resources it wants, and the command line that goes out for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from seqlm.config import RunConfig
from seqlm.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one run may use. Not part of its identity: the same run on other resources is the same run."""

    ranks: Annotated[int, Ge(1)] = 1
    """Processes that share the run's global batch through DistributedDataParallel."""
    cpus: Annotated[int, Ge(1)] | None = None
    """CPU cores of each rank; none: an equal share of the machine among the runs that go at once."""
    gpus: Annotated[float, Ge(0), Le(1)] | None = None
    """GPUs of each rank: 0, 1, or for runs of one rank a share of one, such as 0.25; none: 1 where there are GPUs."""
    priority: int = 0
    """Of the runs that wait, those with the highest start first."""

    def __post_init__(self) -> None:
        problems = []
        if self.ranks < 1:
            problems.append(f"resources.ranks: found {self.ranks}, valid is a positive whole number")
        if self.cpus is not None and self.cpus < 1:
            problems.append(f"resources.cpus: found {self.cpus}, valid is a positive whole number")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            problems.append(f"resources.gpus: found {self.gpus}, valid is 0, 1, or a share such as 0.25, for each rank")
        elif self.gpus not in (None, 0, 1) and self.ranks > 1:
            what = "valid is 0 or 1 with several ranks, which cannot share a GPU"
            problems.append(f"resources.gpus: found {self.gpus}, {what}")
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Resources:
        """Read plain data strictly; raises ConfigError with a line for each problem."""
        problems = []
        known = list(cls.__dataclass_fields__)
        for key, value in raw.items():
            if key not in known:
                hint = nearest(f"resources.{key}", [f"resources.{name}" for name in known])
                problems.append(f'unknown key "resources.{key}"{hint} (valid in resources: {", ".join(known)})')
            elif value is None and key in ("cpus", "gpus"):
                continue
            elif type(value) is not int and not (key == "gpus" and type(value) is float):
                kind = "a number" if key == "gpus" else "a whole number"
                problems.append(f"resources.{key}: found {value!r}, valid is {kind}")
        if problems:
            raise ConfigError(problems)
        return cls(**raw)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a study, as expanded from a manifest."""

    name: str
    """The run's name in the manifest, unique in the study."""
    config: RunConfig
    resources: Resources = field(default_factory=Resources)
    order: int = 0
    """Place in the manifest, from 0."""

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One attempt at one run, as every backend starts it: a command line, an environment and a path.

    Nothing of ours is pickled for the trip: the same command on the same folder goes on where it stopped.
    """

    run_dir: Path
    attempt: int
    """Number of the attempt, from 1."""
    argv: tuple[str, ...]
    """The worker's command line, the same on every rank."""
    env: Mapping[str, str]
    """Variables added to the worker's environment."""
    cwd: Path
    """The code that the worker runs: the study's snapshot, or the live tree."""
    resources: Resources
