"""Canaries on a cluster, with nobody waiting: the arrays of a grid depend on the array of its canaries.

A launch whose canary has failed is withdrawn, and one that was killed before all its jobs were submitted: a mark says
that its jobs count no more, and they are cancelled. A job that starts all the same looks for the mark first.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.launch.canary import Canaries, of_canaries
from jobs.launch.job import LaunchOptions
from jobs.study.folder import SUBMITTED_FILE, WITHDRAWN_FILE
from jobs.study.kept_code import Code
from jobs.study.squeue import ask
from seqlm.files import json_text, write_once
from seqlm.reading import exists, listed, timestamp
from seqlm.rundir import CANARY_FOLDER
from slurm.settings import SlurmSettings
from slurm.submission import JobPlan, plan_jobs

MINUTES = 30
"""The longest time limit of a canary. A short one may start sooner."""


def plan_canaries(
    canaries: Canaries, grid: JobPlan, settings: SlurmSettings, options: LaunchOptions, code: Code
) -> JobPlan:
    """Return what the jobs of canaries do. ``grid``: the plan that depends on them; the rest as in ``plan_jobs``."""
    short = replace(settings, timeout_min=min(settings.timeout_min, MINUTES))
    options = replace(of_canaries(options), study_dir=options.study_dir / CANARY_FOLDER, notify=None)
    plan = plan_jobs(canaries.items, options, short, code, request=canaries.request.number)
    return replace(plan, grid=grid.folder)


def _waiting() -> Iterator[tuple[str, str, Path]]:
    """Yield each waiting job of this user: its id, why it waits, and its working directory, that of its request."""
    text = ask("squeue", "-h", "-a", "-t", "PD", "-u", str(os.geteuid()), "-o", "%F|%r|%Z")
    for line in filter(None, text.splitlines()):
        job, reason, folder = line.strip().split("|", 2)
        yield job, reason, Path(folder).resolve()


def withdraw(folders: Collection[Path]) -> None:
    """Mark requests as withdrawn, and cancel their waiting jobs.

    Raises:
        BackendError: SLURM does not answer. The jobs are marked, and a launch tries again.
    """
    for folder in folders:
        write_once(folder / WITHDRAWN_FILE, json_text({"at": timestamp()}).encode())
    places = {folder.resolve() for folder in folders}
    if jobs := sorted({job for job, _, folder in _waiting() if folder in places}):
        ask("scancel", "--quiet", *jobs)


def withdraw_stuck(study_dir: Path) -> None:
    """Withdraw what can never start: launches that were killed before all was submitted, or before they withdrew.

    The caller owns the study.

    Raises:
        BackendError: SLURM does not answer.
    """
    launches = [*listed(study_dir / "launches"), *listed(study_dir / CANARY_FOLDER / "launches")]
    known = {folder.resolve(): folder for folder in launches}
    stuck = {
        folder
        for _, reason, place in (_waiting() if known else ())
        if (folder := known.get(place)) is not None
        and (
            reason == "DependencyNeverSatisfied"
            or exists(folder / WITHDRAWN_FILE)
            or not exists(folder / SUBMITTED_FILE)
        )
    }
    if stuck:
        withdraw(stuck)
