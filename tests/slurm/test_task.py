"""What a job does inside, without SLURM: its variables are set by hand, its commands are small programs on PATH."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jobs.policy import Policy
from jobs.retry import history
from jobs.spec import Resources
from jobs.study import write_jobs
from seqlm.errors import BackendError
from seqlm.rundir import RunDirectory, write_json, write_json_lines
from slurm import task
from slurm.task import JobPlan, Place, Signals, Task
from tests.training.studies import make_config, make_run
from tests.waiting import wait_for

pytestmark = pytest.mark.process

TELL = """
import json, os, sys
names = "RANK WORLD_SIZE SEQLM_DEVICE CUDA_VISIBLE_DEVICES SEQLM_ATTEMPT SEQLM_NODE".split()
names += ["SEQLM_RENDEZVOUS", "SEQLM_RENDEZVOUS_HOST"]
json.dump({n: os.environ.get(n) for n in names}, open(os.path.join(sys.argv[1], "told"), "w"))
open(os.path.join(sys.argv[1], "result.json"), "w").write("{}")
"""
STOPPABLE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))
open(os.path.join(sys.argv[1], "ready"), "w")
while True: time.sleep(0.02)  # a signal right before one long sleep would be heard after it
"""
ENV = {"SLURM_JOB_ID": "78", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "SLURMD_NODENAME": "n1"}


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH with an scontrol that notes what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "state").write_text("[]")
    (folder / "scontrol").write_text(
        f'#!/bin/sh\necho "$*" >> {folder}/calls\n[ "$1" != --json ] || cat {folder}/state\n[ ! -e {folder}/down ]\n'
    )
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(task, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(task, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(task, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(task, "REQUEUE_TRIES", 1)
    monkeypatch.setattr(task, "GRACE_SECONDS", 0.05)
    return folder


def calls(room: Path) -> list[str]:
    return (room / "calls").read_text().splitlines() if (room / "calls").exists() else []


def make(folder: Path, name: str = "run") -> RunDirectory:
    run = make_run(folder / name, make_config())
    write_jobs(folder, {}, {run.id: "0001"})
    return run


def plan(*runs: RunDirectory, program: str = TELL, attempt: int = 1, **changes: object) -> JobPlan:
    known: dict[str, object] = {
        "submission": "0001",
        "runs": tuple(run.path for run in runs),
        "attempts": (attempt,) * len(runs),
        "env": ({},) * len(runs),
        "argv": ("-S", "-c", program),
        "code": Path.cwd(),
        "resources": Resources(cpus=1, gpus=0),
        "policy": Policy(without_progress=2),
        "timeout_min": 10,
        "signal_before_s": 60,
    }
    return JobPlan(**{**known, **changes})  # type: ignore[arg-type]


def place(**env: str) -> Place:
    return Place.from_environment({**ENV, **env}, "n0")


def work(told: JobPlan, where: Place | None = None, signals: Signals | None = None, *, started: float = 0) -> bool:
    return Task(told, where or place(), signals or Signals(), started=started or time.time()).run()


def stop_when_ready(run: RunDirectory, signals: Signals, *, warn: bool) -> threading.Thread:
    def wait() -> None:
        wait_for((run.path / "ready").exists, "the worker to be ready")
        if warn:
            signals.warned_at = time.time()
        else:
            signals.told = True

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_worker_learns_its_place_and_its_attempt(tmp_path: Path) -> None:
    run = make(tmp_path)
    gpus = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "4,6", "SLURM_RESTART_COUNT": "2"}
    assert work(plan(run, attempt=3, resources=Resources(ranks=2, cpus=1, gpus=1)), place(**gpus))
    told = json.loads((run.path / "told").read_text())
    assert (told["RANK"], told["WORLD_SIZE"]) == ("1", "2")
    assert (told["SEQLM_DEVICE"], told["CUDA_VISIBLE_DEVICES"]) == ("cuda", "6"), "of the job's GPUs its own"
    assert told["SEQLM_ATTEMPT"] == "5", "the third, restarted twice"
    assert told["SEQLM_RENDEZVOUS"] == (run.attempt_dir(5) / "rendezvous").as_uri()
    assert told["SEQLM_RENDEZVOUS_HOST"] == "n0", "at a port that the system chooses there"
    assert told["SEQLM_NODE"] == "n1"


def test_a_module_path_of_the_manifest_reaches_the_worker_behind_the_code(tmp_path: Path) -> None:
    run = make(tmp_path)
    program = "import os, sys; open(sys.argv[1] + '/path', 'w').write(os.environ['PYTHONPATH'])"
    work(plan(run, program=program, env=({"PYTHONPATH": "/of/the/user"},)))
    assert (run.path / "path").read_text().split(":")[:2] == [str(Path.cwd()), "/of/the/user"]


def test_a_job_without_the_gpu_it_asked_for_says_so(tmp_path: Path) -> None:
    told = plan(make(tmp_path), resources=Resources(cpus=1, gpus=1))
    with pytest.raises(BackendError, match="SLURM gave this job no GPU"):
        work(told)
    Task(told, place(), Signals(), started=0).fail("no GPU")
    assert RunDirectory(told.runs[0]).observe().reason == "code: no GPU"


def test_runs_that_have_spoken_or_belong_to_another_job_are_left_alone(tmp_path: Path) -> None:
    done, failed, taken, own = (make(tmp_path, name) for name in "abcd")
    write_json(done.result_file, {})
    failed.write_failure_once({"kind": "diverged", "message": "nan"})
    write_jobs(tmp_path, {}, {taken.id: "0002"})
    work(plan(done, failed, taken, own))
    assert [run.id for run in (done, failed, taken, own) if (run.path / "told").exists()] == ["d"]


def test_before_a_time_limit_the_run_is_saved_and_the_job_put_back(tmp_path: Path, room: Path) -> None:
    run, signals = make(tmp_path), Signals()
    thread = stop_when_ready(run, signals, warn=True)
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60)}
    assert work(plan(run, program=STOPPABLE), place(**end), signals)
    thread.join()
    assert calls(room) == ["requeue 77_1"]
    assert not run.failure_file.exists(), "the run itself has not failed"
    record = json.loads((run.attempt_dir(1) / "failure.json").read_text())
    assert (record["kind"], record["message"]) == ("timeout", "the job's time limit of 10 min")


