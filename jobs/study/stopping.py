"""Wait until no worker of some runs lives, as far as their files and their scheduler say."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import final

from jobs import terminal
from jobs.registry import SCHEDULERS
from jobs.study.folder import launcher_of
from jobs.study.scheduler import Claim, Views
from seqlm.errors import SeqlmError
from seqlm.lease import last_beat, newest_lease
from seqlm.reading import exists
from seqlm.records.attempts import Start
from seqlm.records.leases import LeaseFile
from seqlm.requests import numbered
from seqlm.rundir import RunDirectory

LOOK_SECONDS = 0.1
"""Least time between two looks at the runs. They take at most half of the time."""
ASK_SECONDS = 20.0
"""Least time between two questions to a scheduler."""
TELL_SECONDS = 3.0
"""How long to wait before a line says so."""
SILENT_BEATS = 3
"""A worker whose job has ended is gone once it has missed this number of heartbeats."""


@final
class Stopping:
    """Runs whose workers are to stop.

    A worker lives as long as its lease says so. The lease of a worker that was killed on another node seems alive for
    minutes, so it also counts as gone if its job has ended and it has given no sign of life for some heartbeats. A
    worker that has been started and has no lease yet is about to begin as long as its job or its launcher lives.
    """

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self._runs = runs
        self._views = Views()
        self._asked_at = -ASK_SECONDS
        self._has_ended: dict[Claim, bool] = {}
        self._beats: dict[Path, tuple[float | None, float]] = {}
        """Folder of a run -> the last heartbeat, and when that was first seen, on the monotonic clock."""

    def wait(self, seconds: float, for_what: str = "to stop at a checkpoint") -> dict[Path, str]:
        """Wait until none lives, at most ``seconds``. Return the folder of each run that is trained on, and by whom.

        If that takes long, a line says ``for_what``.
        """
        began = time.monotonic()
        is_told = False
        while True:
            looked_at = time.monotonic()
            if not (living := self._living()):
                break
            waited = time.monotonic() - began
            if waited >= seconds:
                break
            if waited >= TELL_SECONDS and not is_told:
                is_told = True
                number = f"{len(living)} run{'s' if len(living) > 1 else ''}"
                terminal.tell_progress(f"waiting for {number} {for_what}, at most {seconds:g} s")
            time.sleep(max(LOOK_SECONDS, time.monotonic() - looked_at))
        return living

    def _living(self) -> dict[Path, str]:
        """Return the folder of each run that is trained on, and by whom. The others are not looked at again."""
        found = {}
        for run in self._runs:
            try:
                who = self._who_trains(run)
            except SeqlmError as error:
                who = f"its worker, as far as is known ({error}),"
            if who is not None:
                found[run.path] = who
        self._runs = [run for run in self._runs if run.path in found]
        return found

    def _who_trains(self, run: RunDirectory) -> str | None:
        """Return who trains the run, or is about to. ``None``: nobody.

        Raises:
            FileError: a file of it cannot be read.
        """
        owner = run.live_worker()
        number = run.last_attempt() if owner is None or owner.attempt is None else owner.attempt
        if number and run.end(number).has_ended:
            return None
        start = (Start.read(run.attempt_dir(number)) if number else None) or Start()
        if owner is not None:
            if self._is_silent(run, owner) and self._has_job_ended(run, start):
                return None
            return f"its worker on {owner.host or 'an unknown host'} (process {owner.pid or 'unknown'})"
        has_begun = exists(run.worker_file(number)) or newest_lease(run.lease_dir).attempt == number
        if not number or has_begun:
            return None
        if start.job_id is not None:
            return (
                None if self._has_job_ended(run, start) else f"job {start.job_id}, which has just started its worker,"
            )
        launcher = None if start.launcher is None else launcher_of(run.study_dir)
        if launcher is not None and launcher.identity == start.launcher:
            return "its launcher, which has just started its worker,"
        return None

    def _is_silent(self, run: RunDirectory, owner: LeaseFile) -> bool:
        """Return whether the owner has given no sign of life for some heartbeats, on the clock of this process."""
        now, beat = time.monotonic(), last_beat(run.lease_dir, owner.attempt or 0)
        if run.path not in self._beats or self._beats[run.path][0] != beat:
            self._beats[run.path] = beat, now
        return now - self._beats[run.path][1] > SILENT_BEATS * (owner.heartbeat_seconds or 0.0)

    def _has_job_ended(self, run: RunDirectory, start: Start) -> bool:
        """Return whether a scheduler says that the job which has started an attempt does not run any more.

        One question serves all runs.
        """
        if (claim := _claim(run, start)) is None:
            return False
        now = time.monotonic()
        if now - self._asked_at >= ASK_SECONDS:
            self._asked_at = now
            newest = ((one, Start.read(one.attempt_dir(one.working_attempt())) or Start()) for one in self._runs)
            claims = {found for found in (claim, *(_claim(*one) for one in newest)) if found is not None}
            states = self._views.of(claims)
            self._has_ended = {one: view.stage not in ("running", "unknown") for one, view in states.items()}
        return self._has_ended.get(claim, False)


def _claim(run: RunDirectory, start: Start) -> Claim | None:
    """Return the job that has started an attempt of a run. ``None``: none has."""
    if start.job_id is None or start.request is None or start.backend not in SCHEDULERS:
        return None
    return Claim(start.job_id, numbered(run.path.parent, start.request), start.backend)
