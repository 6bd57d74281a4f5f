"""Faults that are planted in the product, each of which a check of the simulation must find."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqlm import lease
from slurm import allocation, job, share
from tests.tools import stub_worker


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault."""

    plant: Callable[[], None]
    """Changes the product."""
    check: str
    """The check that finds it first."""
    accidents: Sequence[str]
    """Accidents after which it soon shows."""


def _owners_do_not_look() -> None:
    """A worker goes on with a run that another one has taken over."""
    lease.Lease.check = lambda self: None  # type: ignore[method-assign]
    lease._is_free = lambda owner: True


def _jobs_do_not_wait() -> None:
    """A job looks at its runs again and again."""
    allocation.JobBackend.wait = lambda self, seconds: None  # type: ignore[method-assign]


def _jobs_ask_all_the_time() -> None:
    """A job asks SLURM at each look at a run."""
    before = share.Share.job_states

    def states(self: share.Share, *, at_once: bool = False) -> Mapping[str, str]:
        return before(self, at_once=True)

    share.Share.job_states = states  # type: ignore[method-assign]
    share.Share.may_take = lambda self, run, seen: bool(self.job_states()) and not share.is_over(seen)  # type: ignore[method-assign]


def _jobs_do_not_come_back() -> None:
    """A job whose runs are to be tried again ends as if they were over."""
    job._again = lambda *_: None


def _files_in_two_steps() -> None:
    """A worker that is killed leaves a record that is cut."""

    def write(path: Path, data: Mapping[str, Any], **_: Any) -> None:
        with path.open("w", encoding="utf-8") as file:
            for part in ("{", '"epoch": 1', "}"):
                file.write(part)
                file.flush()
                stub_worker.time.sleep(2.0)

    stub_worker.write_json = write


PLANTED: Mapping[str, Planted] = {
    "two-owners": Planted(plant=_owners_do_not_look, check="OWNER", accidents=["cut_off_node"]),
    "no-wait": Planted(plant=_jobs_do_not_wait, check="SPIN", accidents=["kill_worker"]),
    "many-questions": Planted(
        plant=_jobs_ask_all_the_time, check="COMMANDS", accidents=["terminate_worker", "kill_worker"]
    ),
    "never-back": Planted(plant=_jobs_do_not_come_back, check="END", accidents=["preempt"]),
    "torn-files": Planted(plant=_files_in_two_steps, check="FILES", accidents=["kill_worker"]),
}
