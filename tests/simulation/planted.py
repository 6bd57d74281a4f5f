"""Faults that are planted in the product, each of which a check of the simulation must find."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.attempt.supervisor import Ended
from jobs.scheduled import allocation, job, share, slot
from jobs.study import budget
from seqlm import files, hang, lease, rundir, search
from seqlm.ends import End, Verdict
from seqlm.rundir import RunDirectory
from slurm import scheduler
from tests.simulation.study import SEEDS
from tests.tools import stub_worker


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault."""

    plant: Callable[[], None]
    """Changes the product."""
    check: str
    """The check that is to find it. Others may, too."""
    accidents: Sequence[str]
    """Accidents after which it soon shows."""
    study: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the studies in which it soon shows."""
    first: int = 0
    """The first seed that is played. A search from one at which it shows takes less time."""


def _owners_do_not_look() -> None:
    """A worker goes on with a run that another one has taken over."""
    lease.Lease.check = lambda self: None  # type: ignore[method-assign]
    lease._is_free = lambda owner: True


def _jobs_do_not_wait() -> None:
    """A job looks at its runs again and again."""
    allocation.JobBackend.wait = lambda self, seconds: None  # type: ignore[method-assign]


def _jobs_ask_all_the_time() -> None:
    """A job asks SLURM at each look at a run."""
    before = job.JobHost.saw

    def saw(self: job.JobHost, run: RunDirectory, attempt: int) -> None:
        self.scheduler.has_other_jobs(self.context)
        before(self, run, attempt)

    job.JobHost.saw = saw  # type: ignore[method-assign]


def _jobs_do_not_come_back() -> None:
    """A job whose runs are to be tried again ends as if they were over."""
    job._again = lambda *_: None


def _files_in_two_steps() -> None:
    """A worker that is killed leaves a result that is cut."""

    def write(self: RunDirectory, result: Mapping[str, Any], **_: Any) -> None:
        with self.result_file.open("w", encoding="utf-8") as file:
            for part in ("{", '"epoch": 1', "}"):
                file.write(part)
                file.flush()
                stub_worker.time.sleep(2.0)

    RunDirectory.write_result = write  # type: ignore[method-assign]


def _workers_go_on() -> None:
    """Nobody looks whether a run was cancelled."""
    RunDirectory.is_cancelled = lambda self: False  # type: ignore[method-assign]


def _any_job_is_ours() -> None:
    """A job of the number that a request has noted is taken for that of the study."""
    scheduler.works_in = lambda directory, folder: True


def _from_the_beginning() -> None:
    """A worker does not find its checkpoint, and leaves the metrics as they were."""
    stub_worker.CheckpointFiles.write_metrics = lambda self, history: None  # type: ignore[method-assign]
    stub_worker.CheckpointFiles.load_last = lambda self: None  # type: ignore[method-assign]


def _errors_are_tried_again() -> None:
    """A run whose model has raised an error is tried again."""
    rundir.verdict = lambda policy, failures, **_: Verdict(delay=30.0)


def _killed_attempts_cost_nothing() -> None:
    """The time of an attempt that has not written its end is not counted."""
    budget.last_sign_of = lambda *_: None


def _leases_never_end() -> None:
    """A worker waits for an owner that gives no sign of life any more."""

    def watch(folder: Path, generation: int, seconds: float, pause: Callable[[float], None], clock: object) -> str:
        pause(seconds)
        return "changed"

    lease._watch = watch  # type: ignore[assignment]


def _leases_are_taken_for_granted() -> None:
    """A job ends with an error if another job gives no sign of life any more."""
    before = slot.live_owner
    slot.live_owner = lambda folder: before(folder) or {}["owner"]


def _nothing_is_over() -> None:
    """A job starts runs that are done."""
    share.is_over = lambda seen: False


def _jobs_take_their_own_runs_alone() -> None:
    """A job leaves the runs of other jobs alone."""
    before = share.Share.next_run

    def next_run(self: share.Share, *arguments: Any, **options: Any) -> Any:
        self.runs = self.own
        return before(self, *arguments, **options)

    share.Share.next_run = next_run  # type: ignore[method-assign]


def _only_the_last_epoch() -> None:
    """The metrics lose what went before."""
    before = stub_worker.CheckpointFiles.write_metrics
    stub_worker.CheckpointFiles.write_metrics = lambda self, history: before(self, history[-1:])  # type: ignore[method-assign]


def _nothing_is_flushed() -> None:
    """What is written is left to the system."""
    files.flush = lambda path: None


def _budgets_do_not_count() -> None:
    """A launch goes on whatever it has cost."""
    budget.Budget.is_spent = lambda self, **_: None  # type: ignore[method-assign]


def _decisions_do_not_count() -> None:
    """A run that a comparison has stopped is open to whoever starts it."""
    RunDirectory.why_settled = lambda *_, **__: None  # type: ignore[method-assign]


def _searches_stop_all() -> None:
    """A search stops every run at its first rung."""
    search.goes_on = lambda *_, **__: False


def _lost_actors_have_ended_well() -> None:
    """A worker whose actor is gone counts as one that has ended with exit code 0, and no launch waits for its lease."""
    from jobs.backends import ray_executor  # once ``ray`` is replaced
    from jobs.launch import prepare

    def became(self: object, job: object, rank: int, error: Exception) -> Ended:
        return Ended(exit_code=0, message="ended")

    ray_executor.RayExecutor._what_became_of = became  # type: ignore[method-assign]
    prepare.orphaned = lambda planned: []


def _leases_are_not_released() -> None:
    """A worker ends, and its lease says that it lives."""
    lease.Lease.release = lambda self: None  # type: ignore[method-assign]


def _jobs_come_back_for_nothing() -> None:
    """A job whose runs are over is put back twice."""
    before = job._again

    def again(run: RunDirectory, host: job.JobHost, why: str | None) -> Any:
        is_early = int(host.start.name.rpartition("/")[2]) <= 2
        for_nothing = End(attempt=0, kind="node", message="once more"), Verdict(delay=0.0)
        return before(run, host, why) or (for_nothing if is_early else None)

    job._again = again


def _nothing_hangs() -> None:
    """A worker without progress is taken for one that works."""
    hang.Heartbeat.is_hung = lambda self: False  # type: ignore[method-assign]


PLANTED: Mapping[str, Planted] = {
    "two-owners": Planted(plant=_owners_do_not_look, check="OWNER", accidents=["cut_off_node"]),
    "no-wait": Planted(plant=_jobs_do_not_wait, check="SPIN", accidents=["kill_worker"]),
    "many-questions": Planted(
        plant=_jobs_ask_all_the_time, check="COMMANDS", accidents=["terminate_worker", "kill_worker"], first=6
    ),
    "never-back": Planted(plant=_jobs_do_not_come_back, check="END", accidents=["preempt"]),
    "torn-files": Planted(
        plant=_files_in_two_steps,
        check="FILES",
        accidents=["kill_worker"],
        study={"core_hours": None, "backend": "slurm", "epoch_seconds": 20.0},
        first=5,
    ),
    "no-cancel": Planted(plant=_workers_go_on, check="CANCELLED", accidents=["cancel"]),
    "any-job": Planted(plant=_any_job_is_ours, check="OTHERS", accidents=["reuse_id", "cancel", "run"]),
    "no-checkpoint": Planted(plant=_from_the_beginning, check="REPEATED", accidents=["kill_worker"], first=2),
    "tried-again": Planted(plant=_errors_are_tried_again, check="RETRIES", accidents=["code_error"], first=5),
    "free-attempts": Planted(plant=_killed_attempts_cost_nothing, check="COSTS", accidents=["kill_worker"]),
    "never-over": Planted(plant=_nothing_is_over, check="ATTEMPTS", accidents=["preempt", "run"]),
    "no-takeover": Planted(
        plant=_leases_never_end, check="LEFT", accidents=["lose_node"], study={"runs": 2, "jobs": 1, "backend": "slurm"}
    ),
    "own-runs": Planted(
        plant=_jobs_take_their_own_runs_alone,
        check="WAITS",
        accidents=["lose_node", "preempt"],
        study={"core_hours": None, "is_search": False, "backend": "slurm", "runs": 6, "jobs": 2},
        first=7,
    ),
    "last-epoch": Planted(plant=_only_the_last_epoch, check="KEPT", accidents=["kill_worker"]),
    "no-flush": Planted(
        plant=_nothing_is_flushed, check="FILES", accidents=["power_cut"], study={"backend": "local"}, first=5
    ),
    "no-budget": Planted(
        plant=_budgets_do_not_count,
        check="BUDGET",
        accidents=["kill_worker"],
        study={"core_hours": 0.01, "epoch_seconds": 600.0},
    ),
    "stop-all": Planted(
        plant=_searches_stop_all,
        check="SEARCH",
        accidents=["kill_worker"],
        study={"is_search": True, "core_hours": None},
    ),
    "never-settled": Planted(
        plant=_decisions_do_not_count,
        check="DECIDED",
        accidents=["kill_worker"],
        study={"is_decided": True, "runs": 2 * SEEDS, "is_search": False, "core_hours": None},
    ),
    "lost-actor": Planted(
        plant=_lost_actors_have_ended_well,
        check="END",
        accidents=["kill_actor"],
        study={"backend": "ray", "core_hours": None},
        first=11,
    ),
    "never-released": Planted(
        plant=_leases_are_not_released,
        check="WAITED",
        accidents=["preempt"],
        study={"backend": "slurm", "core_hours": None, "epoch_seconds": 600.0},
    ),
    "back-for-nothing": Planted(
        plant=_jobs_come_back_for_nothing, check="STARTS", accidents=["preempt"], study={"backend": "slurm"}, first=4
    ),
    "never-hung": Planted(plant=_nothing_hangs, check="HUNG", accidents=["hang_worker"]),
    "no-answer": Planted(plant=_leases_are_taken_for_granted, check="TRACEBACK", accidents=["preempt", "kill_program"]),
}
