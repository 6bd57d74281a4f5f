"""What a job knows on its node: its plan, the variables that SLURM sets, and the signals that came."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from seqlm import machine
from seqlm.errors import BackendError
from seqlm.files import write_json
from seqlm.reading import read_bytes


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What one job does, as its submission recorded it."""

    submission: str
    """The entry of each run in the study's record of jobs while the run belongs to this job."""
    runs: tuple[Submission, ...]
    """The attempt of each run at the first start of the job; each restart adds one. Several runs share a GPU.

    Their command lines lack the interpreter. Code, command and resources are the same for all.
    """
    policy: Policy
    timeout_min: int
    signal_before_s: int
    exclude: str | None
    """Nodes that the job must not get, as a SLURM host list. ``None``: no node is excluded."""
    must_have_nodes: bool
    """Whether the settings name the nodes of the job, so that none can be excluded."""

    @property
    def resources(self) -> Resources:
        """The resources of each run."""
        return self.runs[0].resources

    def write(self, path: Path) -> None:
        """Write the plan for :meth:`read`."""
        write_json(path, asdict(self), sync=False)

    @classmethod
    def read(cls, path: Path) -> JobPlan:
        """Read a plan that :meth:`write` wrote.

        Raises:
            OSError: the file cannot be read.
        """
        from pydantic import TypeAdapter  # inside a job only

        return TypeAdapter(cls).validate_json(read_bytes(path))


@dataclass(frozen=True, kw_only=True)
class SlurmContext:
    """The rank and the job of this process, from the variables that SLURM sets."""

    job: str
    """The id that SLURM's commands accept: ``12`` or ``12_3``."""
    number: int
    """The number of this job alone: each task of an array has its own."""
    rank: int
    local_rank: int
    restarts: int
    end_time: float | None
    """When the time limit ends, in seconds since 1970. ``None``: unknown."""
    devices: tuple[str, ...]
    """GPUs of this job on this node."""
    first_host: str
    host: str
    nodes: int
    """The number of nodes of the job."""
    partition: str

    def device(self) -> str:
        """Return this rank's GPU, for CUDA_VISIBLE_DEVICES.

        Raises:
            BackendError: the job has no GPU.
        """
        if not self.devices:
            raise BackendError("SLURM gave this job no GPU: CUDA_VISIBLE_DEVICES is empty; see gres.conf (File=)")
        return machine.addressed(self.devices[self.local_rank % len(self.devices)])

    @classmethod
    def from_environment(cls, env: Mapping[str, str], first_host: str) -> SlurmContext:
        """Read SLURM's variables."""
        array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
        end = env.get("SLURM_JOB_END_TIME", "")
        return cls(
            job=f"{array}_{task}" if array else env["SLURM_JOB_ID"],
            number=int(env["SLURM_JOB_ID"]),
            rank=int(env.get("SLURM_PROCID", "0")),
            local_rank=int(env.get("SLURM_LOCALID", "0")),
            restarts=int(env.get("SLURM_RESTART_COUNT") or 0),
            end_time=float(end) if end.isdigit() else None,
            devices=tuple(device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device),
            first_host=first_host,
            host=env.get("SLURMD_NODENAME") or socket.gethostname(),
            nodes=int(env.get("SLURM_JOB_NUM_NODES") or 1),
            partition=env.get("SLURM_JOB_PARTITION", ""),
        )


@dataclass
class Signals:
    """The signals that have come. The task's loop acts on them between two rounds."""

    warned_at: float | None = None
    """When SIGUSR2 came, in seconds since 1970. ``None``: it has not come."""
    told: bool = False
    """Whether SIGTERM or SIGINT came."""

    def install(self) -> None:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.warned_at = self.warned_at or time.time()
        else:
            self.told = True

    @property
    def stop(self) -> bool:
        return self.told or self.warned_at is not None
