"""A worker that hangs is detected and retried; one that works is left alone."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.attempt.attempt import Heartbeat, hung_seconds
from jobs.backends.local import LocalBackend
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import StudySettings
from jobs.study.kept_code import live_code
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.crawl import Crawl
from tests.jobs.launch.test_dispatch import todo
from tests.seqlm.training.studies import make_config, make_run
from tests.small_study import read_soon
from tests.tools.stub_launch import STUB

MINUTE = 60.0


class Watched:
    """A run whose worker has begun, and a watcher for whom time passes only here."""

    def __init__(self, folder: Path) -> None:
        self.run = make_run(folder / "run", make_config())
        self.run.attempt_dir(1).mkdir(parents=True)
        self.run.stdout_log(1).write_text("")
        self.now = 0.0
        self.heartbeat = self.watch()

    def watch(self) -> Heartbeat:
        return Heartbeat(self.run, 1, 10 * MINUTE, lambda: self.now)

    def is_hung_after(self, minutes: float) -> bool:
        """Whether it is, seen by a watcher that looks every second."""
        hung = False
        for _ in range(round(60 * minutes)):
            self.now += 1
            hung = self.heartbeat.is_hung()
        return hung


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_run_of_which_nothing_changes_for_ten_minutes_hangs_and_no_sooner(watched: Watched) -> None:
    assert not watched.is_hung_after(9.9)
    assert watched.is_hung_after(0.2)
    assert watched.heartbeat.message == "no step for 10 min; its worker hung and was killed"
    write_json(watched.run.worker_file(1), {"rank": 0})
    write_json(watched.run.hang_file(1), {"where": "forward, own.py:7"})
    assert watched.heartbeat.message == "no step for 10 min; its worker was in forward, own.py:7"


@pytest.mark.parametrize(
    "sign",
    [
        lambda run: write_json(run.progress_file(1), {"step": 1}),
        lambda run: write_json(run.metrics_file, {"epoch": 0}),
        lambda run: write_json(run.last_checkpoint, {}),
        lambda run: run.stdout_log(1).write_text("reading the corpus\n"),
        lambda run: run.stderr_log(1).write_text("a warning\n"),
    ],
    ids=["a step", "an epoch", "a checkpoint", "a line", "a warning"],
)
def test_any_sign_of_life_gives_a_worker_ten_minutes_more(
    watched: Watched, sign: Callable[[RunDirectory], object]
) -> None:
    assert not watched.is_hung_after(9.5)
    sign(watched.run)
    assert not watched.is_hung_after(9.5)
    assert watched.is_hung_after(1)


def test_a_step_written_on_a_clock_set_back_is_a_sign_of_life(watched: Watched) -> None:
    write_json(watched.run.progress_file(1), {"step": 1})
    assert not watched.is_hung_after(9.5)
    os.utime(watched.run.progress_file(1), (1e9, 1e9))
    assert not watched.is_hung_after(9.5)


def test_the_heart_of_its_lease_is_no_sign_of_life(watched: Watched) -> None:
    watched.run.lease_dir.mkdir()
    for number in range(11):
        (watched.run.lease_dir / f"{number:06d}.json").write_text("{}")
        hung = watched.is_hung_after(1)
    assert hung


def test_waiting_for_a_place_on_a_cluster_is_no_hanging(watched: Watched) -> None:
    watched.run.stdout_log(1).unlink()
    watched.heartbeat = watched.watch()
    assert not watched.is_hung_after(60)
    watched.run.stdout_log(1).write_text("")
    assert not watched.is_hung_after(9.5)
    assert watched.is_hung_after(1)


def test_a_watcher_that_slept_has_not_watched(watched: Watched) -> None:
    watched.now += 3600
    assert not watched.heartbeat.is_hung()
    assert not watched.is_hung_after(9)


def test_a_behaviour_job_which_tells_nothing_while_it_works_is_never_taken_for_hung(watched: Watched) -> None:
    write_json(watched.run.task_file, {})
    watched.heartbeat = watched.watch()
    assert not watched.is_hung_after(60)


def test_the_limit_comes_from_the_environment() -> None:
    assert hung_seconds({}) == 600
    assert hung_seconds({"SEQLM_HUNG_MINUTES": "0.5"}) == 30
    rare = {"SEQLM_HUNG_MINUTES": "0.5", "SEQLM_PROGRESS_SECONDS": "20"}
    assert hung_seconds(rare) == 60, "a worker that writes every 20 s says nothing for as long"


# -- and what becomes of it ----------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.usefixtures("no_waiting")
def test_a_stopped_rank_and_its_peer_are_killed_and_the_run_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqlm.machine.cpu_count", lambda: 2)
    monkeypatch.setattr("seqlm.machine.gpus", list)
    (item,) = todo(tmp_path / "study", 1, ranks=2)
    crawl, run, ranks, watchers = Crawl(tmp_path, epochs=1), item.run, list[int](), list[Heartbeat]()

    def watch(*arguments: Any) -> Heartbeat:
        watchers.append(Heartbeat(*arguments))
        return watchers[-1]

    monkeypatch.setattr("jobs.attempt.attempt.Heartbeat", watch)

    class Backend(LocalBackend):
        def wait(self, seconds: float) -> None:
            if run.metrics_file.exists() and not ranks:
                ranks.extend(read_soon(run.worker_file(1, rank))["pid"] for rank in (0, 1))
                os.kill(ranks[0], signal.SIGSTOP)  # its peer is held, and writes nothing
                watchers[-1]._clock = itertools.count(1e9, MINUTE).__next__  # the ten minutes pass at once
            elif run.last_attempt() > 1:
                crawl.end()
            super().wait(seconds)

    env = {"SEQLM_HUNG_MINUTES": "10", **crawl.env}
    backend = Backend()
    backend.env = env
    Dispatcher(backend, live_code(), StudySettings(path=tmp_path / "study", worker=STUB)).dispatch([item])
    assert ranks, "one was stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert "no step for 10 min" in " ".join(end.message for end in run.failures())
    assert run.observe().state == "done"
    assert [record["epoch"] for record in run.read_metrics()[0]] == [0, 1]
