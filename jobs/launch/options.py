"""The options of a launch, whichever backend carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.manifests.policy import Policy


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The options of a launch, apart from its runs."""

    study_dir: Path
    """The folder that holds the job folders."""
    worker: tuple[str, ...] = ("-m", "seqlm.training.worker")
    """The worker's command line, without the interpreter and the job's folder."""
    code_dir: Path | None = None
    """The study folder that keeps the code. ``None`` means ``study_dir``."""
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Run id -> content of ``task.json``, for jobs that do not train. They run again, however they ended before."""
    live_code: bool = False
    """Run workers from the working tree instead of the copy kept with the study."""
    untracked: Sequence[str] = ()
    """Files to keep with the code although git does not track them."""
    retry: bool = False
    """Also launch runs that failed or were cancelled."""
    max_parallel: int | None = None
    """Maximum number of runs at once. ``None`` means as many as the backend has room for."""
    policy: Policy = field(default_factory=Policy)
    """How often failed runs are retried automatically, and how often runs save checkpoints."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the workers."""
    canary: bool | None = None
    """Whether canaries run before the grid. ``None`` means that the number of runs decides."""
    record: Mapping[str, Any] | None = None
    """What to write about the manifest in ``study.json``. ``None`` means that no manifest is known."""
