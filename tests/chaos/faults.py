"""What is done to a study. Each fault happens at once; some last a while and are taken back by ``undo``."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from seqlm.rundir import RunDirectory
from tests.chaos.disk import Disk
from tests.chaos.study import Process, Study, processes, workers

POLL_SECONDS = 0.02


@dataclass
class Scene:
    """What a fault may act on."""

    study: Study
    launcher: subprocess.Popen[bytes]
    disk: Disk | None
    """The small file system that holds the study; none where there is no right to mount."""
    draw: Callable[[], float] = field(default=lambda: 0.0)
    """Numbers from 0 to 1 that the seed decides."""

    def pick(self, among: list[Process]) -> Process | None:
        """One of these workers; three times in four one that has taken a step, else perhaps one that still imports."""
        if self.draw() < 0.75:
            steps = self.study.lab.shim / "steps"
            counted = {file.name for file in steps.iterdir() if file.stat().st_size}
            among = [process for process in among if f"{process.run_dir.name}-{process.pid}" in counted]
        return among[int(self.draw() * len(among))] if among else None


class Fault(abc.ABC):
    """One kind of accident."""

    lasts_seconds: float = 0.0
    """How long until ``undo``."""

    @abc.abstractmethod
    def happen(self, scene: Scene) -> str | None:
        """Do it; returns what was hit, for the log, or none where there is nothing to hit just now."""

    def undo(self, scene: Scene) -> None:  # noqa: B027 -- most have nothing to take back
        """Take it back."""

    def control(self) -> dict[str, Any]:
        """What the processes of the study are to believe while it lasts (:mod:`tests.chaos.shim.sitecustomize`)."""
        return {}


def _signal(process: Process | None, number: signal.Signals) -> str | None:
    if process is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
    return f"rank {process.rank} of {process.run_dir.name}"


def end_all(study: Study) -> None:
    """The power goes: launcher and workers end at the same instant, as far as signals allow."""
    while found := list(processes(study.folder)):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _unfinished(scene: Scene) -> list[RunDirectory]:
    """Runs with files to damage: begun, not done, nobody at work."""
    live = {process.run_dir.name for process in workers(scene.study)}
    runs = scene.study.runs()
    return [run for run in runs if run.last_attempt() and not run.result_file.exists() and run.id not in live]


@final
class KillWorker(Fault):
    """SIGKILL of a run's only process, or of the first rank."""

    def happen(self, scene: Scene) -> str | None:
        return _signal(scene.pick([w for w in workers(scene.study) if w.rank == 0]), signal.SIGKILL)


@final
class KillRank(Fault):
    """SIGKILL of a rank that is not the first."""

    def happen(self, scene: Scene) -> str | None:
        return _signal(scene.pick([w for w in workers(scene.study) if w.rank > 0]), signal.SIGKILL)


@final
class TerminateWorker(Fault):
    """SIGTERM of one process of a run, as where a node is drained."""

    def happen(self, scene: Scene) -> str | None:
        return _signal(scene.pick(workers(scene.study)), signal.SIGTERM)


@final
class KillLauncher(Fault):
    """SIGKILL of the launcher, with which its workers end; another launcher comes."""

    def happen(self, scene: Scene) -> str | None:
        if scene.launcher.poll() is not None:
            return None
        scene.launcher.kill()
        return f"pid {scene.launcher.pid}"


@final
class InterruptLauncher(Fault):
    """SIGTERM of the launcher, which stops its workers between two steps."""

    def happen(self, scene: Scene) -> str | None:
        if scene.launcher.poll() is not None:
            return None
        scene.launcher.terminate()
        return f"pid {scene.launcher.pid}"


@final
class StopRank(Fault):
    """SIGSTOP of a process for a while: its machine swaps, or somebody has suspended it."""

    lasts_seconds = 3.0

    def __init__(self) -> None:
        self._pid = 0

    def happen(self, scene: Scene) -> str | None:
        process = scene.pick(workers(scene.study))
        self._pid = process.pid if process else 0
        return _signal(process, signal.SIGSTOP)

    def undo(self, scene: Scene) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


@final
class PowerCut(Fault):
    """All processes end at once; of what was written last, half is on disk: every file that may be torn is torn.

    Files lie beside that were begun and not put in place.

    ``last.pt`` is torn only where the checkpoint before it is kept: a disk that loses what was flushed and has no other
    copy has lost the run.
    """

    def happen(self, scene: Scene) -> str | None:
        end_all(scene.study)
        scene.launcher.wait()
        torn = []
        for run in _unfinished(scene):
            with contextlib.suppress(OSError):
                for path in (run.last_checkpoint, run.metrics_file):
                    path.with_name(f".{path.name}.powercut.tmp").write_bytes(b"half of")
            with contextlib.suppress(OSError):  # where the disk is read-only just now, nothing was being written
                last = run.last_checkpoint
                kept = last.parent.glob("previous*.pt")
                # While a new one is put in place, the one before has both names.
                if last.exists() and any(not path.samefile(last) for path in kept):
                    _tear(run.last_checkpoint, scene.draw())
                    torn.append(f"last.pt of {run.id}")
                if run.metrics_file.exists() and run.metrics_file.stat().st_size:
                    os.truncate(run.metrics_file, int(scene.draw() * run.metrics_file.stat().st_size))
                    torn.append(f"metrics.jsonl of {run.id}")
        return f"all processes; torn: {', '.join(torn) or 'nothing'}"


def _tear(path: Path, share: float) -> None:
    """Cut a file short, or leave it its length with a hole of zeros, as a file system does after a crash."""
    size = path.stat().st_size
    if share < 0.5:
        os.truncate(path, int(2 * share * size))
        return
    with path.open("r+b") as file:
        file.seek(int(share * size))
        file.write(bytes(min(512, size - file.tell())))


