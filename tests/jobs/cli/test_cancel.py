import os
import socket
import threading
import time
from pathlib import Path
from typing import final

import pytest

import launch
from jobs.cli import studying
from jobs.cli.studying import mark, wait_until_stopped
from jobs.study import stopping
from jobs.study.folder import launching, observe_study, this_launcher, write_queue
from jobs.study.stopping import Stopping
from seqlm import lease, processes
from seqlm.errors import BackendError, FileError
from seqlm.files import write_json
from seqlm.records.attempts import Exit, Start
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from seqlm.state import View
from slurm import scheduler
from slurm.scheduler import Slurm
from tests.facts import fail, owned
from tests.jobs.study.test_study import make_study
from tests.slurm_jobs import write_jobs
from tests.waiting import wait_for


@final
class Clock:
    """Time that passes in sleeping alone, but for the age of files."""

    time = time.time

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    return clock


def claim_elsewhere(run: RunDirectory, *, name: str = "elsewhere") -> lease.Lease:
    """A live lease of a worker of another host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "this_host", lambda: {"host": name, "machine_id": "elsewhere"})
        return lease.claim(run.lease_dir, attempt=1, busy="busy")


def cancel_all(study_dir: Path) -> dict[str, str | None]:
    """Cancel the runs of a study; run's name -> the problem."""
    marked = mark(observe_study(study_dir))
    problems = wait_until_stopped(marked)
    return {one.name: problems.get(one.run.path) for one in marked}


def stays(host: str, pid: int) -> str:
    who = f"its worker on {host} (process {pid})"
    return f"marked as cancelled, but {who} has not stopped yet; see status, and end it there if it hangs"


# -- marks, and waiting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "which"), [((), "run"), (("--only", "name=run1"), "such run")])
def test_of_finished_runs_there_is_nothing_to_cancel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], which: str
) -> None:
    for run in make_study(tmp_path / "s", 1, 2):
        write_json(run.result_file, {})
    assert launch.main(["cancel", str(tmp_path / "s"), *words]) == 0
    assert capsys.readouterr().out == f"nothing to cancel: every {which} is over\n"


