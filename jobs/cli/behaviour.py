"""Compute on this machine the behaviour that a report lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.backends.local import LocalBackend
from jobs.cli.progress import LaunchProgress
from jobs.launch.behaviour import BehaviourLaunch, Outcome, jobs_dir
from jobs.launch.dispatch import Event
from jobs.launch.prepare import launch
from jobs.plan.planned import PlannedRun
from jobs.study.folder import study_name
from jobs.terminal import tell


def compute_behaviour(study_dir: Path, *, data: Path | None = None) -> list[Outcome]:
    """Compute the missing behaviour of a study on this machine and wait for it. Progress goes to stderr.

    ``data`` is the path of the corpus; ``None``: ``SEQLM_DATA``, else where it was when the run trained. A result is
    kept as long as its checkpoints are unchanged, whatever its settings. If nothing is missing, only checkpoints are
    read.

    Raises:
        RunBusyError: another launcher is computing it.
        BackendError, DataError, FileError: nothing has been started.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    wanted = BehaviourLaunch.of(study_dir, data=data)
    if wanted.specs:
        progress: list[LaunchProgress] = []
        backend = LocalBackend()

        def announce(planned: list[PlannedRun]) -> Callable[[Event], None]:
            todo = sum(item.action != "skip" for item in planned)
            what = study_name(jobs_dir(study_dir))
            tell(f"{what}: {todo} models to look at on {backend.describe()}")
            progress.append(LaunchProgress(planned, jobs_dir(study_dir)))
            return progress[-1]

        try:
            launch(wanted.specs, backend, wanted.options(tell), progress=announce)
        finally:
            for bar in progress:
                bar.close()
    return wanted.outcomes()