def test_the_same_signal_long_before_the_limit_is_a_preemption_also_in_a_short_job(tmp_path: Path) -> None:
    run, signals = make(tmp_path), Signals()
    thread = stop_when_ready(run, signals, warn=True)
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 300)}
    assert work(plan(run, program=STOPPABLE, timeout_min=5), place(**end), signals)
    thread.join()
    assert json.loads((run.attempt_dir(1) / "failure.json").read_text())["kind"] == "preempted"


def test_limits_without_an_epoch_in_between_come_to_an_end(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    for restarts in range(3):
        (run.path / "ready").unlink(missing_ok=True)
        signals = Signals()
        thread = stop_when_ready(run, signals, warn=True)
        env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60), "SLURM_RESTART_COUNT": str(restarts)}
        well = work(plan(run, program=STOPPABLE), place(**env), signals)
        thread.join()
        assert well == (restarts < 2)
    assert calls(room) == ["requeue 77_1"] * 2
    failure = run.read_failure() or {}
    assert failure["kind"] == "timeout"
    assert failure["message"].endswith("after 2 retries in a row without progress")


def test_an_epoch_in_between_counts_as_progress(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    for restarts in range(4):
        (run.path / "ready").unlink(missing_ok=True)
        write_json_lines(run.metrics_file, [{"epoch": epoch, "val_ppl": 9.0} for epoch in range(restarts + 1)])
        signals = Signals()
        thread = stop_when_ready(run, signals, warn=True)
        env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60), "SLURM_RESTART_COUNT": str(restarts)}
        assert work(plan(run, program=STOPPABLE), place(**env), signals)
        thread.join()
    assert len(calls(room)) == 4


@pytest.mark.parametrize(
    ("words", "cancelled"), [(["CANCELLED", "COMPLETING"], True), (["PENDING", "COMPLETING"], False)]
)
def test_scancel_is_told_from_a_requeue_by_what_the_controller_says(
    tmp_path: Path, room: Path, words: list[str], cancelled: bool
) -> None:
    run, signals = make(tmp_path), Signals()
    jobs: list[Mapping[str, object]] = [{"job_id": 78, "job_state": words}, {"job_id": 77, "job_state": ["RUNNING"]}]
    (room / "state").write_text(json.dumps({"jobs": jobs}))
    thread = stop_when_ready(run, signals, warn=False)
    work(plan(run, program=STOPPABLE), signals=signals)
    thread.join()
    assert run.is_cancelled() == cancelled
    assert "requeue 77_1" not in calls(room), "SLURM does that itself"


def test_a_run_cancelled_from_its_folder_is_stopped_and_others_of_the_job_go_on(tmp_path: Path) -> None:
    stopped, other = make(tmp_path, "a"), make(tmp_path, "b")
    asked = stopped.path / "asked"
    program = STOPPABLE.replace("sys.exit(143)", f"(open({str(asked)!r}, 'w'), sys.exit(143))").replace(
        "while True: time.sleep(0.02)",
        f"while sys.argv[1].endswith('a') or not os.path.exists({str(asked)!r}): time.sleep(0.02)",
    )
    program += "\nopen(os.path.join(sys.argv[1], 'result.json'), 'w').write('{}')\n"

    def cancel() -> None:
        wait_for((stopped.path / "ready").exists, "the worker to be ready")
        stopped.write_failure_once({"kind": "cancelled", "message": "cancelled by the user"})

    thread = threading.Thread(target=cancel)
    thread.start()
    work(plan(stopped, other, program=program))
    thread.join()
    assert stopped.is_cancelled()
    assert other.result_file.exists()


