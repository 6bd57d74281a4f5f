"""What runs inside a job, once for each rank: the workers of the job's runs, and what follows from how they end.

submitit pickles ``run_task`` by its name, and a path. Everything else is in the file at that path and in the run
directories, so a restarted job finds what its earlier start has left.

    SIGUSR2           the time limit is near, or a preemption is announced: the worker saves, the job is requeued
    SIGTERM           scancel, a requeue from outside, a preemption: the worker stops between two steps
    a lost rank       the job is requeued, within the study's policy (``jobs.manifests.policy``)
    out of memory     the same; the next worker takes its steps in twice as many micro-batches
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jobs.attempt.attempt import Attempt, prepare
from jobs.attempt.memory_kills import MemoryKills
from jobs.attempt.retry import Decision, let_stand, may_go_on, put_failure_aside
from jobs.attempt.supervisor import Ended, Supervisor, interface_of, rank_variables
from jobs.spec import Submission
from jobs.study.budget import BudgetWatch, KeptBudget
from jobs.study.folder import submission_of
from seqlm import machine
from seqlm.errors import EXIT_BUSY, EXIT_STOPPED, STOPPED_EXITS, FileError, SeqlmError, is_storage_failure
from seqlm.reading import exists
from seqlm.rundir import RunDirectory
from seqlm.state import FailureKind
from slurm.control import clock_ahead_s, job_words, look_again, requeue
from slurm.job import JobPlan, Signals, SlurmContext

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""Time between two looks at the folders of the runs, for a cancellation and for signs of life."""
BUSY_SECONDS = 5.0
"""Time to wait before starting a run again that another worker still holds, such as one on a node that SLURM lost."""
LIMIT_SLACK_SECONDS = 75.0
"""How much earlier than asked SLURM may announce a time limit: it looks once a minute (``man sbatch``, --signal)."""
GRACE_SECONDS = 1.0
"""How much later than a worker its task may get a signal that SLURM sends to both."""
END_SECONDS = 30.0
"""Time that a worker has to save after an error of its job, as SLURM's KillWait."""


def run_task(path: str) -> None:
    """Run this rank's part of the job whose plan is the file ``path``; exit with code 1 if a run has failed."""
    from submitit import JobEnvironment  # only inside a job

    started = time.time()
    signals = Signals()
    signals.install()
    plan = look_again(JobPlan.read, Path(path))
    context = SlurmContext.from_environment(os.environ, JobEnvironment().hostnames[0])
    task = Task(plan, context, signals, started=started)
    try:
        if not task.run():
            sys.exit(1)
    except Exception as error:
        if not task.give_up(error):
            raise


@dataclass
class _Worker:
    """The process of one run in this task."""

    attempt: Attempt
    first: Submission
    """Its attempt at this start of the job, as the job's plan has it."""
    rank: Supervisor | None = None
    ended: Ended | None = None
    again_at: float = 0.0
    """When to start it again, after it found another worker at the run."""
    asked: bool = False
    """Whether this task has asked it to stop."""
    waits: bool = False
    """Whether its run waits for the study's budget: it was not started, or asked to stop."""

    @property
    def run(self) -> RunDirectory:
        return self.attempt.run

    @property
    def was_stopped_by_others(self) -> bool:
        """Whether it ended as one that was asked to stop, which this task did not do."""
        return self.ended is not None and self.ended.exit_code in STOPPED_EXITS and not self.asked

    def ask(self) -> None:
        """Ask it to stop, once."""
        if not self.asked and self.rank is not None:
            self.asked = True
            self.rank.signal(signal.SIGTERM)


