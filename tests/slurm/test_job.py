"""What a job does inside, without SLURM: its variables are set by hand, its commands are small programs on PATH."""

import errno
import io
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.attempt.attempt import micro_batches
from jobs.cli.studying import print_log
from jobs.launch import dispatch
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import StudySettings
from jobs.manifests.policy import Policy
from jobs.scheduled import again, allocation, job, share
from jobs.scheduled.job import Signals, run_job, serve
from jobs.scheduled.slot import MOST_IDLE, OVER, Start
from jobs.scheduled.submission import JobPlan
from jobs.study import budget
from jobs.study.folder import observe_study
from jobs.study.scheduler import Allocation
from seqlm import ends
from seqlm.errors import FileError
from seqlm.files import write_json
from seqlm.records.batch import ArrayPlan, Limits
from seqlm.records.requests import RequestFile, Wanted
from seqlm.records.runs import Result
from seqlm.requests import Request, Requests, file_request
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from slurm.scheduler import Slurm
from tests.analysis.attempt_files import write_attempt
from tests.jobs.launch.test_notify import MESSAGES, numbers
from tests.seqlm.training.studies import make_config, make_run
from tests.slurm.programs import answering, program
from tests.waiting import wait_for

pytestmark = pytest.mark.process

TELL = """
import json, os, sys
names = "RANK WORLD_SIZE SEQLM_DEVICE CUDA_VISIBLE_DEVICES SEQLM_ATTEMPT SEQLM_NODE".split()
names += ["SEQLM_RENDEZVOUS", "SEQLM_RENDEZVOUS_HOST", "SEQLM_GPU_SHARE", "OMP_NUM_THREADS", "PYTHONPATH"]
told = {"python": sys.executable, **{n: os.environ.get(n) for n in names}}
json.dump(told, open(os.path.join(sys.argv[1], "told-" + os.environ["RANK"]), "w"))
open(os.path.join(sys.argv[1], "result.json"), "w").write("{}")
"""
STOPPABLE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))
open(os.path.join(sys.argv[1], "ready"), "w")
while True: time.sleep(0.02)  # a signal right before one long sleep would be heard after it
"""
SAY = """
import json, os, sys
def say(**record):
    name = "end.json" if os.environ["RANK"] == "0" else "end-" + os.environ["RANK"] + ".json"
    path = os.path.join(sys.argv[1], "attempts", os.environ["SEQLM_ATTEMPT"].zfill(4), name)
    json.dump({"rank": int(os.environ["RANK"]), **record}, open(path, "w"))
"""
"""How a rank records its end."""
ENV = {"SLURM_JOB_ID": "78", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "0", "SLURMD_NODENAME": "n1"}


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH with an scontrol that answers what files there say."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "state").write_text("[]")
    (folder / "config").write_text("")
    program(
        folder,
        "scontrol",
        f"""case "$*" in
    --json*) cat {folder}/state;;
    "show config") cat {folder}/config;;
