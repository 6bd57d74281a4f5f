from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest

import launch
from jobs.study import cancel
from jobs.study.cancel import group_to_signal, mark, wait_until_stopped
from jobs.study.folder import launching, observe_study, write_queue
from jobs.study.squeue import Scheduler
from seqlm import lease, processes
from seqlm.errors import BackendError, FileError
from seqlm.files import write_json
from seqlm.locks import exclusive_lock
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from seqlm.state import View
from slurm import backend as slurm_backend
from tests import commands
from tests.facts import fail, failure_of
from tests.jobs.study.test_study import make_study
from tests.slurm_jobs import write_jobs
from tests.waiting import wait_for


@final
class Clock:
    """Time that passes in sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cancel, "time", clock)
    return clock


def claim_elsewhere(run: RunDirectory, *, name: str = "elsewhere") -> lease.Lease:
    """A live lease of a worker whose lock is not seen here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "this_host", lambda: processes.Host(name=name, machine="elsewhere"))
        return lease.claim(run.lease_dir, attempt=1, busy="busy", terms=lease.Terms())


def cancel_all(study_dir: Path) -> dict[str, str | None]:
    """Cancel the runs of a study; run's name -> the problem."""
    marked = mark(observe_study(study_dir))
    wait_until_stopped(marked)
    return {one.observed.name: one.problem for one in marked}


# -- marks, and waiting ------------------------------------------------------------------------------------------------


def test_finished_runs_are_left_alone_and_waiting_ones_are_marked(tmp_path: Path) -> None:
    done, waiting = make_study(tmp_path / "s", 1, 2)
    write_json(done.result_file, {})
    assert cancel_all(tmp_path / "s") == {"run2": None}
    assert failure_of(done) is None
    assert waiting.observe().state == "cancelled"


@pytest.mark.parametrize(("words", "which"), [((), "run"), (("--only", "name=run1"), "such run")])
def test_of_finished_runs_there_is_nothing_to_cancel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], which: str
) -> None:
    for run in make_study(tmp_path / "s", 1, 2):
        write_json(run.result_file, {})
    assert launch.main(["cancel", str(tmp_path / "s"), *words]) == 0
    assert capsys.readouterr().out == f"nothing to cancel: every {which} is over\n"


def test_every_run_is_marked_before_any_is_waited_for_and_all_are_waited_for_together(
    tmp_path: Path, clock: Clock
) -> None:
    runs = make_study(tmp_path / "s", 1, 2, 3)
    for run in runs:
        claim_elsewhere(run)
    problems = cancel_all(tmp_path / "s")
    line = "marked as cancelled, but its worker on elsewhere has not stopped yet; see status"
    assert problems == dict.fromkeys(("run1", "run2", "run3"), line)
    assert all(run.is_cancelled() for run in runs), "which those workers will see"
    assert clock.now == pytest.approx(cancel.LAUNCHER_SECONDS, abs=1), "once, not for each"


def test_a_request_that_cannot_be_written_is_one_line_and_cancels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = make_study(tmp_path / "runs" / "s", 1)

    def refuse(*_: object) -> None:
        raise FileError("cannot write request.json: No space left on device")

    monkeypatch.setattr(cancel, "file_request", refuse)
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
        request = file_request(tmp_path / "s", {"kind": "run", "backend": "local", "runs": {run.id: {}}})
        write_queue(tmp_path / "s", {run.id: "waits for the canaries"}, request.number)
        assert [one.observation.state for one in observe_study(tmp_path / "s")] == ["queued"]
        assert [one.run for one in mark(observe_study(tmp_path / "s"))] == [run]
        assert [one.observation.state for one in observe_study(tmp_path / "s")] == ["cancelled"]


