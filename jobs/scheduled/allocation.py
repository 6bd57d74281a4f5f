"""The cores and GPUs of a job as a backend."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import final

from jobs.attempt.supervisor import Ended, first_cause, interface_of, rank_variables
from jobs.backends.local import LocalBackend
from jobs.launch.job import stop_seconds
from jobs.plan import capacity
from jobs.plan.capacity import Capacity, Card, Node
from jobs.scheduled.slot import Start
from jobs.scheduled.submission import JobPlan
from jobs.spec import Submission
from jobs.study.scheduler import Allocation, Scheduler
from seqlm import machine
from seqlm.environment import MICRO_BATCHES
from seqlm.errors import EXIT_LOST, BackendError, FileError
from seqlm.records.batch import Joint
from seqlm.rundir import RunDirectory

LOST_SECONDS = 120.0
"""How long after its ranks on the first node a run waits for those on the others. A lost node ends the whole job."""


@final
class JobBackend(LocalBackend):
    """The cores and GPUs of a job, whose ranks on this node it starts. Each node does so."""

    def __init__(
        self, scheduler: Scheduler, context: Allocation, plan: JobPlan, number: int, first_host: str, start: Start
    ) -> None:
        """``number``: of the job's array; ``first_host``: its first node; ``start``: this start of the job.

        Raises:
            BackendError: the scheduler gave the job fewer GPUs than it asked for.
        """
        array = plan.arrays[number]
        self.name = scheduler.name  # type: ignore[misc]
        self.env, self.max_parallel = plan.env, array.at_once
        self.job, self.host, self.memory_mb = context.job, context.host, context.memory_mb
        self.node = context.host if context.nodes == 1 else None
        self.ends_at = context.end_time
        self._context, self._first_host = context, first_host
        gpus = {machine.addressed(device): 1.0 for device in context.devices} if array.gpus else {}
        # The nodes of a job are alike.
        card = Card(type=array.accelerator_type or "")
        names = [context.host if number == context.node_rank else str(number) for number in range(context.nodes)]
        nodes = [Node(name=name, cpus=array.cpus, gpus=dict(gpus), cards=dict.fromkeys(gpus, card)) for name in names]
        super().__init__(capacity=Capacity(nodes, where=f"job {context.job}"))
        if len(gpus) < array.gpus:
            has = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}" if gpus else "no GPU"
            variable = f"is {','.join(context.devices)}" if context.devices else "is empty"
            advice = f"; {scheduler.NO_GPUS}" if scheduler.NO_GPUS else ""
            raise BackendError(f"{scheduler.title} gave this job {has}: CUDA_VISIBLE_DEVICES {variable}{advice}")
        self._start, self._joints = start, 0
        self._ended: tuple[Ended, float] | None = None
        """How the ranks of a run on several nodes ended on this node, and when, while those on others have not."""

    def here(self, allocations: Sequence[capacity.Allocation]) -> Iterable[tuple[int, capacity.Allocation]]:
        return [one for one in enumerate(allocations) if one[1].node == self._context.host]

    def variables(self, submission: Submission, rank: int, device: str | None) -> dict[str, str]:
        return rank_variables(
            submission,
            rank,
            device,
            node=self._context.host,
            first_host=self._first_host,
            interface=interface_of(self._context.host) if submission.resources.ranks > 1 else None,
            cores=machine.cpu_count(),  # a test cluster has more cores than its machine
        )

    def submit(self, submission: Submission) -> str:
        self._submission = submission  # a job with several nodes has one run at a time
        if self._context.nodes > 1 and self._context.node_rank == 0:
            self._joints += 1
            parts = MICRO_BATCHES.read(submission.env)
            joint = Joint(run=submission.run_dir.name, attempt=submission.attempt, micro_batches=parts)
            self._start.note_joint(self._joints, joint)
        return super().submit(submission)

    def follow(
        self,
        job_id: str,
        poll_seconds: float,
        *,
        is_stopped: Callable[[], bool],
        most_seconds: float,
        has_peer_failed: Callable[[], bool],
    ) -> Ended:
        """Wait for the ranks on a node that is not the first, as :meth:`jobs.attempt.supervisor.Supervisor.follow`.

        ``most_seconds``: how long they may take to stop, if the time limit of the job leaves as much.
        """
        ranks, _, _ = self._jobs[job_id]
        ended = ranks.follow(
            poll_seconds,
            is_stopped=is_stopped,
            has_peer_failed=has_peer_failed,
            stop_seconds=functools.partial(stop_seconds, most_seconds, self.ends_at),
        )
        del self._jobs[job_id]
        return ended

    def poll(self, job_id: str) -> Ended | None:
        ended, since = self._ended or (super().poll(job_id), time.monotonic())
        if ended is None or self._context.nodes == 1:
            return ended
        self._ended, ends = (ended, since), [ended]
        for node in range(1, self._context.nodes):
            end = None
            with contextlib.suppress(FileError):  # the next look is soon
                end = Ended.read_file(node_file(self._submission, node))
            if end is None and time.monotonic() - since < LOST_SECONDS:
                return None
            message = f"node {node} of the job does not answer"
            ends.append(end or Ended(exit_code=EXIT_LOST, message=message, is_lost=True))
        self._ended = None
        return first_cause(ends)


def node_file(submission: Submission, node: int) -> Path:
    """Return the file in which a node that is not the first records how its ranks of an attempt ended."""
    return RunDirectory(submission.run_dir).attempt_dir(submission.attempt) / f"node-{node}.json"