@pytest.mark.parametrize("command", ["cancel", "retry"])
def test_a_dry_run_names_what_would_be_hit_and_hits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _, failed, done = make_study(tmp_path / "s", 1, 2, 3)
    fail(failed, {})
    write_json(done.result_file, {})
    before = observe_study(tmp_path / "s")
    assert launch.main([command, str(tmp_path / "s"), "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert {"cancel": "run1", "retry": "run2"}[command] in line
    after = observe_study(tmp_path / "s")
    assert [one.observation for one in after] == [one.observation for one in before]


def test_every_run_is_marked_before_any_is_waited_for_and_all_are_waited_for_together(
    tmp_path: Path, clock: Clock
) -> None:
    runs = make_study(tmp_path / "s", 1, 2, 3)
    for run in runs:
        claim_elsewhere(run)
    problems = cancel_all(tmp_path / "s")
    assert problems == dict.fromkeys(("run1", "run2", "run3"), stays("elsewhere", os.getpid()))
    assert all(run.is_cancelled() for run in runs), "which those workers will see"
    assert clock.now == pytest.approx(studying.STOP_SECONDS, abs=1), "once, not for each"


def test_a_request_that_cannot_be_written_is_one_line_and_cancels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = make_study(tmp_path / "runs" / "s", 1)

    def refuse(*_: object) -> None:
        raise FileError("cannot write request.json: No space left on device")

    monkeypatch.setattr(studying, "file_request", refuse)
    assert launch.main(["cancel", str(tmp_path / "runs" / "s"), "--all"]) == 1
    assert capsys.readouterr().err == "error: cannot write request.json: No space left on device\n"
    assert not run.is_cancelled()


def test_a_run_that_has_just_failed_and_may_be_tried_again_is_cancelled(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path / "s", 1)
    runs = observe_study(tmp_path / "s")
    fail(run, {"kind": "node", "message": "lost"})
    mark(runs)
    assert run.observe().state == "cancelled"


def test_a_run_whose_retry_waits_for_its_canaries_can_be_cancelled(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path / "s", 1)
    assert cancel_all(tmp_path / "s") == {"run1": None}
    with launching(tmp_path / "s"):
        request = file_request(tmp_path / "s", RequestFile(kind="run", backend="local", runs={run.id: Wanted()}))
        write_queue(tmp_path / "s", {run.id: "waits for the canaries"}, request.number)
        assert [one.observation.state for one in observe_study(tmp_path / "s")] == ["queued"]
        assert [one.run for one in mark(observe_study(tmp_path / "s"))] == [run]
        assert [one.observation.state for one in observe_study(tmp_path / "s")] == ["cancelled"]


def test_a_worker_of_another_host_is_cancelled_by_the_mark_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    (run,) = make_study(tmp_path / "s", 1)
    lease_of_it = claim_elsewhere(run)
    (observed,) = observe_study(tmp_path / "s")
    assert observed.observation.state == "running"
    polls: list[float] = []
    monkeypatch.setattr(clock, "sleep", polls.append)

    def obey() -> None:
        wait_for(run.is_cancelled, "the mark")
        wait_for(lambda: len(polls), "three polls by the one who cancels", until=lambda count: count >= 3)
        lease_of_it.release()

    worker = threading.Thread(target=obey)
    worker.start()
    assert cancel_all(tmp_path / "s") == {"run1": None}
    assert lease.newest_lease(run.lease_dir).released, "not before it has ended"
    worker.join()
    assert run.observe().state == "cancelled"


def test_a_controller_that_does_not_answer_is_the_problem_of_runs_with_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: str) -> str:
        if words[0] == "squeue":
            return f"7_0|PENDING|None|{folder}"
        assert words[-1] == "7"
        raise BackendError("scancel does not answer")

    runs = make_study(tmp_path / "s", 1, 2)
    folder = write_jobs(tmp_path / "s", {runs[1].id: "7_0"}).folder
    monkeypatch.setattr(scheduler, "ask", refuse)
    monkeypatch.setattr(Slurm, "views", lambda self, jobs: {job: View(stage="queued") for job in jobs})
    assert launch.main(["cancel", str(tmp_path / "s"), "--all"]) == 1
    said = capsys.readouterr()
    assert said.out == "cancelled run1\n"
    line = "marked as cancelled, but its job runs until it sees the mark: scancel does not answer"
    assert said.err == f"error: run2: {line}\n"
    assert all(run.is_cancelled() for run in runs)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_study(tmp_path / "s", 1)[0]


def test_a_process_that_keeps_the_lease_is_named_and_gets_no_signal(
    run: RunDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, lambda number, signal: pytest.fail("a signal") if signal else None)
    with owned(run):
        assert cancel_all(run.path.parent) == {"run1": stays(socket.gethostname(), os.getpid())}


def begin(run: RunDirectory, start: Start) -> None:
    """Have a process start the first attempt of a run, whose worker has not begun yet."""
    run.attempt_dir(1).mkdir(parents=True)
    start.write(run.attempt_dir(1), once=True)


def test_a_worker_that_its_launcher_has_just_started_is_waited_for(run: RunDirectory, clock: Clock) -> None:
    with launching(run.path.parent):
        begin(run, Start(launcher=this_launcher()))
        assert cancel_all(run.path.parent)["run1"] is not None
        run.write_exit(1, Exit(message="ended with exit code 143", exit_code=143))
        assert Stopping([run]).wait(0.0) == {}
    begin_without = make_study(run.path.parent.parent / "other", 1)[0]
    begin(begin_without, Start(launcher=this_launcher()))
    assert cancel_all(begin_without.path.parent) == {"run1": None}, "its launcher is gone"


@pytest.mark.parametrize(("state", "is_over"), [("RUNNING", False), ("COMPLETING", False), ("COMPLETED", True)])
def test_a_job_that_has_ended_leaves_no_worker_however_fresh_its_lease_is(
    run: RunDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch, state: str, is_over: bool
) -> None:
    request = write_jobs(run.path.parent, {run.id: "7_0"})
    begin(run, Start(backend="slurm", job_id="7_0", request=request.number))
    claim_elsewhere(run)
    monkeypatch.setattr(scheduler, "ask", lambda *words: f"7_0|{state}|None|{request.folder}")
    problems = Stopping([run]).wait(90.0)
    assert (problems == {}) == is_over


def test_a_job_that_has_ended_may_leave_a_worker_on_a_node_that_only_its_scheduler_does_not_reach(
    run: RunDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = write_jobs(run.path.parent, {run.id: "7_0"})
    begin(run, Start(backend="slurm", job_id="7_0", request=request.number))
    theirs = claim_elsewhere(run)
    monkeypatch.setattr(scheduler, "ask", lambda *words: f"7_0|COMPLETED|None|{request.folder}")
    now = time.time()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        os.utime(theirs.file, (now, now + clock.now))

    monkeypatch.setattr(clock, "sleep", sleep)
    assert list(Stopping([run]).wait(90.0)) == [run.path]