@final
class Task:
    """One rank of a job: starts the workers of its runs, passes signals on, and records how the runs ended.

    What reads or writes the files of a run raises ``FileError`` or ``OSError`` if it cannot.
    """

    def __init__(self, plan: JobPlan, context: SlurmContext, signals: Signals, *, started: float) -> None:
        self._plan = plan
        self._context = context
        self._signals = signals
        self._started = started
        self._memory_kills = MemoryKills()
        study_dir = plan.runs[0].run_dir.parent
        self._budget = KeptBudget(study_dir, plan.policy)
        self._spending = BudgetWatch(study_dir, self._budget.budget)
        self._where = f"job {context.job} on {context.host}"
        runs = [replace(first, attempt=first.attempt + context.restarts) for first in plan.runs]
        self._workers = [_Worker(attempt=Attempt(first, plan.policy), first=first) for first in runs]

    def run(self) -> bool:
        """Work until every run has ended or the job is requeued; return whether all is well.

        Raises:
            SeqlmError, OSError: the job itself has failed; call :meth:`give_up`.
        """
        todo = look_again(self._take_up)
        if self._context.rank == 0 and (why := self._budget.is_spent()) is not None:
            for worker in todo:
                worker.waits = True
                print(f"{worker.run.id} waits: {why}", flush=True)
            if todo and self._plan.resources.ranks > 1:
                return False  # srun then ends the other ranks, which wait for this one
            todo = []
        for worker in todo:
            self._start(worker)
        looked_at = 0.0
        while running := [worker for worker in todo if worker.ended is None]:
            now = time.time()
            if look := now - looked_at >= LOOK_SECONDS:
                looked_at = now
                if self._context.rank == 0:
                    self._look_at_budget(running)
            for worker in running:
                self._advance(worker, now, look=look)
            time.sleep(POLL_SECONDS)
        if self._context.rank != 0:
            for worker in todo:
                look_again(self._record_exit, worker)
            return True  # the first rank settles the run, and an exit code here could have SLURM end it before that
        again = [found for worker in todo if (found := look_again(self._settle, worker)) is not None]
        if again and self._requeue(again, todo):
            return True
        return all(worker.waits or look_again(self._has_ended_well, worker.run) for worker in self._workers)

    def give_up(self, error: Exception) -> bool:
        """Stop after an error of the job itself: its runs fail with it, and run again if the policy retries them.

        Return whether nothing is left to do here: the job was requeued, or its first rank settles the runs.
        """
        for worker in self._workers:
            if worker.rank is not None:
                worker.rank.end(END_SECONDS)
        kind: FailureKind = "node" if is_storage_failure(error) else "code"
        message = str(error) if isinstance(error, SeqlmError) else f"{type(error).__name__}: {error}"
        left = [worker for worker in self._workers if not self._is_settled(worker)]
        for worker in left:
            self._write_failure(worker, kind, message, node=self._context.host)
        if self._context.rank != 0:
            return kind == "node"
        failures = [(worker, worker.run.read_failure()) for worker in left if self._is_ours(worker.run)]
        again = [found for worker, failure in failures if failure and (found := self._again(worker, failure))]
        return bool(again) and self._requeue(again, left)

    def _is_ours(self, run: RunDirectory) -> bool:
        """Whether the run still belongs to this job: a cancelled or lost job must not touch it."""
        return submission_of(run) == self._plan.submission

    def _is_settled(self, worker: _Worker) -> bool:
        """Whether nothing is left to do in a run: it has ended well, or has failed for good."""
        run = worker.run
        with contextlib.suppress(FileError):  # a worker that starts says what is damaged
            if self._has_ended_well(run):
                return True
        return exists(run.failure_file) and not self._is_of_earlier_start(worker)

    def _has_ended_well(self, run: RunDirectory) -> bool:
        """Whether a run is done, or was stopped by a search."""
        return exists(run.stopped_file) or run.is_done()

    def _is_of_earlier_start(self, worker: _Worker) -> bool:
        """Whether a run's failure is that of an earlier start of this job, which ended before it could settle it."""
        number = worker.attempt.number
        with contextlib.suppress(FileError):
            failure = worker.run.read_failure() or {}
            return may_go_on(worker.run) and int(failure.get("attempt") or number) < number
        return False

    def _take_up(self) -> list[_Worker]:
        """Return the workers to start. Failures of earlier starts are put aside.

        The first rank does that. The other ranks, which may look earlier, ignore such a failure.
        """
        for worker in self._workers:
            if self._context.rank == 0 and self._is_ours(worker.run) and self._is_of_earlier_start(worker):
                put_failure_aside(worker.run)
        return [worker for worker in self._workers if self._is_ours(worker.run) and not self._is_settled(worker)]

    # -- the study's budget --------------------------------------------------------------------------------------

    def _look_at_budget(self, running: list[_Worker]) -> None:
        """Ask all workers to stop once the budget is spent. The other ranks of a run stop with its first."""
        if (why := self._spending.look()) is not None:
            for worker in running:
                if not worker.waits:
                    worker.waits = True
                    print(f"{worker.run.id} waits: {why}", flush=True)
                worker.ask()

    # -- workers -------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        context, first = self._context, worker.first
        submission = prepare(
            worker.run,
            first.attempt,
            argv=(sys.executable, *first.argv[:-1]),
            env=first.env,
            code=first.cwd,
            batch_size=worker.run.read_config().train.batch_size,
            resources=first.resources,
        )
        worker.attempt = Attempt(submission, self._plan.policy)
        variables = rank_variables(
            submission,
            context.rank,
            context.device() if first.resources.gpus else None,
            node=context.host,
            first_host=context.first_host,
            interface=interface_of(context.host) if first.resources.ranks > 1 else None,
            cores=machine.cpu_count(),  # a test cluster has more cores than its machine
        )
        worker.rank = Supervisor(submission, memory_kills=self._memory_kills, host=context.host)
        worker.rank.start(context.rank, variables)

    def _advance(self, worker: _Worker, now: float, *, look: bool) -> None:
        """Start a worker, note its end, ask it to stop, or look at its files."""
        if worker.rank is None:
            if self._signals.stop or worker.waits:
                worker.asked = True
                worker.ended = Ended(exit_code=EXIT_STOPPED, message="stopped before it had started")
            elif now >= worker.again_at:
                self._start(worker)
            return
        ended = worker.rank.poll()
        if ended is not None and ended.exit_code == EXIT_BUSY:
            worker.rank, worker.again_at = None, now + BUSY_SECONDS
        elif ended is not None:
            worker.ended = ended
        elif self._signals.stop:
            worker.ask()
        elif look:
            with contextlib.suppress(FileError, OSError):  # the next look is soon
                self._look_at(worker, worker.rank)

    def _look_at(self, worker: _Worker, rank: Supervisor) -> None:
        """Stop a worker whose run was cancelled, that outlives another rank, or that hangs.

        Every rank's task looks at the same files, so all ranks of a run that hangs are killed.
        """
        if worker.run.is_cancelled():
            worker.ask()
            return
        if self._plan.resources.ranks > 1 and exists(worker.run.failure_file):
            rank.peer_failed()
        if worker.attempt.is_hung():
            if self._is_ours(worker.run):
                with contextlib.suppress(FileError):
                    worker.attempt.record_hang(self._where)
            rank.signal(signal.SIGKILL)

    # -- how a run ended -----------------------------------------------------------------------------------------

    def _settle(self, worker: _Worker) -> tuple[str, Decision] | None:
        """Decide what follows from the end of a run. ``None``: its job need not run again for it."""
        run = worker.run
        has_failed = exists(run.failure_file) and not may_go_on(run)
        if has_failed or self._has_ended_well(run) or not self._is_ours(run):
            return None
        self._record_exit(worker)
        failure = run.read_failure()
        again = None if failure is None else self._again(worker, failure)
        if not self._signals.stop or (failure is not None and again is None):
            return again  # a failure that stands is not replaced by a signal that came meanwhile
        warned_at = self._signals.warned_at
        if warned_at is None:  # SLURM itself requeues the job or ends it, unless a user has cancelled it
            if "CANCELLED" in job_words(self._context.number):
                self._write_failure(worker, "cancelled", "cancelled by scancel")
            return None
        kind, message = "preempted", "preempted by another job"
        limit = self._context.end_time or self._started + 60 * self._plan.timeout_min
        if warned_at + clock_ahead_s() >= limit - self._plan.signal_before_s - LIMIT_SLACK_SECONDS:
            kind, message = "timeout", f"the job's time limit of {self._plan.timeout_min} min"
        return again or self._again(worker, worker.attempt.failure(kind, message, where=self._where))

    def _record_exit(self, worker: _Worker) -> None:
        """Write the failure of a worker that wrote none, unless the whole job was stopped.

        Of a rank that is not the first only a signal is a cause. With an exit code of its own, it may just have lost
        another rank, or have stopped with the first one, which alone looks at the study's budget.
        """
        if worker.was_stopped_by_others and not self._signals.stop:
            time.sleep(GRACE_SECONDS)  # for a signal to the whole job that has reached its worker first
        ended = worker.ended
        if ended is None or self._signals.stop or not self._is_ours(worker.run):
            return
        stops_with_first = not worker.was_stopped_by_others or bool(self._budget.budget)
        if self._context.rank != 0 and ended.exit_code >= 0 and stops_with_first:
            return
        worker.attempt.record_exit(ended, was_asked=worker.asked, where=self._where, node=self._context.host)

    def _again(self, worker: _Worker, failure: dict[str, Any]) -> tuple[str, Decision] | None:
        """Decide whether the job runs again for a run that has failed. ``None``: the failure stands."""
        run, attempt = worker.run, worker.attempt
        node = failure.get("node") or (self._context.host if self._context.nodes == 1 else None)
        decision = attempt.decide({**failure, "node": node})
        run.write_failure_once(failure)
        if decision.delay is None:
            let_stand(run, decision)
            return None
        put_failure_aside(run, micro_batches=attempt.micro_batches, node=node)
        return f"{failure.get('kind')}: {failure.get('message')}", decision

    def _requeue(self, again: list[tuple[str, Decision]], todo: list[_Worker]) -> bool:
        """Requeue the job; if SLURM refuses, record that in the runs that have not ended."""
        reason = again[0][0]
        problem = requeue(self._plan, self._context, reason, [decision for _, decision in again])
        if problem is None:
            return True
        message = f"{reason}; the job could not be requeued ({problem}); run again to resume"
        for worker in todo:
            if not self._has_ended_well(worker.run):
                self._write_failure(worker, reason.partition(":")[0], message)
        return False

    def _write_failure(self, worker: _Worker, kind: str, message: str, *, node: str | None = None) -> None:
        """Write the failure of a run of this job, unless there is one. ``node``: the one that failed."""
        if self._is_ours(worker.run):
            failure = worker.attempt.failure(kind, message, where=self._where, node=node)
            with contextlib.suppress(FileError):
                worker.run.write_failure_once(failure)