def test_a_worker_whose_lock_is_not_seen_is_cancelled_by_the_mark_and_waited_for(
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
    assert lease.newest_lease(run.lease_dir)["released"], "not before it has ended"
    worker.join()
    assert run.observe().state == "cancelled"


def test_a_lease_of_a_host_with_this_name_has_no_process_group_and_gets_no_signal(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = make_study(tmp_path / "s", 1)
    claim_elsewhere(run, name=socket.gethostname())
    monkeypatch.setattr(os, "killpg", lambda group, number: pytest.fail("a signal"))
    line = f"marked as cancelled, but its worker on {socket.gethostname()} has not stopped yet; see status"
    assert cancel_all(tmp_path / "s") == {"run1": line}


def test_a_controller_that_does_not_answer_is_the_problem_of_runs_with_jobs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: str) -> None:
        assert words[-1] == "7_0"
        raise BackendError("scancel does not answer")

    runs = make_study(tmp_path / "s", 1, 2)
    write_jobs(tmp_path / "s", {runs[1].id: "7_0"})
    monkeypatch.setattr(slurm_backend, "ask", refuse)
    monkeypatch.setattr(Scheduler, "states", lambda self, jobs: {job: View(stage="queued") for job in jobs})
    assert launch.main(["cancel", str(tmp_path / "s"), "--all"]) == 1
    said = capsys.readouterr()
    assert said.out == "cancelled run1\n"
    line = "marked as cancelled, but its job runs until it sees the mark: scancel does not answer"
    assert said.err == f"error: run2: {line}\n"
    assert all(run.is_cancelled() for run in runs)


# -- signals -----------------------------------------------------------------------------------------------------------

WORK = """
import os, signal, sys
from pathlib import Path
from seqlm.lease import Terms, claim
from seqlm.locks import exclusive_lock
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
user = int(sys.argv[3])
with exclusive_lock(run.worker_lock_file, "busy"):
    claim(run.lease_dir, attempt=1, busy="busy", terms=Terms())
    if user:
        os.setresuid(user, user, user)
    print("works", flush=True)
    sys.stdin.read()
"""


def start_worker(run: RunDirectory, *, user: int = 0, how: str = "obeys") -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WORK, str(run.path), how, str(user)]
    worker = commands.start(argv, stdin=subprocess.PIPE, process_group=0)
    assert commands.next_line(worker) == "works\n", commands.finish(worker)[1]
    return worker


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_study(tmp_path / "s", 1)[0]


@pytest.mark.process
@pytest.mark.parametrize(("how", "ends_by"), [("obeys", signal.SIGTERM), ("deaf", signal.SIGKILL)])
def test_a_worker_without_a_launcher_is_stopped_and_one_that_does_not_obey_is_killed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, how: str, ends_by: signal.Signals
) -> None:
    monkeypatch.setattr(cancel, "STOP_SECONDS", 1.0)
    worker = start_worker(run, how=how)
    assert cancel_all(run.path.parent) == {"run1": None}
    commands.finish(worker)
    assert worker.returncode == -ends_by
    assert run.observe().state == "cancelled"