@final
class DiskFull(Fault):
    """Somebody else fills the file system, and makes room again some seconds later."""

    lasts_seconds = 4.0

    def happen(self, scene: Scene) -> str | None:
        if scene.disk is None:
            return None
        scene.disk.fill()
        return f"{len(workers(scene.study))} workers on it"

    def undo(self, scene: Scene) -> None:
        assert scene.disk is not None
        scene.disk.make_room()


@final
class ReadOnly(Fault):
    """The study's folder becomes read-only under launcher and workers, and writable again some seconds later."""

    lasts_seconds = 4.0

    def happen(self, scene: Scene) -> str | None:
        if scene.disk is None:
            return None
        scene.disk.make_read_only(scene.study.folder)
        return f"{len(workers(scene.study))} workers in it"

    def undo(self, scene: Scene) -> None:
        assert scene.disk is not None
        scene.disk.make_writable(scene.study.folder)


@final
class ClockBack(Fault):
    """The clock of all processes is set back by some hours, while they run, for good (per study)."""

    def __init__(self) -> None:
        self.back_seconds = 0.0

    def happen(self, scene: Scene) -> str | None:
        hours = 1 + 11 * scene.draw()
        self.back_seconds += hours * 3600
        return f"{hours:.1f} h"

    def control(self) -> dict[str, Any]:
        return {"back_seconds": self.back_seconds}


class _Late(Fault):
    """Something that one process does is seen by others only seconds later; the launcher is killed along with it."""

    lasts_seconds = 8.0
    LAG_SECONDS = 5.0

    def happen(self, scene: Scene) -> str | None:
        if scene.launcher.poll() is not None:
            return None
        scene.launcher.kill()
        return f"{self.LAG_SECONDS:g} s; launcher {scene.launcher.pid} killed"


@final
class LateListing(_Late):
    """For a while, what one process makes is seen in the listings of others only seconds later, as on NFS.

    The launcher is killed along with it: the next one is the other host that sees folders late.
    """

    def control(self) -> dict[str, Any]:
        return {"lag_seconds": self.LAG_SECONDS}


@final
class LateRename(_Late):
    """For a while, what one process puts in place is seen by others only seconds later: they see the old file, or none.

    The launcher is killed along with it, so that the next one reads what workers of another one have just written.
    """

    def control(self) -> dict[str, Any]:
        return {"rename_lag_seconds": self.LAG_SECONDS}


class _BadFiles(Fault):
    """Something is wrong with all files of the study, under whatever is at work."""

    def happen(self, scene: Scene) -> str | None:
        return f"{len(workers(scene.study))} workers" if scene.launcher.poll() is None else None


@final
class SlowFiles(_BadFiles):
    """Each opening and each renaming takes a fifth of a second."""

    lasts_seconds = 5.0

    def control(self) -> dict[str, Any]:
        return {"slow_seconds": 0.2}


@final
class StaleFiles(_BadFiles):
    """Opening to read fails with ESTALE, for 0.3 s of each second: on NFS, where another host has replaced a file."""

    lasts_seconds = 5.0

    def control(self) -> dict[str, Any]:
        return {"stale_share": 0.3}


@final
class QuotaAtClose(_BadFiles):
    """Closing a file that was written fails with EDQUOT, and half of it is lost: how NFS reports a quota."""

    lasts_seconds = 4.0

    def control(self) -> dict[str, Any]:
        return {"quota": True}


@final
class FailingRun(Fault):
    """The disk under one run fails: opening any file of it is EIO for a while. The launcher has to go on."""

    lasts_seconds = 4.0

    def __init__(self) -> None:
        self._failing = ""

    def happen(self, scene: Scene) -> str | None:
        process = scene.pick(workers(scene.study)) if scene.launcher.poll() is None else None
        if process is None:
            return None
        self._failing = str(process.run_dir)
        return process.run_dir.name

    def control(self) -> dict[str, Any]:
        return {"failing": self._failing}


@final
class KillJob(Fault):
    """SIGKILL of the process of a SLURM job that follows the job's workers."""

    def happen(self, scene: Scene) -> str | None:
        jobs = [process for process in processes(scene.study.folder) if process.is_job]
        if not jobs:
            return None
        job = jobs[int(scene.draw() * len(jobs))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGKILL)
        return f"pid {job.pid}"


@final
class Requeue(Fault):
    """``scontrol requeue`` of a job that runs, as by an administrator."""

    def happen(self, scene: Scene) -> str | None:
        def ask(*argv: str) -> list[str]:
            env = scene.study.lab.env()
            return subprocess.run(argv, env=env, capture_output=True, text=True, check=False).stdout.split()

        if not (jobs := ask("squeue", "-h", "-t", "R", "-o", "%i")):
            return None
        job = jobs[int(scene.draw() * len(jobs))]
        ask("scontrol", "requeue", job)
        return f"job {job}"


ALL: tuple[type[Fault], ...] = (
    *(KillWorker, KillRank, TerminateWorker, KillLauncher, InterruptLauncher, StopRank),
    *(PowerCut, DiskFull, ReadOnly, ClockBack, LateListing),
    *(LateRename, SlowFiles, StaleFiles, QuotaAtClose, FailingRun),
)
ON_SLURM: tuple[type[Fault], ...] = (
    *(KillWorker, KillRank, TerminateWorker, KillLauncher, InterruptLauncher, StopRank),
    *(DiskFull, ReadOnly, SlowFiles, StaleFiles, QuotaAtClose, FailingRun, KillJob, Requeue),
)
"""After a power cut, other jobs start while files are torn: no file of theirs would be safe from that."""
NEED_ROOT: tuple[type[Fault], ...] = (DiskFull, ReadOnly)