esac""",
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(dispatch, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(again, "TRIES", 1)
    monkeypatch.setattr(share, "SOON_SECONDS", math.inf)  # nobody keeps the waits that a job asks for
    return folder


def asked(told: JobPlan) -> list[list[str]]:
    """Return what each start of the job has asked to be changed: nodes to avoid, after a hyphen, and other changes.

    A run waits from its failure on, so of the job's wait a busy machine takes seconds off. They are put back.
    """
    found = []
    for folder in sorted((told.folder / "job-0-0").glob("*/"), key=lambda path: int(path.name)):
        if (folder / "again").exists():
            sick = (folder / "sick").read_text().splitlines()
            changes = (folder / "again").read_text().splitlines()
            found.append([*(f"-{node}" for node in sick), *map(_with_whole_wait, changes)])
    return found


def _with_whole_wait(change: str) -> str:
    name, _, seconds = change.partition("=") if change.startswith("wait_s=") else (change, "", "")
    whole = next((one for one in (5, 25, 120, 125) if seconds and one >= int(seconds)), seconds)
    return f"{name}={whole}" if seconds else change


def make(folder: Path, name: str = "run") -> RunDirectory:
    return make_run(folder / name, make_config())


def plan(*runs: RunDirectory, program: str = TELL, **changes: object) -> JobPlan:
    """A submission of one job with these runs."""
    study_dir = runs[0].path.parent
    policy = changes.setdefault("policy", Policy(max_stalled_retries=2)).to_dict()  # type: ignore[attr-defined]
    wanted = {run.id: Wanted(from_attempt=changes.pop("first", 1)) for run in runs}
    request = file_request(study_dir, RequestFile(kind="run", backend="slurm", policy=policy, runs=wanted))
    resources = changes.pop("resources", None) or Resources(cpus=1, gpus=0)
    array: dict[str, Any] = {"jobs": 1, "nodes": 1, "cpus": 8, "gpus": 1 if resources.gpus else 0}
    array |= {"at_once": len(runs), "timeout_min": changes.pop("timeout_min", 10), "most": changes.pop("most", None)}
    array |= changes.pop("array", {})  # type: ignore[call-overload]
    given: dict[str, Any] = {key: changes.pop(key) for key in ("policy", "search", "notify") if key in changes}
    known: dict[str, object] = {
        "study": StudySettings(path=study_dir, worker=("-S", "-c", program), **given),
        "env": {},
        "request": request.number,
        "arrays": (ArrayPlan(runs={run.id: resources for run in runs}, **array),),
        "code": Path.cwd(),
        "data": {},
        "launched": {run.id: () for run in runs},
        "signal_before_s": 60,
        "must_have_nodes": False,
        "scheduler": "slurm",
    }
    return JobPlan(**{**known, **changes})  # type: ignore[arg-type]


def place(**env: str) -> Allocation:
    return Slurm().allocation({**ENV, **env})


def next_start(told: JobPlan) -> Start:
    """Make the folder of a start of the job, as its script does."""
    slot = told.folder / "job-0-0"
    (slot / OVER).unlink(missing_ok=True)
    start = Start(slot / str(1 + len(list(slot.glob("*/")))))
    start.folder.mkdir(parents=True)
    return start


def work(
    told: JobPlan, where: Allocation | None = None, signals: Signals | None = None, start: Start | None = None
) -> bool:
    """Let a job run. Return whether all is well, or it is to be put back."""
    start = start or next_start(told)
    run_job(told, 0, where or place(), signals or Signals(), start)
    over = start.folder.with_name(OVER)
    return not over.exists() or over.read_text() == "0\n"


def stop_when_ready(run: RunDirectory, signals: Signals, *, warn: bool) -> threading.Thread:
    def wait() -> None:
        wait_for((run.path / "ready").exists, "the worker to be ready")
        signals.warned_at = time.time() if warn else None
        signals.stop = True

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_ranks_of_a_node_learn_their_places_and_their_attempt(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.attempt_dir(2).mkdir(parents=True)
    two, env = Resources(ranks=2, cpus=1, gpus=1), {"PYTHONPATH": "/of/the/user"}
    assert work(plan(run, resources=two, env=env), place(CUDA_VISIBLE_DEVICES="4,6"))
    first, second = (json.loads((run.path / f"told-{rank}").read_text()) for rank in (0, 1))
    assert (second["RANK"], second["WORLD_SIZE"]) == ("1", "2")
    assert (second["SEQLM_DEVICE"], second["CUDA_VISIBLE_DEVICES"]) == ("cuda", "6"), "of the job's GPUs its own"
    assert second["SEQLM_ATTEMPT"] == "3", "the next one, whatever job or launcher has made the others"
    assert second["SEQLM_RENDEZVOUS"] == str(run.attempt_dir(3) / "rendezvous")
    assert second["SEQLM_RENDEZVOUS_HOST"] == "n1", "at a port that the system chooses there"
    assert (first["CUDA_VISIBLE_DEVICES"], first["SEQLM_NODE"], second["SEQLM_NODE"]) == ("4", "n1", "n1")
    assert first["PYTHONPATH"].split(":")[:2] == [str(Path.cwd()), "/of/the/user"], "the code comes first"
    assert first["python"] == sys.executable, "the job's own"


def test_the_index_that_slurm_gives_becomes_the_uuid_of_the_card_and_the_share_is_told(
    tmp_path: Path, room: Path
) -> None:
    answering(room, "nvidia-smi", "".join(f"GPU {n}: Tesla V100-SXM2-16GB (UUID: GPU-{n}{n})\n" for n in range(8)))
    run = make(tmp_path)
    assert work(plan(run, resources=Resources(cpus=1, gpus=0.25)), place(CUDA_VISIBLE_DEVICES="6"))
    told = json.loads((run.path / "told-0").read_text())
    assert (told["CUDA_VISIBLE_DEVICES"], told["SEQLM_GPU_SHARE"]) == ("GPU-66", "0.25")


@pytest.mark.parametrize(("cpus", "threads"), [(2, "2"), (8, "3")])
def test_a_worker_has_no_more_threads_than_its_node_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, threads: str
) -> None:
    monkeypatch.setattr("seqlm.machine.cpu_count", lambda: 3)
    run = make(tmp_path)
    assert work(plan(run, resources=Resources(cpus=cpus, gpus=0)))
    assert json.loads((run.path / "told-0").read_text())["OMP_NUM_THREADS"] == threads


def test_a_job_without_the_gpus_it_asked_for_goes_on_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path)
    told = plan(run, resources=Resources(cpus=1, gpus=1))
    assert work(told)
    assert asked(told) == [["-n1", "wait_s=120"]]
    assert "SLURM gave this job no GPU" in capsys.readouterr().out
    assert run.observe().state == "pending"
    for _ in range(MOST_IDLE - 2):
        next_start(told)
    assert not work(told), "not without end"
    assert (run.observe().reason or "").startswith("node: SLURM gave this job no GPU")


def test_a_run_whose_configuration_is_damaged_costs_the_others_of_its_job_nothing(tmp_path: Path, room: Path) -> None:
    damaged, other = make(tmp_path, "a"), make(tmp_path, "b")
    damaged.config_file.write_text("{")
    told = plan(damaged, other)
    work(told)
    assert other.is_done()
    assert damaged.attempts() == [], "with its file written again, the run can start"
    assert asked(told) == [], "nothing is tried again"


def test_limits_without_an_epoch_in_between_come_to_an_end(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    told = plan(run, program=STOPPABLE)
    for restarts in range(3):
        (run.path / "ready").unlink(missing_ok=True)
        signals = Signals()
        thread = stop_when_ready(run, signals, warn=True)
        env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60), "SLURM_RESTART_COUNT": str(restarts)}
        well = work(told, place(**env), signals)
        thread.join()
        assert well == (restarts < 2)
    assert asked(told) == [[], ["wait_s=5"]]
    reason = "timeout: the job's time limit, after 2 retries in a row without progress"
    assert run.observe().reason == reason


def test_a_time_that_was_too_short_and_memory_that_was_too_little_are_raised_in_the_queue(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, signals = make(tmp_path, "late"), Signals()
    thread = stop_when_ready(run, signals, warn=True)
    told = plan(run, program=STOPPABLE, most=Limits(timeout_min=120))
    assert work(told, place(SLURM_JOB_END_TIME=str(int(time.time()) + 60)), signals)
    thread.join()
    assert asked(told) == [["minutes=120"]]

    monkeypatch.setattr("jobs.attempt.supervisor.MemoryKills.explain_one", lambda *_: True)
    killed, told_parts = make(tmp_path, "large"), []
    told = plan(killed, program=KILLED, resources=Resources(cpus=1, gpus=1), most=Limits(timeout_min=10, mem_gb=2))
    for memory in ("1000", "1500", "2048"):
        work(told, place(CUDA_VISIBLE_DEVICES="0", SLURM_MEM_PER_NODE=memory))
        told_parts.append(micro_batches(killed, 8, 1, memory_mb=2048))
    raised = [line.rpartition("=")[2] for lines in asked(told) for line in lines if "memory_mb" in line]
    assert raised == ["1500", "2048"], "1.5 times what it had, and no more than a node has"
    assert told_parts[:2] == [1, 1]
    assert told_parts[2] > 1, "then smaller micro-batches are left"


@pytest.mark.parametrize("clock_behind_s", [300, -300])
@pytest.mark.parametrize(("left_s", "kind"), [(60, "timeout"), (200, "preempted")])
def test_a_time_limit_is_told_from_a_preemption_whatever_the_nodes_clock_says(
    tmp_path: Path, room: Path, clock_behind_s: int, left_s: int, kind: str
) -> None:
    run, signals = make(tmp_path), Signals()
    thread = stop_when_ready(run, signals, warn=True)
    now = time.time() + clock_behind_s  # by the controller's clock
    (room / "config").write_text(f"Configuration data as of {datetime.fromtimestamp(now):%Y-%m-%dT%H:%M:%S}\nx = y\n")
    end = {"SLURM_JOB_END_TIME": str(int(now) + left_s)}
    assert work(plan(run, program=STOPPABLE), place(**end), signals)
    thread.join()
    assert [failed.kind for failed in run.failures()] == [kind]


@pytest.mark.parametrize(
    ("words", "cancelled"), [(["CANCELLED", "COMPLETING"], True), (["PENDING", "COMPLETING"], False)]
)
def test_scancel_is_told_from_a_requeue_by_what_the_controller_says(
    tmp_path: Path, room: Path, words: list[str], cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # in which the command of MESSAGES writes
    run, signals = make(tmp_path), Signals()
    jobs: list[Mapping[str, object]] = [{"job_id": 78, "job_state": words}, {"job_id": 77, "job_state": ["RUNNING"]}]
    (room / "state").write_text(json.dumps({"jobs": jobs}))
    thread = stop_when_ready(run, signals, warn=False)
    told = plan(run, program=STOPPABLE, notify=MESSAGES)
    assert work(told, signals=signals)
    thread.join()
    assert (run.observe().state == "cancelled") == cancelled
    assert numbers(tmp_path) == (["1/over"] if cancelled else []), "the job that waits for all may be cancelled as well"
    assert asked(told) == [], "SLURM itself puts it back, or ends it"


def test_a_job_looks_at_the_budget_before_it_trains_and_while_it_does(
    tmp_path: Path, room: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "READ_SECONDS", 0.05)
    run, other = make(tmp_path), make_run(tmp_path / "other", make_config(seed=1))
    told = plan(run, program=STOPPABLE, policy=Policy(core_hours=4))
    write_attempt(other, 1, start=0, alive=3600)  # of another job: two cores for an hour

    def spend_when_ready() -> None:
        wait_for((run.path / "ready").exists, "the worker to be ready")
        write_attempt(other, 1, start=0, alive=7200)

    thread = threading.Thread(target=spend_when_ready)
    thread.start()
    assert work(told), "nothing has failed"
    thread.join()
    assert asked(told) == [], "the job is not put back"
    assert run.observe().state == "pending"
    assert capsys.readouterr().out == "run pending: waits: budget of 4 core hours is spent\n"
    (run.path / "ready").unlink()
    assert work(told)
    assert not (run.path / "ready").exists(), "the next start does not start it"
    write_json(tmp_path / "study.json", {"policy": {"core_hours": 5}})
    assert work(plan(run, policy=Policy(core_hours=4))), "the budget has been raised since the job was submitted"
    assert run.result_file.exists()
    run.result_file.unlink()
    write_json(tmp_path / "study.json", {"policy": Policy().to_dict()})
    assert work(plan(run, policy=Policy(core_hours=4))), "the budget has been lifted since the job was submitted"
    assert run.result_file.exists()


KILLED = "import os; os.kill(os.getpid(), 9)"
PEER_LOST = f"{SAY}say(kind='node', message='lost another rank', peer_lost=True); sys.exit(1)"


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        (["n1"], ["-n1", "wait_s=5"]),
        (["n1", "n2"], ["-n1", "wait_s=25"]),
        (["n1", "n2", "n1"], ["-n1", "wait_s=125"]),
        (["n1", "n2", "n2"], ["-n1", "-n2", "wait_s=125"]),
    ],
)
def test_a_run_is_tried_again_at_once_and_a_node_that_fails_twice_in_a_row_is_avoided(
    tmp_path: Path, nodes: list[str], changes: list[str]
) -> None:
    """Only at once: while the run is to wait for long, its job holds no node."""
    told = plan(make(tmp_path), program=KILLED, policy=Policy())
    for restarts, node in enumerate(nodes):
        assert start_again(told, restarts, SLURMD_NODENAME=node)
    assert asked(told)[-1] == changes


def test_a_node_on_which_no_worker_begins_is_avoided_at_once_and_the_run_has_two_more_tries(tmp_path: Path) -> None:
    run = make(tmp_path)
    told = plan(run, program="import sys; sys.exit('no such file')", policy=Policy())
    for restarts, node in enumerate(["n1", "n2"]):
        assert start_again(told, restarts, SLURMD_NODENAME=node)
    assert asked(told) == [["-n1"], ["-n1", "-n2", "wait_s=5"]]
    assert not start_again(told, 2, SLURMD_NODENAME="n3")
    seen = run.observe()
    assert (seen.kind, seen.is_final) == ("start", True)
    assert "no such file" in (seen.reason or "")


# -- the job's own files ---------------------------------------------------------------------------------------------


def stale(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_a_file_that_another_host_replaces_is_looked_at_again(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers ESTALE for a moment: at the start, while the worker trains, and when the run is settled."""
    monkeypatch.setattr(again, "TRIES", 3)
    monkeypatch.setattr(again, "AGAIN_SECONDS", 0.01)
    calls_of_newest: list[None] = []
    newest = Requests.newest

    def sometimes(self: Requests, run_id: str) -> Request | None:
        calls_of_newest.append(None)
        if len(calls_of_newest) == 2:
            stale()
        return newest(self, run_id)

    monkeypatch.setattr(Requests, "newest", sometimes)
    monkeypatch.setattr(RunDirectory, "is_cancelled", lambda self: False)
    run = make(tmp_path)
    told = plan(run, program="import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)")
    assert work(told)
    assert [failed.kind for failed in run.failures()] == ["node", "node"]
    assert asked(told) == [["-n1", "wait_s=5"]]


