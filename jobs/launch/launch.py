"""The one way to launch: prepare everything, then hand what is to do to the backend."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jobs import terminal
from jobs.backends.base import Backend, Executor
from jobs.launch import canary
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import Work, estimated, preparing
from jobs.plan.estimate import earlier_throughput
from jobs.plan.planned import PlannedRun
from jobs.plan.record import write_record
from jobs.study.kept_code import Code
from seqlm.errors import BackendError

Shown: TypeAlias = Callable[[Sequence[PlannedRun]], contextlib.AbstractContextManager[None]]
"""Shows planned runs to a person while the block carries them out."""


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What has become of a launch."""

    planned: Sequence[PlannedRun]
    jobs: Sequence[str] = ()
    """The ids of the jobs that go on without this process. Empty: everything has ended, or nothing was to do."""


def launch(study: StudySettings, order: Order, place: Backend, shown: Shown) -> Launched:
    """Prepare a launch, and carry it out on a backend: to the end of its runs, or until a scheduler has its jobs.

    ``shown`` shows the planned runs of the study to a person while they are carried out.

    Raises:
        RunBusyError: another launcher is running on this study.
        BackendError, DataError, FileError, UsageError: nothing has been started.
        CanaryError: a canary failed; nothing else has been started.
        KeyboardInterrupt: the workers have stopped, and their runs can be resumed.
    """
    place.check(study.path)
    with preparing(study, order, place) as (planned, work):
        if work is None:
            with shown(planned):
                return Launched(planned=planned)
        if place.why:
            terminal.tell(f"backend {place.name}, {place.why}")
        if not place.is_scheduled:
            _attend(work, place, shown)
            return Launched(planned=planned)
        scheduled: Any = place
        with shown(planned):
            return Launched(planned=planned, jobs=scheduled.carry(work))


def _attend(work: Work, place: Backend, shown: Shown) -> None:
    """Run the canaries of a launch, then its runs to their end."""
    study, todo = work.study, work.todo
    executor = opened(place, study.path, work.code)
    executor.env, executor.max_parallel = place.worker_env(), place.settings.max_parallel
    try:
        if work.has_canaries:
            canary.check(todo, executor, work.code, study)
            todo = [item for item in todo if not item.run.is_cancelled()]
            todo = estimated(todo, earlier_throughput(study.path.parent))
            if work.order.record is not None:
                write_record(study.path, work.order.record, todo, terminal.tell)
        with shown(work.planned):
            Dispatcher(executor, work.code, study, work.request.number).dispatch(todo)
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
