"""The one way to launch: prepare everything, then hand what is to do to the backend."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.base import Backend, Executor
from jobs.launch import canary
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import estimated, preparing
from jobs.plan.estimate import earlier_throughput
from jobs.plan.planned import PlannedRun
from jobs.plan.record import write_record
from jobs.spec import RunSpec
from jobs.study.budget import Budget
from jobs.study.kept_code import Code
from seqlm.errors import BackendError
from seqlm.requests import Request


@dataclass(frozen=True, kw_only=True)
class Afterwards:
    """What a scheduler is to do once the last run has ended, since nobody waits for it."""

    report: bool = False
    """Write the report."""
    behaviour: bool | None = None
    """Whether to compute the behaviour of the models for it. ``None``: of those that this user has launched."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A launch that is prepared: its study is owned, everything is checked, and its request is filed."""

    planned: Sequence[PlannedRun]
    """All runs."""
    todo: Sequence[PlannedRun]
    """Those that start or resume."""
    code: Code
    request: Request
    options: LaunchOptions
    """With the request."""
    spent: str | None
    """Why nothing starts: the budget of the study is spent. ``None``: it is not."""
    has_canaries: bool
    """Whether canaries go first."""
    afterwards: Afterwards


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What has become of a launch."""

    planned: Sequence[PlannedRun]
    jobs: Sequence[str] = ()
    """The ids of the jobs that go on without this process. Empty: everything has ended, or nothing was to do."""

    @property
    def todo(self) -> list[PlannedRun]:
        """The runs that start or resume."""
        return [item for item in self.planned if item.action != "skip"]


def launch(
    specs: Sequence[RunSpec],
    backend: Backend,
    options: LaunchOptions,
    shown: Callable[[Sequence[PlannedRun]], contextlib.AbstractContextManager[None]],
    afterwards: Afterwards = Afterwards(),
) -> Launched:
    """Prepare a launch, and carry it out on a backend: to the end of its runs, or until a scheduler has its jobs.

    ``shown`` shows the planned runs of the study to a person while they are carried out.

    Raises:
        RunBusyError: another launcher is running on this study.
        BackendError, DataError, FileError, UsageError: nothing has been started.
        CanaryError: a canary failed; nothing else has been started.
        KeyboardInterrupt: the workers have stopped, and their runs can be resumed.
    """
    scheduled: Any = backend if backend.is_scheduled else None
    if scheduled is not None:
        scheduled.check(options.study_dir)
    with preparing(specs, backend, options) as (planned, prepared):
        if prepared is None:
            with shown(planned):
                return Launched(planned=planned)
        code, request = prepared
        if backend.why:
            terminal.tell(f"backend {backend.name}, {backend.why}")
        todo = [item for item in planned if item.action != "skip"]
        spent = Budget(options.study_dir, options.policy).is_spent()
        work = Work(
            planned=planned,
            todo=todo,
            code=code,
            request=request,
            options=replace(options, request=request.number),
            spent=spent,
            has_canaries=spent is None and canary.wanted(options.canary, todo),
            afterwards=afterwards,
        )
        if scheduled is None:
            _attend(work, backend, shown)
            return Launched(planned=planned)
        with shown(planned):
            return Launched(planned=planned, jobs=scheduled.carry(work))


def _attend(
    work: Work, backend: Backend, shown: Callable[[Sequence[PlannedRun]], contextlib.AbstractContextManager[None]]
) -> None:
    """Run the canaries of a launch, then its runs to their end."""
    options, todo = work.options, work.todo
    executor = opened(backend, options.study_dir, work.code)
    try:
        if work.has_canaries:
            canary.check(todo, executor, work.code, options)
            left = [item for item in todo if not item.run.is_cancelled()]
            todo = estimated(left, earlier_throughput(options.study_dir.parent))
            if options.record is not None:
                write_record(options.study_dir, options.record, todo, terminal.tell)
        with shown(work.planned):
            Dispatcher(executor, work.code, options).dispatch(todo)
    finally:
        executor.close()


def opened(backend: Backend, study_dir: Path, code: Code) -> Executor:
    """Return what starts the runs of a study, open. If the backend cannot be started, it is that of its stand-in.

    Raises:
        BackendError: it cannot be started, and there is no other.
    """
    executor: Executor | None = None
    try:
        executor = backend.executor(study_dir)
        executor.open(code)
    except BaseException as error:
        if executor is not None:
            executor.close()
        if backend.stand_in is None or not isinstance(error, BackendError):
            raise
        terminal.tell(f"warning: {error}; these runs go to backend {backend.stand_in.name}")
        return opened(backend.stand_in, study_dir, code)
    return executor


# -- what has changed since runs of a study were launched ------------------------------------------------------------
