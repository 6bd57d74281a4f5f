"""Stories in which the simulation has found a fault that is mended since.

The order of calls changes with the product, so each is played in several orders. That it still finds its fault is seen
by bringing the fault back (``undo``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.launch.dispatch import Dispatcher
from jobs.plan.queue import Queue
from jobs.study import budget
from seqlm.files import write_json
from seqlm.reading import moment
from seqlm.rundir import RunDirectory
from slurm import job, share
from tests.simulation.accidents import Accident
from tests.simulation.study import Study


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A story, as ``python -m tests.simulation SEED --shrink`` prints it."""

    name: str
    fault: str
    """What was wrong."""
    check: str
    """The check that has found it."""
    study: Study
    accidents: Sequence[Accident]
    undo: Callable[[], None]
    """Brings the fault back."""
    orders: Sequence[int] = (0, 1, 2)
    """Seeds of the orders in which it is played. With the fault brought back, one of them finds it."""


def _any_request_is_the_newest() -> None:
    share.is_named_by = lambda run, request: True


def _any_request_is_the_newest_to_a_dispatcher() -> None:
    Dispatcher._is_ours = lambda self, item: True  # type: ignore[method-assign]


def _failed_runs_are_offered_again() -> None:
    before = job.JobHost.next_run

    def next_run(self: job.JobHost, free: Any, *, is_idle: bool, but: object) -> Any:
        return before(self, free, is_idle=is_idle, but=())

    job.JobHost.next_run = next_run  # type: ignore[method-assign]


def _runs_that_seem_to_run_are_not_put_back() -> None:
    before = job._again

    def again(run: RunDirectory, host: job.JobHost, why: str | None) -> Any:
        return None if why is None and run.observe().state == "running" else before(run, host, why)

    job._again = again


def _runs_that_seem_to_run_are_not_settled() -> None:
    _runs_that_seem_to_run_are_not_put_back()

    def settle(self: Dispatcher) -> None:
        if (stopped := self._host.stopped()) is not None:
            for one in self._live:
                if one.ended and self._is_ours(one.item) and one.item.run.observe().state in ("pending", "failed"):
                    one.attempt.record(*stopped)

    Dispatcher._settle_stopped = settle  # type: ignore[method-assign]


def _a_run_is_put_back_at_once() -> None:
    before = Queue.put_back
    Queue.put_back = lambda self, item, **_: before(self, item)  # type: ignore[method-assign]


def _no_budget_is_spent() -> None:
    job._is_spent = lambda budget: False


def _live_ranks_count_by_two_clocks() -> None:
    budget._start_of = lambda worker, by: moment(worker.get("started_at"))


def _results_are_written_again() -> None:
    def write(self: RunDirectory, result: Any, *, guard: Any) -> None:
        write_json(self.result_file, result, guard=guard)

    RunDirectory.write_result = write  # type: ignore[method-assign]


KEPT = (
    Kept(
        name="busy-preemption",
        fault="a job was not put back after a preemption: its run had a worker on a node that SLURM had lost",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=2, is_pool=False),
        accidents=[
            Accident(at=300.0, kind="cut_off_node", target=0.0, seconds=1000.0),
            Accident(at=760.0, kind="preempt", target=0.0, seconds=5.0),
        ],
        undo=_runs_that_seem_to_run_are_not_put_back,
    ),
    Kept(
        name="later-request",
        fault="a job of a pool looked again and again at a run that was cancelled and launched again meanwhile",
        check="SPIN",
        study=Study(runs=4, jobs=1, epoch_seconds=600.0, minutes=240),
        accidents=[Accident(at=269.0, kind="cancel_and_retry", target=0.98, seconds=5.0)],
        undo=_any_request_is_the_newest,
    ),
    Kept(
        name="old-scancel",
        fault="scancel of an old job cancelled a run that a later request had launched again",
        check="END",
        study=Study(runs=5, jobs=1, epoch_seconds=20.0, minutes=240),
        accidents=[
            Accident(at=51.06, kind="cancel_and_retry", target=0.84, seconds=1500.0),
            Accident(at=140.12, kind="scancel", target=0.87, seconds=30.0),
        ],
        undo=_any_request_is_the_newest_to_a_dispatcher,
        orders=(8, 9),
    ),
    Kept(
        name="full-disk",
        fault="a job of a pool looked again and again at a run for which there was no room on the disk",
        check="SPIN",
        study=Study(runs=4, jobs=1, epoch_seconds=60.0, minutes=240),
        accidents=[Accident(at=186.0, kind="disk_full", target=0.0, seconds=30.0)],
        undo=_failed_runs_are_offered_again,
    ),
    Kept(
        name="early-preemption",
        fault="a job that was preempted while a worker began did not come back",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=20.0, minutes=20),
        accidents=[
            Accident(at=58.27, kind="kill_worker", target=0.03, seconds=5.0),
            Accident(at=103.4, kind="kill_worker", target=0.46, seconds=5.0),
            Accident(at=252.7, kind="preempt", target=0.54, seconds=5.0),
        ],
        undo=_runs_that_seem_to_run_are_not_settled,
    ),
    Kept(
        name="spent-budget",
        fault="a job was put back again and again once the budget was spent",
        check="SPIN",
        study=Study(runs=3, jobs=1, epoch_seconds=300.0, minutes=20, nodes=1, core_hours=0.7318),
        accidents=[Accident(at=85.79, kind="kill_worker", target=0.91, seconds=400.0)],
        undo=_no_budget_is_spent,
    ),
    Kept(
        name="second-result",
        fault="a run was finished twice, and its result written again, since a host had not seen the first one yet",
        check="KEPT",
        study=Study(runs=5, jobs=3, epoch_seconds=20.0, minutes=240),
        accidents=[Accident(at=8.0, kind="files_late", target=0.9, seconds=5.0)],
        undo=_results_are_written_again,
    ),
    Kept(
        name="late-attempts",
        fault="a job looked again and again at a run that another job had started, until its listing showed that",
        check="SPIN",
        study=Study(runs=6, jobs=3, epoch_seconds=600.0, minutes=20, is_search=True, core_hours=1.6417),
        accidents=[Accident(at=867.09, kind="files_late", target=0.87, seconds=90.0)],
        undo=_a_run_is_put_back_at_once,
        orders=(10,),
    ),
    Kept(
        name="two-clocks",
        fault="the time of a rank that lives counted from a start by the clock of its node to a sign of life by that "
        "of another node, and runs stopped before their budget was spent",
        check="END",
        study=Study(
            runs=2,
            jobs=1,
            epoch_seconds=600.0,
            minutes=20,
            nodes=2,
            is_pool=False,
            ranks=2,
            ranks_per_node=1,
            core_hours=2.1213,
        ),
        accidents=[Accident(at=1047.9, kind="clock_wrong", target=0.4716, seconds=400.0)],
        undo=_live_ranks_count_by_two_clocks,
    ),
)
