"""Backend ``local``: this machine's cores or GPUs as slots, each rank a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import IO, final

from jobs.backend import Backend, Ended
from jobs.spec import Resources, RunSpec, Submission
from seqlm import machine
from seqlm.errors import BackendError, FileError
from seqlm.rundir import RunDirectory, make_directory

PEER_GRACE_SECONDS = 10.0
"""How long the other ranks of a run may take to notice that one has failed before they are ended."""


@dataclass
class _Job:
    ranks: list[subprocess.Popen[bytes]]
    cpus: int
    gpus: list[str]
    first_failure_at: float | None = field(default=None)


@final
class LocalBackend(Backend):
    """Slots are GPUs where the machine has some, and cores always."""

    name = "local"

    def __init__(self, *, max_parallel: int | None = None) -> None:
        self._cores = machine.cpu_count()
        self._free_gpus = [device for device, _ in machine.gpus()]
        self._gpus = len(self._free_gpus)
        self._max_parallel = max_parallel
        self._jobs: dict[str, _Job] = {}

    def describe(self) -> str:
        limit = f", at most {self._max_parallel} at once" if self._max_parallel else ""
        gpus = f"{self._gpus} GPUs, " if self._gpus else ""
        return f"this machine ({gpus}{self._cores} cores{limit})"

    def resolve(self, spec: RunSpec, runs: int) -> Resources:
        resources = spec.resources
        gpus = resources.gpus if resources.gpus is not None else min(1, self._gpus)
        if resources.ranks * gpus > self._gpus:
            raise BackendError(f"never fits: needs {resources.ranks * gpus} GPUs, this machine has {self._gpus}")
        if resources.cpus is not None and resources.ranks * resources.cpus > self._cores:
            raise BackendError(
                f"never fits: needs {resources.ranks * resources.cpus} cores "
                f"({resources.ranks} ranks of {resources.cpus}), this machine has {self._cores}"
            )
        if not gpus:
            _require_on_the_processor(spec)
        at_once = min(runs, self._max_parallel or runs, self._gpus // (resources.ranks * gpus) if gpus else runs)
        cpus = resources.cpus or max(1, self._cores // max(1, at_once * resources.ranks))
        return replace(resources, cpus=cpus, gpus=gpus)

    def has_room(self, resources: Resources) -> bool:
        assert resources.cpus is not None, "resources are resolved before they are asked for"
        assert resources.gpus is not None, "resources are resolved before they are asked for"
        if self._max_parallel is not None and len(self._jobs) >= self._max_parallel:
            return False
        # More ranks than cores share the whole machine; they wait until it is empty and then run.
        wanted = min(resources.ranks * resources.cpus, self._cores)
        used = sum(job.cpus for job in self._jobs.values())
        return used + wanted <= self._cores and resources.ranks * resources.gpus <= len(self._free_gpus)

    def submit(self, submission: Submission) -> str:
        resources = submission.resources
        assert resources.cpus is not None, "resources are resolved before they are submitted"
        run = RunDirectory(submission.run_dir)
        make_directory(run.attempt_dir(submission.attempt))
        gpus = [self._free_gpus.pop(0) for _ in range(resources.ranks * (resources.gpus or 0))]
        job = _Job(ranks=[], cpus=min(resources.ranks * resources.cpus, self._cores), gpus=gpus)
        try:
            with (
                run.stdout_log(submission.attempt).open("ab") as stdout,
                run.stderr_log(submission.attempt).open("ab") as stderr,
            ):
                for rank in range(resources.ranks):
                    env = self._rank_env(submission, rank, gpus)
                    job.ranks.append(self._start(submission, env, stdout, stderr, job.ranks))
        except OSError as error:
            self._end_processes(job, signal.SIGKILL)
            self._free_gpus.extend(gpus)
            raise FileError.from_os_error("start a worker in", submission.run_dir, error) from None
        job_id = str(job.ranks[0].pid)
        self._jobs[job_id] = job
        return job_id

    def poll(self, job_id: str) -> Ended | None:
        job = self._jobs[job_id]
        codes = [process.poll() for process in job.ranks]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed and None in codes:
            job.first_failure_at = job.first_failure_at or time.monotonic()
            if time.monotonic() - job.first_failure_at > PEER_GRACE_SECONDS:
                self._end_processes(job, signal.SIGKILL)
            return None
        if None in codes:
            return None
        del self._jobs[job_id]
        self._free_gpus.extend(job.gpus)
        if not failed:
            return Ended(exit_code=0, message="ended")
        # A rank killed by a signal explains the others, which only lost it.
        rank, code = min(failed, key=lambda pair: pair[1] or 0)
        assert code is not None, "only ended ranks are looked at"
        return Ended(exit_code=code, message=_describe_exit(rank, code, len(job.ranks)))

    def stop(self, job_id: str, *, force: bool) -> None:
        if job_id in self._jobs:
            self._end_processes(self._jobs[job_id], signal.SIGKILL if force else signal.SIGTERM)

    def _rank_env(self, submission: Submission, rank: int, gpus: list[str]) -> dict[str, str]:
        resources = submission.resources
        env = {**os.environ, **submission.env}
        if "PYTHONPATH" in os.environ and "PYTHONPATH" in submission.env:
            env["PYTHONPATH"] = os.pathsep.join((submission.env["PYTHONPATH"], os.environ["PYTHONPATH"]))
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(resources.cpus)
        env["SEQLM_DEVICE"] = "cuda" if gpus else "cpu"
        env["CUDA_VISIBLE_DEVICES"] = gpus[rank] if gpus else ""
        env.update(RANK=str(rank), WORLD_SIZE=str(resources.ranks), LOCAL_RANK="0")
        if resources.ranks > 1:
            meeting = RunDirectory(submission.run_dir).attempt_dir(submission.attempt) / "rendezvous"
            env["SEQLM_RENDEZVOUS"] = meeting.absolute().as_uri()
            env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        return env

    @staticmethod
    def _start(
        submission: Submission,
        env: dict[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        started: list[subprocess.Popen[bytes]],
    ) -> subprocess.Popen[bytes]:
        # One process group for each run: Ctrl-C in the launcher's terminal does not reach the workers, which the
        # launcher stops itself, and `cancel` from another terminal reaches all ranks at once.
        group = started[0].pid if started else 0
        return subprocess.Popen(
            submission.argv,
            cwd=submission.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=group,
        )

    @staticmethod
    def _end_processes(job: _Job, number: signal.Signals) -> None:
        for process in job.ranks:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        if number is signal.SIGKILL:
            for process in job.ranks:
                process.wait()


def _require_on_the_processor(spec: RunSpec) -> None:
    """Refuse now what the worker would refuse later (it also checks GPUs, which need torch to be asked)."""
    precision = spec.config.train.precision
    if precision == "tf32" or (precision == "bf16" and not machine.has_bf16()):
        needs = "an NVIDIA GPU" if precision == "tf32" else f"{' or '.join(machine.BF16_FLAGS)}, or an NVIDIA GPU"
        raise BackendError(
            f'{spec.name}: train.precision = "{precision}" needs {needs}; this run would be on the processor '
            f'({machine.cpu_model()}); use "fp32"'
        )


def _describe_exit(rank: int, code: int, ranks: int) -> str:
    who = f"rank {rank}" if ranks > 1 else "the worker"
    if code > 0:
        return f"{who} ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"{who} was killed by {signal.Signals(-code).name}"
    return f"{who} was killed by signal {-code}"