def test_files_that_stay_unreadable_are_a_failure_of_the_node_and_tried_again(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    monkeypatch.setattr("jobs.attempt.supervisor.append_to", stale)
    told = plan(run)
    assert work(told)
    assert asked(told) == [["-n1"]]
    assert [failed.kind for failed in run.failures()] == ["node"], "the next start of the job counts it"
    end = run.end(run.last_attempt())
    assert "Stale file handle" in end.message


def test_a_run_of_which_nothing_can_be_written_is_tried_again_in_a_later_start(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)

    def full(*arguments: object, **options: object) -> None:
        raise FileError.from_os_error("write", run.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(RunDirectory, "create_as_launched", full)
    monkeypatch.setattr(RunDirectory, "write_exit", full)
    told = plan(run)
    assert work(told)
    assert len(asked(told)) == 1
    for _ in range(MOST_IDLE - 2):
        next_start(told)
    assert work(told), "the run still waits, and is not failed"
    assert len(asked(told)) == 1, "not without end"


def test_a_fault_of_the_job_ends_its_workers(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)

    def fail(self: object, job: object) -> None:
        wait_for((run.path / "ready").exists, "the worker to be ready")
        raise ValueError("a fault")

    monkeypatch.setattr(Dispatcher, "_look_at", fail)
    program = STOPPABLE.replace("sys.exit(143)", "(open(os.path.join(sys.argv[1], 'asked'), 'w'), sys.exit(143))")
    told = plan(run, program=program)
    assert work(told)
    assert (run.path / "asked").exists()
    assert asked(told) == [["-n1", "wait_s=120"]], "this node may be to blame"


BUSY = (
    "import os, sys; path = os.path.join(sys.argv[1], 'tries'); tries = os.path.getsize(path) if "
    "os.path.exists(path) else 0; open(path, 'a').write('x'); tries < {busy} and sys.exit(75); "
    "open(os.path.join(sys.argv[1], 'result.json'), 'w').write('{{}}')"
)
"""A worker that finds another worker at the run, this number of times."""


@pytest.mark.parametrize(
    ("busy", "before", "starts", "told"),
    [(2, 0, 3, []), (100, 0, 4, [["wait_s=120"]]), (100, MOST_IDLE - 1, 4, [])],
)
def test_a_run_that_another_worker_holds_is_tried_a_few_times_then_it_holds_no_allocation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    busy: int,
    before: int,
    starts: int,
    told: list[list[str]],
) -> None:
    """Not without end: ``before`` is the number of starts without news."""
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    run = make(tmp_path)
    own = plan(run, program=BUSY.format(busy=busy), policy=Policy())
    for _ in range(before):
        next_start(own)
    start_again(own, before)
    assert (run.path / "tries").read_text() == starts * "x"
    assert asked(own) == told


SHORT_OF_MEMORY = f"""{SAY}
parts = int(os.environ["SEQLM_MICRO_BATCHES"])
if parts < 4:
    say(kind="oom", message="no memory", micro_batches=parts)
    sys.exit(1)
json.dump({{"micro_batches": parts}}, open(os.path.join(sys.argv[1], "result.json"), "w"))
"""


def start_again(told: JobPlan, restarts: int, signals: Signals | None = None, **env: str) -> bool:
    return work(told, place(SLURM_RESTART_COUNT=str(restarts), **env), signals)


def test_a_run_short_of_memory_goes_on_in_its_job_with_smaller_micro_batches_until_it_fits(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    run = make(tmp_path)
    told = plan(run, program=SHORT_OF_MEMORY, policy=Policy())
    assert work(told)
    assert run.read_result() == Result(micro_batches=4)
    assert asked(told) == []
    assert [failed.micro_batches for failed in run.failures()] == [1, 2]


# -- several nodes ---------------------------------------------------------------------------------------------------

TWO = Resources(ranks=2, cpus=1, gpus=1)


def work_on_two(told: JobPlan, room: Path, *, restarts: int = 0, second: str = "n2") -> bool:
    """A job on two nodes with a rank on each."""
    env = {"SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": str(restarts), "CUDA_VISIBLE_DEVICES": "0"}
    other = place(**env, SLURM_NODEID="1", SLURMD_NODENAME=second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_RESTART_COUNT", str(restarts))
        patch.setattr(job, "POLL_SECONDS", 0.05)
        start = next_start(told)
        thread = threading.Thread(target=serve, args=(told, 0, other, Signals(), "n1", start), daemon=True)
        thread.start()
        well = work(told, place(**env), start=start)
        start.note_end()
        wait_for(lambda: not thread.is_alive(), "the end of the other node's process")
    return well


def test_each_node_starts_its_own_ranks_of_the_same_attempt(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    assert work_on_two(plan(run, resources=TWO), room)
    first, second = (json.loads((run.path / f"told-{rank}").read_text()) for rank in (0, 1))
    assert (first["SEQLM_NODE"], second["SEQLM_NODE"]) == ("n1", "n2")
    assert first["SEQLM_RENDEZVOUS_HOST"] == second["SEQLM_RENDEZVOUS_HOST"] == "n1"
    assert first["SEQLM_RENDEZVOUS"] == second["SEQLM_RENDEZVOUS"]
    assert (first["SEQLM_ATTEMPT"], second["SEQLM_ATTEMPT"]) == ("1", "1")


def test_a_job_on_several_nodes_has_one_run_after_another(tmp_path: Path, room: Path) -> None:
    runs = [make(tmp_path, name) for name in "abc"]
    told = plan(*runs, resources=TWO, array={"at_once": 1})
    assert work_on_two(told, room)
    for run in runs:
        first, second = (json.loads((run.path / f"told-{rank}").read_text()) for rank in (0, 1))
        assert (first["SEQLM_NODE"], second["SEQLM_NODE"]) == ("n1", "n2")
        assert first["SEQLM_RENDEZVOUS"] == second["SEQLM_RENDEZVOUS"] == str(run.attempt_dir(1) / "rendezvous")
        assert run.is_done()
    assert asked(told) == []


def test_a_job_on_several_nodes_starts_nothing_more_on_them_after_a_failure_that_another_node_may_help_with(
    tmp_path: Path, room: Path
) -> None:
    failing, other = make(tmp_path, "a"), make(tmp_path, "b")
    program = (
        f"import os, sys\nif sys.argv[1].endswith('a'):\n    os.environ['RANK'] == '0' and sys.exit(1)\n    {KILLED}\n"
    )
    program += TELL
    told = plan(failing, other, program=program, resources=TWO, policy=Policy(), array={"at_once": 1})
    assert work_on_two(told, room)
    assert [failed.kind for failed in failing.failures()] == ["node"]
    assert other.attempts() == []
    assert len(asked(told)) == 1


def test_each_node_has_logs_of_its_own_and_the_one_that_failed_says_why(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    program = (
        "import os, sys, time\nrank = os.environ['RANK']\nprint('out of', rank)\nprint('why', rank, file=sys.stderr)\n"
        "time.sleep(0.5 * (rank == '0'))\nsys.exit(1 if rank == '0' else 74)"
    )
    work_on_two(plan(run, program=program, resources=TWO), room)
    printed = {path.name: path.read_text() for path in run.logs(1)}
    assert printed == {
        "stdout.log": "out of 0\n",
        "stderr.log": "why 0\n",
        "stdout-1.log": "out of 1\n",
        "stderr-1.log": "why 1\n",
    }
    assert run.end(1).message.startswith("why 1"), "the exit code of rank 1 explains that of rank 0"
    (seen,) = observe_study(tmp_path)
    shown = print_log(seen, 10, io.StringIO())[0]
    assert (shown["stdout"], shown["stderr"]) == (["out of 0", "out of 1"], ["why 0", "why 1"])
    run.fold(2)
    assert all(text in run.older_log.read_text() for text in printed.values())


def test_of_several_nodes_only_one_that_lost_a_rank_is_to_blame(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    program = "import os, sys, time\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\nsys.exit(1)"
    told = plan(run, program=program, resources=TWO, policy=Policy())
    for restarts in range(2):
        assert work_on_two(told, room, restarts=restarts)
    assert [failed.node for failed in run.failures()] == ["n2", "n2"]
    assert asked(told)[-1] == ["-n2", "wait_s=5"]
    end = run.end(1)
    assert end.message.startswith("rank 1 was killed by SIGKILL on n2")


def test_a_failure_that_a_rank_tells_on_several_nodes_blames_none(tmp_path: Path, room: Path) -> None:
    run = make(tmp_path)
    assert work_on_two(plan(run, program=PEER_LOST, resources=TWO), room)
    assert [failed.node for failed in run.failures()] == [None]


def test_a_rank_on_another_node_that_does_not_notice_a_failure_is_killed(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.attempt.supervisor.PEER_GRACE_SECONDS", 0.1)
    run = make(tmp_path)
    program = (
        f"{SAY}\nimport time\nif os.environ['RANK'] == '0':\n    say(kind='diverged', message='nan')\n    sys.exit(1)\n"
        "for _ in range(3000): time.sleep(0.02)"  # then it ends well, and the test fails
    )
    assert not work_on_two(plan(run, program=program, resources=TWO), room)
    assert run.end(1).kind == "diverged", "the cause stays"


def test_a_node_that_does_not_answer_is_a_failure_of_the_node(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "LOST_SECONDS", 0.1)
    run = make(tmp_path)
    assert work(
        plan(run, program="import sys; sys.exit(1)", resources=TWO),
        place(SLURM_JOB_NUM_NODES="2", CUDA_VISIBLE_DEVICES="0"),
    )
    assert [failed.kind for failed in run.failures()] == ["node"]
