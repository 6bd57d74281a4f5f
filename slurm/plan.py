"""The plan of a submission: what each of its jobs does, in one file next to the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.manifests.policy import Policy
from jobs.spec import Resources
from seqlm.errors import FileError
from seqlm.files import read_json, write_json
from seqlm.schema import read
from seqlm.search import Search


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """The jobs of one array."""

    jobs: tuple[tuple[str, ...], ...]
    """The ids of the runs of each job: one, or several that share a GPU."""
    resources: Resources
    """Of each run."""
    timeout_min: int


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What the jobs of a submission do."""

    study_dir: Path
    request: int
    """A run that a later request names is left alone."""
    arrays: tuple[ArrayPlan, ...]
    worker: tuple[str, ...]
    """The worker's command line, without the interpreter and the run's folder."""
    env: Mapping[str, str]
    code: Path
    data: Mapping[str, str]
    """Run id -> the path of its corpus, for runs that have one."""
    policy: Policy
    search: Search | None
    signal_before_s: int
    exclude: str | None
    """Nodes that the jobs must not get, as a SLURM host list. ``None``: no node is excluded."""
    must_have_nodes: bool
    """Whether the settings name the nodes of the jobs, so that none can be excluded."""

    def write(self, path: Path) -> None:
        """Write the plan for :meth:`read`."""
        search = None if self.search is None else self.search.to_dict()
        write_json(path, {**asdict(self), "policy": self.policy.to_dict(), "search": search})

    @classmethod
    def read(cls, path: Path) -> JobPlan:
        """Read a plan that :meth:`write` wrote.

        Raises:
            FileError: it cannot be read.
        """
        raw = read_json(path)
        if raw is None:
            raise FileError(f"cannot read {path}: No such file or directory")
        arrays = (
            ArrayPlan(
                jobs=tuple(map(tuple, array["jobs"])),
                resources=read(Resources, array["resources"]),
                timeout_min=array["timeout_min"],
            )
            for array in raw["arrays"]
        )
        known = {
            "study_dir": Path(raw["study_dir"]),
            "arrays": tuple(arrays),
            "worker": tuple(raw["worker"]),
            "code": Path(raw["code"]),
            "policy": read(Policy, raw["policy"]),
            "search": read(Search, raw["search"]) if raw["search"] is not None else None,
        }
        return cls(**{**raw, **known})