@pytest.fixture
def worker(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A worker that holds the lock of the run, and whose group is found until something about it is wrong."""
    worker = start_worker(run)
    assert group_to_signal(run) == worker.pid
    yield worker
    worker.kill()
    commands.finish(worker)


@pytest.mark.process
@pytest.mark.parametrize("group", [1, 0, -1, True, None, "7", 2**40, 2])
def test_no_signal_goes_to_another_group_than_that_of_the_worker(
    run: RunDirectory, worker: subprocess.Popen[str], group: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"pid": worker.pid, "process_group": group, "host": socket.gethostname()}
    run.worker_lock_file.write_text(json.dumps(record))
    monkeypatch.setattr(os, "killpg", lambda group, number: pytest.fail(f"signal {number} to group {group}"))
    line = f"marked as cancelled, but its worker on {socket.gethostname()} has not stopped yet; see status"
    assert cancel_all(run.path.parent) == {"run1": line}


@pytest.mark.process
@pytest.mark.parametrize("pid", [1, 0, -1, 2**40, "1", None])
def test_no_signal_goes_to_a_process_that_does_not_hold_the_lock(
    run: RunDirectory, worker: subprocess.Popen[str], pid: Any
) -> None:
    record = {"pid": pid, "process_group": worker.pid, "host": socket.gethostname()}
    run.worker_lock_file.write_text(json.dumps(record))
    assert group_to_signal(run) is None
    other = commands.start([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, process_group=0)
    run.worker_lock_file.write_text(json.dumps({**record, "pid": other.pid, "process_group": other.pid}))
    assert group_to_signal(run) is None


@pytest.mark.process
def test_no_signal_goes_to_a_process_that_only_reads_the_lock_file(
    run: RunDirectory, worker: subprocess.Popen[str]
) -> None:
    code = "import sys; f = open(sys.argv[1]); print('reads', flush=True); input()"
    reader = commands.start([sys.executable, "-c", code, run.worker_lock_file], stdin=subprocess.PIPE, process_group=0)
    assert commands.next_line(reader) == "reads\n"
    record = {"pid": reader.pid, "process_group": reader.pid, "host": socket.gethostname()}
    run.worker_lock_file.write_text(json.dumps(record))
    assert group_to_signal(run) is None


@pytest.mark.process
@pytest.mark.parametrize("key", ["boot_id", "process_start", "host"])
@pytest.mark.parametrize("where", ["lock", "lease"])
def test_no_signal_goes_to_a_process_of_which_a_record_says_something_untrue(
    run: RunDirectory, worker: subprocess.Popen[str], key: str, where: str
) -> None:
    file = run.worker_lock_file if where == "lock" else run.lease_dir / "000001.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, key: "another"}))
    assert group_to_signal(run) is None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    start = int(Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[19])
    truth = {"boot_id": boot, "process_start": start, "host": socket.gethostname()}
    file.write_text(json.dumps({**record, **truth}))
    assert group_to_signal(run) == worker.pid


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may play two users")
@pytest.mark.parametrize("theirs", ["file", "process", "both"])
def test_root_sends_no_signal_to_the_worker_of_somebody_else(tmp_path: Path, theirs: str) -> None:
    nobody = 65534
    (run,) = make_study(tmp_path / "s", 1)
    worker = start_worker(run, user=0 if theirs == "file" else nobody)
    if theirs != "process":
        os.chown(run.worker_lock_file, nobody, nobody)
    assert group_to_signal(run) is None
    if theirs == "file":
        os.chown(run.worker_lock_file, 0, 0)
        assert group_to_signal(run) == worker.pid


def test_no_signal_goes_to_the_callers_own_group(run: RunDirectory) -> None:
    with exclusive_lock(run.worker_lock_file, "busy"):
        assert group_to_signal(run) is None


# -- asking ------------------------------------------------------------------------------------------------------------


@final
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("words", [[], ["--exclude", "seed=1"]])
def test_without_a_terminal_it_takes_all_or_only(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    make_study(run.path.parent, 2, 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert launch.main(["cancel", str(run.path.parent), *words]) == 2
    number = 2 if words else 3
    line = f"error: cancel would stop all {number} runs of s that are not over; add --all, or choose some with --only\n"
    assert capsys.readouterr().err == line
    assert not run.is_cancelled()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 2), ("n\n", 2), ("", 2)])
def test_on_a_terminal_it_asks(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert launch.main(["cancel", str(run.path.parent)]) == code
    assert capsys.readouterr().err.startswith("cancel the one run of s that is not over? [y/N] ")
    assert run.is_cancelled() == (code == 0)


@pytest.mark.parametrize("words", [["--all"], ["--only", "seed=1"]])
def test_all_and_only_need_no_question_and_exclude_each_other(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert launch.main(["cancel", str(run.path.parent), "--all", "--only", "seed=1"]) == 2
    assert "use one of them" in capsys.readouterr().err
    assert launch.main(["cancel", str(run.path.parent), *words]) == 0
    assert run.is_cancelled()
    assert launch.main(["cancel", str(run.path.parent)]) == 0, "nothing to ask about"
