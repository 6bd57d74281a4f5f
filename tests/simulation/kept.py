"""Stories in which the simulation has found a fault that is mended since.

The order of calls changes with the product, so each is played in several orders. That it still finds its fault is seen
by bringing the fault back (``undo``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.attempt import attempt, supervisor
from jobs.cli import studying
from jobs.launch import dispatch, prepare
from jobs.launch.dispatch import Dispatcher
from jobs.scheduled import allocation, job, share
from jobs.scheduled.slot import OVER, Start
from jobs.scheduled.submission import Asked
from jobs.study.stopping import Stopping
from seqlm import ends, lease
from seqlm.ends import End
from seqlm.records import attempts
from seqlm.rundir import RunDirectory
from slurm.backend import SlurmBackend
from slurm.scheduler import Slurm
from tests.simulation import script
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


def _orphans_are_left_alone() -> None:
    prepare.orphaned = lambda planned: []


def _any_request_is_the_newest() -> None:
    share.is_named_by = lambda run, request: True


def _any_request_is_the_newest_to_a_dispatcher() -> None:
    Dispatcher._is_ours = lambda self, item: True  # type: ignore[method-assign]


def _runs_that_seem_to_run_are_not_put_back() -> None:
    before = job._again

    def again(run: RunDirectory, host: job.JobHost, why: str | None) -> Any:
        return None if why is None and run.observe().state == "running" else before(run, host, why)

    job._again = again


def _any_lease_is_of_the_newest_attempt() -> None:
    def has_owner(self: RunDirectory, attempts: Sequence[int], newest: End | None) -> bool:
        return not (newest is not None and newest.has_ended) and lease.live_owner(self.lease_dir) is not None

    RunDirectory._has_owner = has_owner  # type: ignore[method-assign]


def _runs_that_seem_to_run_are_not_settled() -> None:
    _runs_that_seem_to_run_are_not_put_back()
    _any_lease_is_of_the_newest_attempt()

    def settle(self: Dispatcher) -> None:
        if (stopped := self._host.stopped()) is not None:
            for one in self._live:
                if one.ended and self._is_ours(one.item) and one.item.run.observe().state in ("pending", "failed"):
                    one.attempt.record(*stopped)

    Dispatcher._settle_stopped = settle  # type: ignore[method-assign]


def _results_are_written_again() -> None:
    def write(self: RunDirectory, result: Any, *, guard: Any) -> None:
        result.write(self.path, guard=guard)

    RunDirectory.write_result = write  # type: ignore[method-assign]


def _a_program_that_fails_is_over() -> None:
    before = script.JobScript.play

    def play(self: script.JobScript, launch: Callable[[Path], int]) -> int:
        def noted(start: Path) -> int:
            code = launch(start)
            if code:
                (start.parent / OVER).write_text(f"{code}\n", "utf-8")
            return code

        return before(self, noted)

    script.JobScript.play = play  # type: ignore[method-assign]


def _a_sick_node_ends_its_job() -> None:
    before = job._again

    def again(run: RunDirectory, host: job.JobHost, why: str | None) -> Any:
        return None if host.is_sick else before(run, host, why)

    job._again = again


def _a_script_asks_four_times() -> None:
    before = script.JobScript._standing

    def standing(self: script.JobScript) -> str | None:
        found = before(self)
        self.silent = getattr(self, "silent", 0) + (found is None)  # type: ignore[attr-defined]
        return "over" if self.silent >= 4 else found  # type: ignore[attr-defined]

    script.JobScript._standing = standing  # type: ignore[method-assign]


def _a_time_limit_ends_a_job_for_good() -> None:
    before = script.JobScript._standing

    def standing(self: script.JobScript) -> str | None:
        found = before(self)
        return "over" if found == "limit" else found

    script.JobScript._standing = standing  # type: ignore[method-assign]


def _a_job_gives_up_at_its_second_idle_start() -> None:
    script.MOST_STARTS, script.MOST_IDLE = 1, 2


def _lost_workers_leave_no_word() -> None:
    dispatch.end_left = lambda run, where: None


def _an_attempt_without_a_record_has_no_job() -> None:
    def newest(self: share.Share, run: RunDirectory) -> attempts.Start:
        number = run.last_attempt()
        return (attempts.Start.read(run.attempt_dir(number)) if number else None) or attempts.Start()

    share.Share._newest = newest  # type: ignore[method-assign]


def _a_run_that_was_given_up_is_offered_again() -> None:
    _an_attempt_without_a_record_has_no_job()  # else the job knows that it has begun the run
    before = Dispatcher._have_trouble

    def have_trouble(self: Dispatcher, *arguments: Any) -> None:
        known = {*self._not_here}
        before(self, *arguments)
        self._not_here = known

    Dispatcher._have_trouble = have_trouble  # type: ignore[method-assign]


def _cancel_waits_for_nothing() -> None:
    Stopping.wait = lambda self, seconds: {}  # type: ignore[method-assign]


def _cancel_leaves_canaries() -> None:
    studying.cancel_canaries = lambda study_dir: []


def _workers_have_the_time_of_the_signal() -> None:
    dispatch.stop_seconds = lambda most, ends_at: most


def _ranks_on_other_nodes_have_the_time_of_their_job() -> None:
    follow = supervisor.Supervisor.follow

    def follow_without_end(self: Any, seconds: float, **conditions: Any) -> Any:
        return follow(self, seconds, **{**conditions, "stop_seconds": lambda: math.inf})

    supervisor.Supervisor.follow = follow_without_end  # type: ignore[method-assign]
    Start.has_ended = lambda self: False  # type: ignore[method-assign]


def _a_grid_starts_only_if_the_job_of_its_canaries_ends_well() -> None:
    options = SlurmBackend._options

    def with_afterok(self: SlurmBackend, asked: Asked) -> dict[str, Any]:
        found = options(self, asked)
        after = found["dependency"]
        is_grid = asked.array is not None and after is not None
        return {**found, "dependency": after.replace("afterany", "afterok") if is_grid else after}

    SlurmBackend._options = with_afterok  # type: ignore[method-assign]


def _an_aborted_rank_explains_all_others() -> None:
    ends.OWN_SIGNALS = supervisor.OWN_SIGNALS = ()


def _no_scancel_is_noticed() -> None:
    Slurm.is_cancelled = lambda self, allocation: False  # type: ignore[method-assign]


def _workers_that_find_another_one_have_failed() -> None:
    attempt.EXIT_BUSY = -1


def _a_node_is_waited_for_without_end() -> None:
    allocation.LOST_SECONDS = 1e9


def _runs_that_cannot_be_read_are_left() -> None:
    before = job._again

    def again(run: RunDirectory, host: job.JobHost, why: str | None) -> Any:
        host.unread.discard(run.id)
        return before(run, host, why)

    job._again = again


_QUOTA_OF_TWO_JOBS = (
    Accident(at=75.7, kind="quota_used_up", target=0.96, seconds=1500.0),
    Accident(at=139.1, kind="quota_used_up", target=0.65, seconds=5.0),
)

KEPT = (
    Kept(
        name="busy-preemption",
        fault="a job was not put back after a preemption: its run had a worker on a node that SLURM had lost",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=2),
        accidents=[
            Accident(at=300.0, kind="cut_off_node", target=0.0, seconds=1000.0),
            Accident(at=760.0, kind="preempt", target=0.0, seconds=5.0),
        ],
        undo=_runs_that_seem_to_run_are_not_put_back,
        orders=(2, 3),
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
        check="ATTEMPTS",
        study=Study(runs=5, jobs=1, epoch_seconds=20.0, minutes=240),
        accidents=[
            Accident(at=51.06, kind="cancel_and_retry", target=0.84, seconds=1500.0),
            Accident(at=140.12, kind="scancel", target=0.87, seconds=30.0),
        ],
        undo=_any_request_is_the_newest_to_a_dispatcher,
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
        name="second-result",
        fault="a run was finished twice, and its result written again, since a host had not seen the first one yet",
        check="KEPT",
        study=Study(runs=5, jobs=3, epoch_seconds=20.0, minutes=240),
        accidents=[Accident(at=8.0, kind="files_late", target=0.9, seconds=5.0)],
        undo=_results_are_written_again,
    ),
    Kept(
        name="killed-program",
        fault="a job whose program was killed did not come back",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=1),
        accidents=[Accident(at=51.8, kind="kill_program", target=0.135, seconds=1500.0)],
        undo=_a_program_that_fails_is_over,
    ),
    Kept(
        name="no-device",
        fault="a job that started on a node whose GPUs were gone did not come back",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=2),
        accidents=[Accident(at=1.0, kind="node_without_device", target=0.0, seconds=4000.0)],
        undo=_a_sick_node_ends_its_job,
    ),
    Kept(
        name="silent-controller",
        fault="a job did not come back: the controller answered nothing for a minute",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=20, nodes=1),
        accidents=[Accident(at=1040.0, kind="silence", target=0.5, seconds=400.0)],
        undo=_a_script_asks_four_times,
        orders=(2, 8, 11),
    ),
    Kept(
        name="silent-files",
        fault="a job did not come back: the file server answered nothing at its time limit",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=20, nodes=1),
        accidents=[Accident(at=8.25, kind="files_hang", target=0.85, seconds=4000.0)],
        undo=_a_time_limit_ends_a_job_for_good,
    ),
    Kept(
        name="long-full-disk",
        fault="a job did not come back: the disk was full for longer than a few starts of it took",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=20, nodes=1),
        accidents=[Accident(at=1000.0, kind="disk_full", target=0.48, seconds=1500.0)],
        undo=_a_job_gives_up_at_its_second_idle_start,
    ),
    Kept(
        name="lost-twice",
        fault="a job trained again on a node that it had lost twice in a row, since nothing recorded that",
        check="NODES",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=3, is_pool=False),
        accidents=[
            Accident(at=400.0, kind="lose_node", target=0.0, seconds=30.0),
            Accident(at=1500.0, kind="lose_node", target=0.0, seconds=30.0),
        ],
        undo=_lost_workers_leave_no_word,
    ),
    Kept(
        name="aborted-rank",
        fault="an error of the code was tried again: another rank, which had lost the one with the error, had aborted",
        check="RETRIES",
        study=Study(runs=6, jobs=1, epoch_seconds=60.0, minutes=240, is_pool=False, ranks=2),
        accidents=[
            Accident(at=42.0, kind="ranks_abort", target=0.36, seconds=4000.0),
            Accident(at=95.7, kind="code_error", target=0.995, seconds=400.0),
        ],
        undo=_an_aborted_rank_explains_all_others,
    ),
    Kept(
        name="no-quota-for-canaries",
        fault="a job of canaries looked again and again at a run that it had given up, which it could not record",
        check="SPIN",
        study=Study(runs=5, jobs=2, epoch_seconds=60.0, minutes=240, has_canaries=True, most_jobs=5),
        accidents=[Accident(at=6.85, kind="quota_used_up", target=0.28, seconds=4000.0)],
        undo=_a_run_that_was_given_up_is_offered_again,
    ),
    Kept(
        name="cancelled-at-its-start",
        fault="`cancel` said that a run was cancelled whose worker had just been started, and lived",
        check="CANCELLED",
        study=Study(runs=2, jobs=1, epoch_seconds=60.0, minutes=240),
        accidents=[
            Accident(at=1.0, kind="slow_start", target=0.0, seconds=400.0),
            Accident(at=20.0, kind="cancel", target=0.0, seconds=5.0),
        ],
        undo=_cancel_waits_for_nothing,
    ),
    Kept(
        name="canaries-of-nothing",
        fault="`cancel` of all runs of a launch left its canaries alone",
        check="CANCELLED",
        study=Study(runs=2, jobs=1, epoch_seconds=60.0, minutes=240, backend="local", has_canaries=True),
        accidents=[
            Accident(at=0.0, kind="slow_start", target=0.0, seconds=400.0),
            Accident(at=10.0, kind="cancel", target=0.5, seconds=5.0),
            Accident(at=11.0, kind="cancel", target=0.0, seconds=5.0),
        ],
        undo=_cancel_leaves_canaries,
    ),
    Kept(
        name="deaf-at-the-limit",
        fault="a worker that looked at no signal lived until SLURM killed it, with its job",
        check="LIMIT",
        study=Study(runs=2, jobs=1, epoch_seconds=300.0, minutes=20, is_pool=False, signal_before_s=30),
        accidents=[Accident(at=800.0, kind="hang_worker", target=0.0, seconds=1500.0)],
        undo=_workers_have_the_time_of_the_signal,
        orders=(6, 8, 12, 16),
    ),
    Kept(
        name="deaf-on-the-second-node",
        fault="a rank on another node than the first looked at no signal, and lived until SLURM killed it",
        check="LIMIT",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=20, ranks=3, ranks_per_node=1, is_pool=False),
        accidents=[Accident(at=672.0, kind="hang_worker", target=0.001, seconds=1500.0)],
        undo=_ranks_on_other_nodes_have_the_time_of_their_job,
        orders=(4, 6, 8),
    ),
    Kept(
        name="canary-without-memory",
        fault="a grid waited for ever: SLURM had ended the job of its canary, before or just after that passed",
        check="LEFT",
        study=Study(runs=2, jobs=1, epoch_seconds=60.0, minutes=240, has_canaries=True),
        accidents=[
            Accident(at=0.0, kind="slow_start", target=0.0, seconds=400.0),
            Accident(at=30.0, kind="memory_of_job_used_up", target=0.0, seconds=5.0),
        ],
        undo=_a_grid_starts_only_if_the_job_of_its_canaries_ends_well,
    ),
    Kept(
        name="unseen-scancel",
        fault="a job that its user had cancelled with scancel did not record that",
        check="SCANCEL",
        study=Study(runs=3, jobs=2, epoch_seconds=600.0, minutes=240),
        accidents=[Accident(at=300.0, kind="operator_cancels", target=0.0, seconds=5.0)],
        undo=_no_scancel_is_noticed,
        orders=(0, 1),
    ),
    Kept(
        name="silent-node",
        fault="a job on several nodes waited without end for the program on a node that did not answer",
        check="ANSWER",
        study=Study(runs=2, jobs=1, epoch_seconds=60.0, minutes=240, ranks=2, ranks_per_node=1, is_pool=False),
        accidents=[Accident(at=100.0, kind="stop_program", target=0.0, seconds=4000.0)],
        undo=_a_node_is_waited_for_without_end,
        orders=(0, 1),
    ),
    Kept(
        name="busy-run",
        fault="attempts that found another worker at their run counted as failures, so the run failed for good",
        check="END",
        study=Study(runs=2, jobs=1, epoch_seconds=600.0, minutes=240, nodes=2),
        accidents=[Accident(at=300.0, kind="cut_off_node", target=0.0, seconds=1000.0)],
        undo=_workers_that_find_another_one_have_failed,
        orders=(0, 1),
    ),
    Kept(
        name="launcher-gone",
        fault="a launch left runs alone whose launcher had just been killed, since their leases still seemed alive",
        check="END",
        study=Study(runs=3, jobs=2, epoch_seconds=300.0, minutes=240, nodes=3, backend="ray"),
        accidents=[Accident(at=700.0, kind="kill_launcher", target=0.0, seconds=5.0)],
        undo=_orphans_are_left_alone,
        orders=(0, 1),
    ),
    Kept(
        name="unread-own-run",
        fault="a job ended well, and its run, which it could not read, waited for nobody: it seemed to run",
        check="END",
        study=Study(runs=3, jobs=3, epoch_seconds=20.0, minutes=20, nodes=3),
        accidents=[*_QUOTA_OF_TWO_JOBS, Accident(at=206.0, kind="config_unreadable", target=0.72, seconds=90.0)],
        undo=_runs_that_cannot_be_read_are_left,
        orders=(64, 1, 2),
    ),
    Kept(
        name="unread-taken-run",
        fault="no job answered for a run: the start of its newest attempt could not be recorded on a full disk",
        check="END",
        study=Study(runs=3, jobs=3, epoch_seconds=20.0, minutes=20, nodes=3),
        accidents=[*_QUOTA_OF_TWO_JOBS, Accident(at=206.0, kind="config_unreadable", target=0.4, seconds=90.0)],
        undo=_an_attempt_without_a_record_has_no_job,
        orders=(64, 1, 2),
    ),
)
