"""A scheduler of folders, written from docs/project/schedulers.md alone: the second one beside SLURM.

    SPOOL/7/script.sh, environ.json      array 7, as it was submitted
    SPOOL/7/held                         it waits until it is released
    SPOOL/7/3/state                      job 3 of it: ``waiting``, ``running`` or ``ended``
    SPOOL/7/3/code                       its exit code
    SPOOL/7/3/again, changes, avoided    what its script has asked for: another start, changes, nodes to avoid

``python spool.py -m MODULE ARGUMENT ...`` runs a module of seqlm with the spool among its schedulers.
"""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import final

ROOT = Path(__file__).resolve().parents[3]
sys.path[:1] = [str(ROOT)]  # this folder has modules that are not to be found as those of the same name

from jobs import registry  # noqa: E402
from jobs.scheduled.backend import ScheduledBackend  # noqa: E402
from jobs.scheduled.site import NodeKind, Site  # noqa: E402
from jobs.scheduled.submission import Asked  # noqa: E402
from jobs.study.scheduler import Allocation, Claim, Job, Scheduler, TooManyJobsError, works_in  # noqa: E402
from seqlm.errors import BackendError  # noqa: E402
from seqlm.state import View  # noqa: E402

NAME = "spool"
FOLDER = "SPOOL_FOLDER"
NODES = ("north", "south")
POLL_SECONDS = 0.02
SHELL = r"""
here=$SPOOL_FOLDER/$SPOOL_ARRAY/$SPOOL_INDEX
job=$SPOOL_ARRAY.$SPOOL_INDEX index=$SPOOL_INDEX node=$SPOOL_NODE restarts=$SPOOL_RESTARTS
standing() { if [ -e "$here/cancelled" ]; then echo over; else echo running; fi; }
put_back() { : > "$here/again"; }
job_nodes() { echo $node; }
change() { echo "$1" >> "$here/changes"; }
avoid() { printf '%s\n' "$@" >> "$here/avoided"; }
"""


PLACES = (
    (registry.BACKENDS, "tests.jobs.scheduled.spool:SpoolBackend"),
    (registry.SCHEDULERS, "tests.jobs.scheduled.spool:Spool"),
)
"""What names the spool, and its classes."""


def folder() -> Path:
    return Path(os.environ[FOLDER])


def options_of(array: Path) -> Mapping[str, str]:
    """Return what a script asks for."""
    text = (array / "script.sh").read_text("utf-8")
    return dict(re.findall(r"^#SPOOL (\w+)=(.*)$", text, re.M))


