"""Canaries on a cluster, with nobody waiting: the arrays of a grid depend on the array of its canaries.

The canaries are submitted held, then the grid with ``afterok`` on them; then they are released. A launcher that is
killed in between leaves jobs that cannot start. Such a launch, and one whose canary has failed, is withdrawn: a mark
says that its jobs count no more, and they are cancelled. A job that starts all the same looks for the mark first.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jobs.launch.canary import Canaries
from jobs.launch.job import LaunchOptions
from jobs.study.folder import ARRAY_FILE, PLAN_FILE, WITHDRAWN_FILE
from jobs.study.kept_code import Code
from jobs.study.squeue import ask
from seqlm.files import json_text, read_json, write_once
from seqlm.reading import exists, listed, timestamp
from seqlm.requests import Request
from seqlm.rundir import CANARY_FOLDER
from slurm.settings import SlurmSettings
from slurm.submission import JobPlan, NoRoomError, plan_jobs, submit

MINUTES = 30
"""The longest time limit of a canary. A short one may start sooner."""


def submit_after(
    canaries: Canaries,
    plan: JobPlan,
    settings: SlurmSettings,
    request: Request,
    options: LaunchOptions,
    code: Code,
    most: int,
) -> list[str]:
    """Submit canaries and the jobs of ``plan``, which wait for them; return the ids of the latter.

    Raises:
        BackendError: sbatch rejected an array. The grid's arrays before it are submitted; the message says so.
    """
    short = replace(settings, timeout_min=min(settings.timeout_min, MINUTES))
    options = replace(options, study_dir=options.study_dir / CANARY_FOLDER, notify=None)

    def submit_held(most: int) -> list[str]:
        trial = plan_jobs(canaries.items, options, short, code, request=canaries.request.number, most=most)
        env = {**trial.options.env, **options.env}
        trial = replace(trial, options=replace(trial.options, env=env), grid=request.folder)
        return submit(trial, short, canaries.request, hold=True)

    ids = submit_held(most)
    try:
        try:
            return submit(plan, settings, request, after_ok=ids)
        except NoRoomError:  # a single job for all canaries may leave room
            ask("scancel", *ids)
            ids = submit_held(1)
            return submit(plan, settings, request, after_ok=ids)
    finally:
        arrays = [read_json(path) or {} for path in listed(request.folder, ARRAY_FILE.format("*"))]
        if any(array.get("id") for array in arrays):
            ask("scontrol", "release", ",".join(ids))
        else:
            withdraw([canaries.request.folder, request.folder])


class _Row(NamedTuple):
    """A waiting job of this user."""

    job: str
    reason: str
    folder: Path
    """Its working directory, which is the folder of its request."""


def _waiting() -> Iterator[_Row]:
    text = ask("squeue", "-h", "-a", "-t", "PD", "-u", str(os.geteuid()), "-o", "%F|%r|%Z")
    rows = (line.strip().split("|", 2) for line in text.splitlines() if line)
    return (_Row(job, reason, Path(folder).resolve()) for job, reason, folder in rows)


def withdraw(folders: Collection[Path]) -> None:
    """Mark requests as withdrawn, and cancel their waiting jobs.

    Raises:
        BackendError: SLURM does not answer. The jobs are marked, and a launch tries again.
    """
    for folder in folders:
        write_once(folder / WITHDRAWN_FILE, json_text({"at": timestamp()}).encode())
    places = {folder.resolve() for folder in folders}
    if jobs := sorted({row.job for row in _waiting() if row.folder in places}):
        ask("scancel", "--quiet", *jobs)


def withdraw_stuck(study_dir: Path) -> None:
    """Withdraw what can never start: launches that were killed before they released their canaries or withdrew.

    The caller owns the study.

    Raises:
        BackendError: SLURM does not answer.
    """
    trials = {folder.resolve(): folder for folder in listed(study_dir / CANARY_FOLDER / "launches")}
    if not any(exists(folder / PLAN_FILE) for folder in trials):
        return
    grids = {folder.resolve(): folder for folder in listed(study_dir / "launches")}
    stuck: dict[Path, None] = {}
    for row in _waiting():
        folder = trials.get(row.folder) or grids.get(row.folder)
        if folder is None:
            continue
        is_held = row.folder in trials and row.reason == "JobHeldUser"
        if is_held or row.reason == "DependencyNeverSatisfied" or exists(folder / WITHDRAWN_FILE):
            grid = (read_json(folder / PLAN_FILE) or {}).get("grid")
            stuck.update(dict.fromkeys([folder, *([Path(grid)] if grid else [])]))
    if stuck:
        withdraw(list(stuck))
