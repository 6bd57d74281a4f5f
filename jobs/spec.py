"""The records a launcher handles: a run to train, the resources it requests, and the submission handed to a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from seqlm.config import RunConfig
from seqlm.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one run may use. Not part of its identity: changing the resources does not make it a different run."""

    ranks: Annotated[int, Ge(1)] = 1
    """Processes that share the run's global batch through DistributedDataParallel."""
    cpus: Annotated[int, Ge(1)] | None = None
    """CPU cores of each rank. ``None`` means an equal share of the machine among the runs that run at once."""
    gpus: Annotated[float, Ge(0), Le(1)] | None = None
    """GPUs of each rank: 0, 1, or (with one rank only) a share such as 0.25. ``None`` means 1 if there are any GPUs."""
    priority: int = 0
    """Waiting runs with a higher priority start first."""

    def __post_init__(self) -> None:
        problems = []
        if self.ranks < 1:
            problems.append(f"resources.ranks: expected a positive whole number, got {self.ranks}")
        if self.cpus is not None and self.cpus < 1:
            problems.append(f"resources.cpus: expected a positive whole number, got {self.cpus}")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            problems.append(f"resources.gpus: expected 0, 1, or a share such as 0.25, for each rank, got {self.gpus}")
        elif self.gpus not in (None, 0, 1) and self.ranks > 1:
            what = "expected 0 or 1 with several ranks, which cannot share a GPU"
            problems.append(f"resources.gpus: {what}, got {self.gpus}")
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Resources:
        """Build from plain data, strictly.

        Raises:
            ConfigError: unknown keys or wrong types, one line for each problem.
        """
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
                problems.append(f"resources.{key}: expected {kind}, got {value!r}")
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
    """Position in the manifest, from 0."""
    data_path: Path | None = None
    """Where its corpus is. ``None``: the default place."""
    command: Sequence[str] = ()
    """The command line that launches this run alone."""

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint()


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One attempt at one run, in the form every backend starts: a command line, an environment and a path.

    Nothing is pickled: running the same command on the same folder resumes the run.
    """

    run_dir: Path
    attempt: int
    """Number of the attempt, from 1."""
    argv: tuple[str, ...]
    """The worker's command line, the same on every rank."""
    env: Mapping[str, str]
    """Environment variables added to the worker's environment."""
    cwd: Path
    """The folder of the code that the worker runs: the copy kept with the study, or the working tree."""
    resources: Resources