def test_a_worker_killed_by_a_signal_is_tried_again_in_a_new_job(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    assert work(plan(run, program="import os; os.kill(os.getpid(), 9)"))
    assert calls(room) == ["requeue 77_1"]
    record = json.loads((run.attempt_dir(1) / "failure.json").read_text())
    assert (record["kind"], record["message"]) == ("node", "the worker was killed by SIGKILL on n1")
    assert not run.failure_file.exists()


def test_a_worker_that_hangs_is_killed_and_tried_again_in_a_new_job(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_HUNG_MINUTES", "0.01")
    run = make(tmp_path)
    assert work(plan(run, program="import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"))
    assert calls(room) == ["requeue 77_1"]
    record = json.loads((run.attempt_dir(1) / "failure.json").read_text())
    assert record["kind"] == "node"
    assert record["message"].startswith("no step for 0.01 min")
    assert not run.failure_file.exists()


def test_every_task_of_a_run_that_hangs_kills_its_rank(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_HUNG_MINUTES", "0.01")
    run = make(tmp_path)
    assert work(plan(run, program=STOPPABLE, resources=Resources(ranks=2, cpus=1, gpus=0)), place(SLURM_PROCID="1"))
    failure = run.read_failure() or {}
    assert failure["kind"] == "node"
    assert failure["message"].startswith("no step for 0.01 min")
    assert calls(room) == [], "the first rank's task puts the job back"


def test_a_failure_of_the_runs_own_stays(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    program = (
        "import json, os, sys; json.dump({'kind': 'diverged', 'message': 'nan'}, "
        "open(os.path.join(sys.argv[1], 'failure.json'), 'w')); sys.exit(1)"
    )
    assert not work(plan(run, program=program))
    assert run.observe().kind == "diverged"
    assert calls(room) == []


def test_a_run_that_another_worker_still_holds_is_waited_for(tmp_path: Path) -> None:
    run = make(tmp_path)
    program = (
        "import os, sys; path = os.path.join(sys.argv[1], 'tries'); tries = os.path.getsize(path) if "
        "os.path.exists(path) else 0; open(path, 'a').write('x'); tries < 2 and sys.exit(75); "
        "open(os.path.join(sys.argv[1], 'result.json'), 'w').write('{}')"
    )
    assert work(plan(run, program=program))
    assert (run.path / "tries").read_text() == "xxx"


def test_where_requeueing_fails_the_run_says_so_and_can_be_resumed(tmp_path: Path, room: Path) -> None:
    (room / "down").touch()
    run = make(tmp_path)
    assert not work(plan(run, program="import os; os.kill(os.getpid(), 9)"))
    failure = run.read_failure() or {}
    assert failure["kind"] == "node"
    assert "could not be requeued" in failure["message"]


def test_other_ranks_leave_the_settling_to_the_first(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    two = Resources(ranks=2, cpus=1, gpus=0)
    assert work(plan(run, program="import os; os.kill(os.getpid(), 9)", resources=two), place(SLURM_PROCID="1"))
    assert calls(room) == []
    assert (run.read_failure() or {})["message"] == "rank 1 was killed by SIGKILL on n1"


def test_the_interpreter_is_the_jobs_own(tmp_path: Path) -> None:
    run = make(tmp_path)
    program = "import os, sys; open(os.path.join(sys.argv[1], 'who'), 'w').write(sys.executable)"
    work(plan(run, program=program))
    assert (run.path / "who").read_text() == sys.executable


SHORT_OF_MEMORY = """
import json, os, sys
parts = int(os.environ["SEQLM_MICRO_BATCHES"])
failure = {"kind": "oom", "message": "no memory", "attempt": int(os.environ["SEQLM_ATTEMPT"])}
name, content = ("failure.json", failure) if parts < 4 else ("result.json", {"micro_batches": parts})
json.dump(content, open(os.path.join(sys.argv[1], name), "w"))
sys.exit(parts < 4)
"""


def start_again(told: JobPlan, restarts: int, signals: Signals | None = None, **env: str) -> bool:
    return work(told, place(SLURM_RESTART_COUNT=str(restarts), **env), signals)


def test_a_run_short_of_memory_is_requeued_with_smaller_micro_batches_until_it_fits(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    told = plan(run, program=SHORT_OF_MEMORY, policy=Policy())
    assert [start_again(told, restarts) for restarts in range(3)] == [True] * 3
    assert run.read_result() == {"micro_batches": 4}
    assert calls(room) == ["requeue 77_1"] * 2
    assert [failed.micro_batches for failed in history(run)] == [1, 2]


def test_a_run_that_never_fits_stands_as_failed_and_says_why(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    told = plan(run, program=SHORT_OF_MEMORY, policy=Policy(oom=1))
    assert [start_again(told, restarts) for restarts in range(2)] == [True, False]
    assert run.observe().reason == "oom: no memory, after 1 retry with ever smaller micro-batches"
    assert calls(room) == ["requeue 77_1"]
    assert not start_again(told, 2), "an operator's requeue does not start it"
    assert run.attempts() == [1, 2]


def test_time_limits_are_counted_over_the_life_of_a_run_whatever_was_gained(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    for restarts in range(2):
        (run.path / "ready").unlink(missing_ok=True)
        write_json_lines(run.metrics_file, [{"epoch": epoch, "val_ppl": 9.0} for epoch in range(restarts + 1)])
        signals = Signals()
        thread = stop_when_ready(run, signals, warn=True)
        end = str(int(time.time()) + 60)
        told = plan(run, program=STOPPABLE, policy=Policy(timeout=1))
        assert start_again(told, restarts, signals, SLURM_JOB_END_TIME=end) == (restarts == 0)
        thread.join()
    assert (run.read_failure() or {})["message"] == "the job's time limit of 10 min, after 1 retry of this kind"


def test_a_signal_does_not_make_a_failure_that_is_tried_again_the_last_word(tmp_path: Path, room: Path) -> None:
    """One run of a job has lost its disk while the other goes on, when the whole job is requeued from outside."""
    lost, other = make(tmp_path, "a"), make(tmp_path, "b")
    program = (
        "import json, os, sys\nif sys.argv[1].endswith('a'):\n    json.dump({'kind': 'node', 'message': 'disk', "
        "'attempt': int(os.environ['SEQLM_ATTEMPT'])}, open(os.path.join(sys.argv[1], 'failure.json'), 'w'))\n"
        "    sys.exit(74)\n" + STOPPABLE
    )
    signals = Signals()
    thread = stop_when_ready(other, signals, warn=False)
    work(plan(lost, other, program=program), signals=signals)
    thread.join()
    assert not lost.failure_file.exists()
    assert [failed.kind for failed in history(lost)] == ["node"]
    assert start_again(plan(lost, other), 1), "both runs are done in the job's next start"
    assert lost.result_file.exists()
    assert "requeue 77_1" not in calls(room), "SLURM itself puts the job back"


def test_a_failure_that_a_lost_job_could_not_settle_is_taken_up_by_the_next_start(tmp_path: Path) -> None:
    run, mine, stands = make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c")
    for made, record in ((run, {"attempt": 1}), (mine, {"attempt": 2}), (stands, {"attempt": 1, "stands": True})):
        made.write_failure_once({"kind": "node", "message": "lost", **record})
    start_again(plan(run, mine, stands), 1)
    assert run.result_file.exists()
    assert [failed.kind for failed in history(run)] == ["node"]
    assert not run.failure_file.exists()
    assert not mine.result_file.exists(), "a rank of this very attempt has said it"
    assert not stands.result_file.exists()


@pytest.mark.parametrize("ending", ["sys.exit(143)", "os.kill(os.getpid(), 15)"])
def test_a_worker_that_somebody_else_has_stopped_is_requeued(tmp_path: Path, room: Path, ending: str) -> None:
    run = make(tmp_path)
    assert work(plan(run, program=f"import os, sys; {ending}"))
    record = json.loads((run.attempt_dir(1) / "failure.json").read_text())
    assert record["kind"] == "preempted"
    assert "which was not us" in record["message"]
    assert calls(room) == ["requeue 77_1"]


def test_a_signal_to_the_whole_job_that_reaches_its_worker_first_is_the_jobs(tmp_path: Path, room: Path) -> None:
    run, signals = make(tmp_path), Signals()

    def late(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        signals.told = signals.told or seconds == task.GRACE_SECONDS
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task.time, "sleep", late)
        work(plan(run, program="import sys; sys.exit(143)"), signals=signals)
    assert signals.told
    assert history(run) == []
    assert not run.failure_file.exists()


def test_a_worker_killed_for_its_memory_gets_smaller_micro_batches(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.memory_kills.MemoryKills.explain_one", lambda self: True)
    run = make(tmp_path)
    program = "import os, sys; int(os.environ['SEQLM_MICRO_BATCHES']) < 2 and os.kill(os.getpid(), 9);" + TELL
    assert start_again(plan(run, program=program), 0)
    assert start_again(plan(run, program=program), 1)
    assert run.result_file.exists()
    assert [failed.kind for failed in history(run)] == ["oom"]