def jobs_of(array: Path) -> list[Path]:
    return sorted((path for path in array.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def state_of(job: Path) -> str:
    return (job / "state").read_text("utf-8")


def write(path: Path, text: str) -> None:
    """Write a file in one step."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, "utf-8")
    beside.replace(path)


@final
class Spool(Scheduler):
    """A scheduler of folders."""

    name = NAME
    title = "the spool"
    SHELL = SHELL
    PASSED = ("SPOOL_*",)

    def submit(self, script: Path, environ: Mapping[str, str], *, is_held: bool = False) -> str:
        jobs = int(dict(re.findall(r"^#SPOOL (\w+)=(.*)$", script.read_text("utf-8"), re.M)).get("jobs", "1"))
        live = [job for array in folder().iterdir() for job in jobs_of(array) if state_of(job) != "ended"]
        if jobs + len(live) > int(os.environ.get("SPOOL_MOST", "1000")):
            raise TooManyJobsError("the spool is full")
        array = folder() / str(1 + len(list(folder().iterdir())))
        beside = folder().with_name(f"{folder().name}-new")
        beside.mkdir()
        shutil.copy(script, beside / "script.sh")
        (beside / "environ.json").write_text(json.dumps(dict(environ)), "utf-8")
        for index in range(jobs):
            (beside / str(index)).mkdir()
            (beside / str(index) / "state").write_text("waiting", "utf-8")
        if is_held:
            (beside / "held").touch()
        beside.rename(array)
        return array.name

    def release(self, ids: Collection[str]) -> None:
        for array in ids:
            (folder() / array / "held").unlink(missing_ok=True)

    def cancel(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            array, _, index = job.id.partition("_")
            for place in jobs_of(folder() / array):
                if index in ("", place.name):
                    (place / "cancelled").touch()

    def _places(self, claim: Claim) -> list[Path]:
        """Return the folders of a claimed job, or of the jobs of a claimed array, if they work where it says."""
        array, _, index = claim.id.partition("_")
        place = folder() / array
        if not place.is_dir() or not works_in(options_of(place)["folder"], claim.folder):
            return []
        return [job for job in jobs_of(place) if index in ("", job.name)]

    def live(self, claims: Collection[Claim]) -> list[Job]:
        found = {claim: self._places(claim) for claim in claims}
        return [Job(one.id, one.folder) for one, jobs in found.items() if any(state_of(job) != "ended" for job in jobs)]

    def waiting_in(self, folders: Collection[Path]) -> list[Job]:
        return [
            Job(array.name, one)
            for array in folder().iterdir()
            for one in folders
            if works_in(options_of(array)["folder"], one) and "waiting" in map(state_of, jobs_of(array))
        ]

    def views(self, claims: Collection[Claim]) -> dict[Claim, View]:
        return {claim: self._view(claim) for claim in claims}

    def _view(self, claim: Claim) -> View:
        jobs = self._places(claim)
        states = [state_of(job) for job in jobs]
        if not jobs:
            return View(stage="gone", reason="the spool does not know its job")
        if "waiting" in states:
            return View(stage="queued", reason="the spool is busy")
        if "running" in states:
            return View(stage="running")
        if all((job / "cancelled").exists() for job in jobs):
            return View(stage="ended", reason=self.CANCELLED, kind="cancelled")
        return View(stage="ended", reason="its job ended without a result")

    def allocation(self, environ: Mapping[str, str]) -> Allocation:
        array, index = environ["SPOOL_ARRAY"], environ["SPOOL_INDEX"]
        return Allocation(
            job=f"{array}_{index}",
            number=f"{array}.{index}",
            array=array,
            index=int(index),
            jobs=int(environ["SPOOL_JOBS"]),
            end_time=None,
            devices=(),
            host=environ["SPOOL_NODE"],
            nodes=1,
            node_rank=0,
            memory_mb=None,
        )


@final
class SpoolBackend(ScheduledBackend):
    """The spool as a backend."""

    name = NAME

    def site(self) -> Site:
        kind = NodeKind(count=len(NODES), cpus=4, gpus=0, memory_mb=8000)
        return Site(name="all", time_limit_min=None, max_nodes=1, kinds=(kind,))

    def script(self, asked: Asked, body: str) -> str:
        if asked.array is not None and asked.array.nodes > 1:
            raise BackendError("the spool has no jobs of several nodes")
        options = {
            "folder": asked.folder or Path.cwd(),
            "output": asked.output,
            "jobs": asked.array.jobs if asked.array else 1,
        }
        options |= {"after": ",".join(asked.after)}
        return "\n".join(["#!/bin/bash", *(f"#SPOOL {key}={value}" for key, value in options.items()), body, ""])


# -- the cluster -----------------------------------------------------------------------------------------------------


def may_start(array: Path) -> bool:
    before = [job for one in options_of(array)["after"].split(",") if one for job in jobs_of(folder() / one)]
    return all(state_of(job) == "ended" for job in before) and not (array / "held").exists()


class Cluster:
    """Runs jobs, one on each node."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Path, subprocess.Popen[bytes]]] = {}
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._look()
        for _, process in self._live.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        self._stop.set()

    def _look(self) -> None:
        for node, (job, process) in list(self._live.items()):
            if (job / "cancelled").exists() and not (job / "told").exists():
                (job / "told").touch()
                os.killpg(process.pid, signal.SIGTERM)
            if (code := process.poll()) is not None:
                del self._live[node]
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                is_back = (job / "again").exists() and not (job / "cancelled").exists()
                write(job / "code", str(code))
                write(job / "state", "waiting" if is_back else "ended")
        for array in folder().iterdir():
            for job in jobs_of(array):
                if state_of(job) == "waiting" and (job / "cancelled").exists():
                    write(job / "code", "1")
                    write(job / "state", "ended")
                elif state_of(job) == "waiting" and may_start(array):
                    self._start(array, job)

    def _start(self, array: Path, job: Path) -> None:
        avoided = (job / "avoided").read_text().split() if (job / "avoided").exists() else []
        free = [node for node in NODES if node not in self._live and node not in avoided]
        if not free:
            return
        starts = int((job / "starts").read_text()) if (job / "starts").exists() else 0
        write(job / "starts", str(starts + 1))
        (job / "again").unlink(missing_ok=True)
        write(job / "state", "running")
        options = options_of(array)
        words = {"ARRAY": array.name, "INDEX": job.name, "JOBS": options["jobs"], "NODE": free[0], "RESTARTS": starts}
        env = json.loads((array / "environ.json").read_text()) | {
            f"SPOOL_{key}": str(one) for key, one in words.items()
        }
        work = Path(options["folder"])
        with Path(options["output"].replace("{index}", job.name)).open("ab") as output:
            command = ["bash", str(array / "script.sh")]
            process = subprocess.Popen(command, cwd=work, env=env, stdout=output, stderr=output, process_group=0)
        self._live[free[0]] = (job, process)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run the jobs of the spool while the block runs."""
    running = Cluster()
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join()


if __name__ == "__main__":
    for names, its in PLACES:
        names[NAME] = its
    place = sys.argv.index("-m")
    module, sys.argv = sys.argv[place + 1], sys.argv[place + 1 :]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
