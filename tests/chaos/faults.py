"""What is done to a study. A fault is a generator: it does its work, yields what it hit, and then takes it back."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    beliefs: list[dict[str, Any]] = field(default_factory=list)
    """What the processes of the study are to believe just now (``tests/chaos/shim``)."""

    def believe(self, **values: Any) -> dict[str, Any]:
        """Have all processes believe this, until the record that is returned is removed from the beliefs."""
        self.beliefs.append(values)
        self.control()
        return values

    def control(self) -> None:
        """Tell the processes what to believe."""
        beliefs = {key: value for values in self.beliefs for key, value in values.items()}
        self.study.lab.control(below=str(self.study.folder), **beliefs)

    @contextlib.contextmanager
    def lying(self, **values: Any) -> Iterator[None]:
        """Have all processes believe this while the block runs."""
        belief = self.believe(**values)
        yield
        self.beliefs.remove(belief)
        self.control()

    @property
    def has_launcher(self) -> bool:
        return self.launcher.poll() is None

    def pick(self, among: list[Process]) -> Process | None:
        """One of these workers; three times in four one that has taken a step, else perhaps one that still imports."""
        if self.draw() < 0.75:
            steps = self.study.lab.shim / "steps"
            counted = {file.name for file in steps.iterdir() if file.stat().st_size}
            among = [process for process in among if f"{process.run_dir.name}-{process.pid}" in counted]
        return among[int(self.draw() * len(among))] if among else None


@dataclass(frozen=True)
class Fault:
    """One kind of accident."""

    begin: Callable[[Scene], Iterator[str]]
    """Does it, yields what was hit, and then takes it back. Yields nothing if there is nothing to hit just now."""
    lasts_seconds: float

    @property
    def name(self) -> str:
        return self.begin.__name__


def lasting(seconds: float) -> Callable[[Callable[[Scene], Iterator[str]]], Fault]:
    """Make a fault of a generator that is to be resumed after ``seconds``."""
    return lambda begin: Fault(begin, seconds)


at_once = lasting(0.0)


def _send(process: Process | None, number: signal.Signals) -> Iterator[str]:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        yield f"rank {process.rank} of {process.run_dir.name}"


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


@at_once
def kill_worker(scene: Scene) -> Iterator[str]:
    """SIGKILL of a run's only process, or of the first rank."""
    yield from _send(scene.pick([w for w in workers(scene.study) if w.rank == 0]), signal.SIGKILL)


@at_once
def kill_rank(scene: Scene) -> Iterator[str]:
    """SIGKILL of a rank that is not the first."""
    yield from _send(scene.pick([w for w in workers(scene.study) if w.rank > 0]), signal.SIGKILL)


@at_once
def terminate_worker(scene: Scene) -> Iterator[str]:
    """SIGTERM of one process of a run, as where a node is drained."""
    yield from _send(scene.pick(workers(scene.study)), signal.SIGTERM)


@lasting(3.0)
def stop_rank(scene: Scene) -> Iterator[str]:
    """SIGSTOP of a process for a while: its machine swaps, or somebody has suspended it."""
    process = scene.pick(workers(scene.study))
    for hit in _send(process, signal.SIGSTOP):
        yield hit
        yield from _send(process, signal.SIGCONT)


@at_once
def kill_launcher(scene: Scene) -> Iterator[str]:
    """SIGKILL of the launcher, with which its workers end; another launcher comes."""
    if scene.has_launcher:
        scene.launcher.kill()
        yield f"pid {scene.launcher.pid}"


@at_once
def interrupt_launcher(scene: Scene) -> Iterator[str]:
    """SIGTERM of the launcher, which stops its workers between two steps."""
    if scene.has_launcher:
        scene.launcher.terminate()
        yield f"pid {scene.launcher.pid}"


