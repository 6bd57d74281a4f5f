from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.study.finality import SETTLE_SECONDS, FinalityTracker
from jobs.study.folder import AtWork, Launcher, launching, look_at, write_queue
from jobs.study.logs import follow_logs
from jobs.study.squeue import Scheduler
from seqlm.files import write_json
from seqlm.locks import exclusive_lock
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import FailureKind, State
from tests.jobs.cli.test_watch import Touched
from tests.slurm_jobs import write_jobs
from tests.training.studies import make_config, make_run
from tests.waiting import wait_for

LAUNCHER = AtWork(launcher=Launcher(pid=1, host="here", waiting={}))


def seen(state: State, kind: FailureKind | None = None) -> Observation:
    return Observation(state=state, epoch=None, best_val_ppl=None, reason=None, kind=kind)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_that_lost_its_node_is_over_only_when_no_launcher_has_taken_it_up_again() -> None:
    clock = Clock()
    settling = FinalityTracker(clock)
    assert not settling.is_over("run", seen("failed", "node"), LAUNCHER)
    clock.now += SETTLE_SECONDS / 2
    assert not settling.is_over("run", seen("failed", "node"), LAUNCHER)
    assert not settling.is_over("run", seen("queued"), LAUNCHER)
    clock.now += SETTLE_SECONDS
    assert not settling.is_over("run", seen("failed", "node"), LAUNCHER), "the waiting starts again"
    clock.now += SETTLE_SECONDS
    assert settling.is_over("run", seen("failed", "node"), LAUNCHER)


@pytest.mark.parametrize("observation", [seen("done"), seen("cancelled", "cancelled"), seen("failed", "diverged")])
def test_what_no_launcher_changes_is_over_at_once(observation: Observation) -> None:
    assert FinalityTracker(Clock()).is_over("run", observation, LAUNCHER)


def test_without_a_launcher_nothing_is_tried_again() -> None:
    assert FinalityTracker(Clock()).is_over("run", seen("failed", "node"), AtWork())
    assert FinalityTracker(Clock()).is_over("run", seen("pending"), AtWork())
    assert not FinalityTracker(Clock()).is_over("run", seen("running"), AtWork()), "a worker may outlive its launcher"


@contextmanager
def worker(run: RunDirectory, attempt: int) -> Iterator[None]:
    run.attempt_dir(attempt).mkdir(parents=True)
    with exclusive_lock(run.worker_lock_file, "busy"):
        yield
        run.stdout_log(attempt).write_text(f"attempt {attempt} was here\n")


class Following:
    """``follow_logs`` in a thread, which looks at the run when the test says so, on a clock of its own."""

    def __init__(self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = Clock()
        self._looks = self._wanted = 0
        monkeypatch.setattr("jobs.study.logs.FinalityTracker", lambda: FinalityTracker(self._clock))
        monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=self._pause))
        self._thread = threading.Thread(target=lambda: follow_logs(look_at(run, AtWork()), 20), daemon=True)

    def _pause(self, _: float) -> None:
        self._looks += 1
        wait_for(lambda: self._wanted > self._looks, "the test to want another look")

    def start(self) -> None:
        self._thread.start()
        self.look()

    def look(self, *, seconds: float = 0.0) -> None:
        """Have it look once more, ``seconds`` later, and go on."""
        self._clock.now += seconds
        self._wanted += 1
        wait_for(lambda: self._looks == self._wanted or not self._thread.is_alive(), "a look at the run")
        assert self._thread.is_alive()

    def end(self) -> None:
        """Have it look once more, and end."""
        self._wanted += 1
        wait_for(lambda: not self._thread.is_alive(), "the end of following")


def test_followed_logs_go_on_when_a_failed_run_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    failure: dict[str, Any] = {"kind": "node", "message": "killed by SIGKILL"}
    following = Following(run, monkeypatch)
    with launching(tmp_path / "study"):
        with worker(run, 1):
            following.start()
            following.look()
        run.write_failure_once(failure)
        following.look()  # failed, as far as its files tell, until the launcher has seen it
        following.look(seconds=SETTLE_SECONDS / 2)
        run.failure_file.unlink()
        write_queue(tmp_path / "study", {run.id: "tried again in a moment"})
        following.look(seconds=SETTLE_SECONDS)
        write_queue(tmp_path / "study", {})
        with worker(run, 2):
            following.look(seconds=SETTLE_SECONDS)
        write_json(run.result_file, {})
        following.end()  # with the run, not with the launcher
    printed = capsys.readouterr().out
    assert printed.index("attempt 1 was here") < printed.index("attempt 2 was here")


def test_followed_logs_end_when_a_failure_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def pause(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("jobs.study.logs.FinalityTracker", lambda: FinalityTracker(clock))
    monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=pause))
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    run.write_failure_once({"kind": "node", "message": "killed by SIGKILL"})
    with launching(tmp_path / "study"):  # at work on others
        started = clock.now
        follow_logs(look_at(run, AtWork()), 20)
        assert SETTLE_SECONDS <= clock.now - started < 2 * SETTLE_SECONDS


def test_following_the_logs_of_a_run_touches_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    run, other = (make_run(study / f"run-0000000{number}", make_config(seed=number)) for number in (1, 2))
    write_jobs(study, {run.id: "12_0", other.id: "12_1"})
    queue = "12_0|RUNNING|\n12_1|RUNNING|"
    monkeypatch.setattr(Scheduler, "_call", lambda self, *command: queue)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            write_json(run.result_file, {})

    monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=pause))
    touched = Touched(monkeypatch)
    follow_logs(look_at(run, AtWork()), 20)
    assert pauses == [1.0] * 3
    assert touched.below(run.path)
    assert touched.below(other.path) == []


def test_followed_logs_hold_what_was_written_while_their_end_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    run.stdout_log(1).write_text("before\n")
    real = sys.stdout.write

    def write(text: str) -> int:
        if "before" in text:
            with run.stdout_log(1).open("a") as log:
                log.write("meanwhile\n")
        return real(text)

    monkeypatch.setattr(sys.stdout, "write", write)
    monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=lambda seconds: write_json(run.result_file, {})))
    follow_logs(look_at(run, AtWork()), 20)
    assert capsys.readouterr().out.splitlines()[1:] == ["before", "meanwhile"]