@at_once
def power_cut(scene: Scene) -> Iterator[str]:
    """All processes end at once; of what was written last, half is on disk: every file that may be torn is torn.

    Files lie beside that were begun and not put in place.

    ``last.pt`` is torn only where the checkpoint before it is kept: a disk that loses what was flushed and has no other
    copy has lost the run.
    """
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
    yield f"all processes; torn: {', '.join(torn) or 'nothing'}"


def _tear(path: Path, share: float) -> None:
    """Cut a file short, or leave it its length with a hole of zeros, as a file system does after a crash."""
    size = path.stat().st_size
    if share < 0.5:
        os.truncate(path, int(2 * share * size))
        return
    with path.open("r+b") as file:
        file.seek(int(share * size))
        file.write(bytes(min(512, size - file.tell())))


@lasting(4.0)
def disk_full(scene: Scene) -> Iterator[str]:
    """Somebody else fills the file system, and makes room again some seconds later."""
    if scene.disk is not None:
        scene.disk.fill()
        yield f"{len(workers(scene.study))} workers on it"
        scene.disk.make_room()


@lasting(4.0)
def read_only(scene: Scene) -> Iterator[str]:
    """The study's folder becomes read-only under launcher and workers, and writable again some seconds later."""
    if scene.disk is not None:
        scene.disk.make_read_only(scene.study.folder)
        yield f"{len(workers(scene.study))} workers in it"
        scene.disk.make_writable(scene.study.folder)


@at_once
def clock_back(scene: Scene) -> Iterator[str]:
    """The clock of all processes is set back by some hours, while they run, for good (per study)."""
    hours = 1 + 11 * scene.draw()
    before = max((belief.get("back_seconds", 0.0) for belief in scene.beliefs), default=0.0)
    scene.believe(back_seconds=before + hours * 3600)
    yield f"{hours:.1f} h"


def _bad_files(scene: Scene, **belief: Any) -> Iterator[str]:
    """Something is wrong with all files of the study, under whatever is at work."""
    if scene.has_launcher:
        with scene.lying(**belief):
            yield f"{len(workers(scene.study))} workers"


@lasting(4.0)
def quota_at_close(scene: Scene) -> Iterator[str]:
    """Closing a file that was written fails with EDQUOT, and half of it is lost: how NFS reports a quota."""
    return _bad_files(scene, quota=True)


@lasting(4.0)
def failing_run(scene: Scene) -> Iterator[str]:
    """The disk under one run fails: opening any file of it is EIO for a while. The launcher has to go on."""
    process = scene.pick(workers(scene.study)) if scene.has_launcher else None
    if process is not None:
        with scene.lying(failing=str(process.run_dir)):
            yield process.run_dir.name


@at_once
def kill_job(scene: Scene) -> Iterator[str]:
    """SIGKILL of the process of a SLURM job that follows the job's workers."""
    jobs = [process for process in processes(scene.study.folder) if process.is_job]
    if jobs:
        job = jobs[int(scene.draw() * len(jobs))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGKILL)
        yield f"pid {job.pid}"


@at_once
def requeue(scene: Scene) -> Iterator[str]:
    """``scontrol requeue`` of a job that runs, as by an administrator."""

    def ask(*argv: str) -> list[str]:
        env = scene.study.lab.env()
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False).stdout.split()

    if jobs := ask("squeue", "-h", "-t", "R", "-o", "%i"):
        job = jobs[int(scene.draw() * len(jobs))]
        ask("scontrol", "requeue", job)
        yield f"job {job}"


SIGNALS = (kill_worker, kill_rank, terminate_worker, kill_launcher, interrupt_launcher, stop_rank)
ALL = (
    *SIGNALS,
    *(power_cut, disk_full, read_only, clock_back, quota_at_close, failing_run),
)
ON_SLURM = (
    *SIGNALS,
    *(disk_full, read_only, quota_at_close, failing_run, kill_job, requeue),
)
"""After a power cut, other jobs start while files are torn: no file of theirs would be safe from that."""
NEED_ROOT = (disk_full, read_only)
