import os
from pathlib import Path

import pytest

from jobs.study.folder import Observer, read_jobs
from jobs.study.scheduler import Claim, Views, works_in
from seqlm.files import write_json
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from seqlm.state import View
from slurm import scheduler
from slurm.scheduler import job_state, parents, read_sacct, read_squeue
from tests.facts import fail
from tests.seqlm.training.studies import make_config, make_run
from tests.slurm.programs import answering, program
from tests.slurm_jobs import write_jobs


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH for programs."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
LOST = "sacct: error: slurm_persist_conn_open"
NO_ACCOUNTING = "Slurm accounting storage is disabled"


@pytest.mark.parametrize(
    ("state", "reason", "stage", "kind", "text"),
    [
        ("PENDING", "Resources", "queued", None, "it waits for free nodes"),
        ("PENDING", "None", "queued", None, "about to start"),
        ("PENDING", "(Odd, really)", "queued", None, "SLURM reports Odd, really"),
        ("RUNNING", "None", "running", None, ""),
        ("COMPLETING", "None", "running", None, ""),
        ("REQUEUE_HOLD", "JobHeldUser", "queued", None, "it is held by its user"),
        ("SUSPENDED", "None", "running", None, "suspended: SLURM has stopped its processes for a while"),
        ("CANCELLED by 1000", "", "ended", "cancelled", "cancelled by scancel"),
        ("CANCELLED+", "", "ended", "cancelled", "cancelled by scancel"),
        ("TIMEOUT", "", "ended", "timeout", "SLURM reports TIMEOUT"),
        ("NODE_FAIL", "", "ended", "node", "SLURM reports NODE_FAIL"),
        ("OUT_OF_MEMORY", "", "ended", "oom", "SLURM reports OUT_OF_MEMORY"),
        ("PREEMPTED", "", "ended", "preempted", "SLURM reports PREEMPTED"),
        ("FAILED", "NonZeroExitCode", "ended", "code", "SLURM reports FAILED"),
        ("FAILED", "RaisedSignal:53(Real-time_signal_19)", "ended", "node", "SLURM reports FAILED (RaisedSignal:53)"),
        ("COMPLETED", "", "ended", None, "its job ended without writing a result; see its logs"),
    ],
)
def test_slurms_words_are_told_in_ours(state: str, reason: str, stage: str, kind: str | None, text: str) -> None:
    found = job_state(state, reason)
    assert (found.stage, found.kind, found.reason) == (stage, kind, text)


@pytest.mark.process
def test_a_warning_of_a_command_is_no_answer(room: Path) -> None:
    answering(room, "squeue", "7_0|RUNNING|None\n", to="stderr")
    assert scheduler.ask("squeue") == ""


def test_the_answers_of_squeue_and_sacct_are_read_by_job() -> None:
    rows = read_squeue("7_0|RUNNING|None|/a\n7_1|PENDING|Priority|/b|c \nodd\n")
    found = [(row.job, row.view.stage, row.folder) for row in rows]
    assert found == [("7_0", "running", "/a"), ("7_1", "queued", "/b|c ")]
    text = "7_0|REQUEUED|0:0|/a\n7_0|TIMEOUT|0:0|/a\n7_1|FAILED|0:9|/a|b\n7_2|FAILED|1:0|/\n7_[3-4%2]|PENDING|0:0|/a\n"
    kinds = {"7_0": "timeout", "7_1": "node", "7_2": "code"}
    assert {row.job: row.view.kind for row in read_sacct(text)} == kinds


@pytest.mark.process
def test_a_thousand_runs_take_two_calls_at_most(room: Path) -> None:
    answering(room, "squeue", "".join(f"7_{number}|PENDING|Priority|{room}\n" for number in range(900)))
    answering(room, "sacct", "".join(f"8_{number}|COMPLETED|0:0|{room}\n" for number in range(100)))
    asker = Views()
    waiting, ended = ([f"{array}_{number}" for number in range(count)] for array, count in ((7, 900), (8, 100)))
    states = asker.of([Claim(job, room, "slurm") for job in [*waiting, *ended]])
    assert len(states) == 1000
    assert sum(state.stage == "ended" for state in states.values()) == 100
    asker.of([Claim("7_1", room, "slurm")])  # an answer is kept for a while
    assert [len((room / f"{name}.asked").read_text().splitlines()) for name in ("squeue", "sacct")] == [1, 1]


@pytest.mark.process
@pytest.mark.parametrize("own", ["PENDING", "RUNNING", "COMPLETED", "CANCELLED", None])
@pytest.mark.parametrize("other", ["PENDING", "RUNNING", "COMPLETED"])
def test_a_run_waits_as_its_own_job_does_and_once_that_has_ended_as_long_as_another_one_of_the_array_may_take_it(
    room: Path, own: str | None, other: str
) -> None:
    rows = [f"7_0|{own}|Priority|{room}\n"] * (own is not None) + [f"7_1|{other}|Resources|{room}\n"]
    answering(room, "squeue", "".join(rows))
    answering(room, "sacct", "")
    claim = Claim("7_0", room, "slurm")
    (seen,) = Views().of([claim]).values()
    if own == "PENDING":
        assert (seen.stage, seen.reason) == ("queued", "other jobs have priority")
    elif own == "RUNNING":
        assert seen.stage == "running"
    elif other in ("PENDING", "RUNNING"):
        assert seen.stage == "queued"
    else:
        assert seen.stage == ("gone" if own is None else "ended")
        assert (seen.kind == "cancelled") == (own == "CANCELLED")


NO_CONTROLLER = "slurmctld does not answer; this is the last known state"


@pytest.mark.process
@pytest.mark.parametrize(
    ("squeue_says", "sacct_says", "expected"),
    [
        ("7|RUNNING|None|{room}", "", View(stage="running", reason="")),
        ("error: Invalid job id specified", f"error: {NO_ACCOUNTING}", "gone"),
        (DOWN, LOST, View(stage="unknown", reason=NO_CONTROLLER)),
        (DOWN, "7|TIMEOUT|0:0|{room}", View(stage="ended", reason="SLURM reports TIMEOUT", kind="timeout")),
        (DOWN, "7|PENDING|0:0|{room}", "queued"),
        (DOWN, "7|TIMEOUT|0:0|/other", "unknown"),
        ("7|RUNNING|None|/other", "7|TIMEOUT|0:0|{room}", "ended"),
        ("7|RUNNING|None|/other", f"error: {NO_ACCOUNTING}", "gone"),
        (DOWN, "8|TIMEOUT|0:0|{room}\n7_[2-3]|PENDING|0:0|{room}", View(stage="unknown", reason=NO_CONTROLLER)),
        ("", LOST, View(stage="unknown", reason="slurmdbd (accounting) does not answer; this is the last known state")),
        ("", "", "gone"),
        ("hangs", "hangs", "unknown"),
    ],
)
def test_a_job_is_gone_only_if_the_queue_and_the_accounting_have_answered(
    room: Path, monkeypatch: pytest.MonkeyPatch, squeue_says: str, sacct_says: str, expected: View | str
) -> None:
    for name, says in (("squeue", squeue_says), ("sacct", sacct_says)):
        if says == "hangs":
            program(room, name, "exec sleep 60")
            monkeypatch.setattr(scheduler, "CALL_SECONDS", 0.1)
        else:
            says = says.replace("{room}", str(room))
            answering(room, name, f"{says}\n", **({"code": 1, "to": "stderr"} if "error: " in says else {}))
    (found,) = Views().of([Claim("7", room, "slurm")]).values()
    assert (found.stage if isinstance(expected, str) else found) == expected


def test_the_arrays_of_jobs_are_named_once() -> None:
    assert parents(Claim(job, Path("/"), "slurm") for job in ("12_1", "9", "12_0")) == ["9", "12"]


def test_a_folder_is_the_same_by_any_path_and_a_copy_of_it_is_another(tmp_path: Path) -> None:
    study, copy, link = tmp_path / "s", tmp_path / "copy", tmp_path / "link"
    for folder in (study, copy):
        (folder / "launches" / "000001").mkdir(parents=True)
    link.symlink_to(study)

    def works(place: Path, of: Path) -> bool:
        return works_in(str(place / "launches" / "000001"), of / "launches" / "000001")

    assert works(study, study)
    assert works(link, study)
    assert works(study, link)
    assert not works(copy, study)
    study.rename(tmp_path / "moved")
    assert not works(study, tmp_path / "moved"), "its jobs need the folder where it was"
    assert works(tmp_path / "gone" / ".." / "lost", tmp_path / "lost"), "compared by name if it is not here"


# -- runs that have jobs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        (View(stage="queued", reason="waits"), "queued", "waits"),
        (View(stage="unknown", reason="no answer"), "queued", "no answer"),
        (View(stage="running", reason=""), "running", None),
        (View(stage="running", reason="suspended"), "running", "suspended"),
        (View(stage="ended", reason="by scancel", kind="cancelled"), "cancelled", "by scancel"),
        (View(stage="ended", reason="NODE_FAIL", kind="node"), "failed", "node: NODE_FAIL"),
        (View(stage="gone", reason="gone; run again"), "pending", "gone; run again"),
    ],
)
def test_a_job_tells_what_its_run_does_not(tmp_path: Path, job: View, state: str, reason: str | None) -> None:
    run = make_run(tmp_path / "run", make_config())
    observer = Observer(tmp_path)
    observer.jobs = {run.id: job}
    seen = observer.observe(run)
    assert (seen.state, seen.reason) == (state, reason)
    write_json(run.result_file, {})
    assert observer.observe(run).state == "done", "its own word goes first"


@pytest.mark.process
def test_only_runs_that_have_not_spoken_are_asked_about(room: Path) -> None:
    study = room / "study"
    runs = [make_run(study / name, make_config(seed=seed)) for seed, name in enumerate(("a-1", "b-2", "c-3"))]
    write_json(runs[0].result_file, {})
    write_jobs(study, {run.id: f"7_{number}" for number, run in enumerate(runs)})
    fail(runs[1], {"kind": "diverged", "message": "nan"})
    answering(room, "squeue", f"7_2|PENDING|Resources|{study}/launches/000001\n")
    assert list(Observer(study).jobs) == ["c-3"]


def test_the_newest_request_that_names_a_run_says_whose_it_is(tmp_path: Path) -> None:
    study = tmp_path / "study"
    one, other = (make_run(study / name, make_config(seed=seed)) for seed, name in enumerate(("a-1", "b-2")))
    write_jobs(study, {one.id: "7_0", other.id: "7_1"})
    assert {run: job.id for run, job in read_jobs(study).items()} == {one.id: "7_0", other.id: "7_1"}
    file_request(study, RequestFile(kind="run", backend="slurm", runs={one.id: Wanted()}))
    assert list(read_jobs(study)) == [other.id], "its new job is not known yet"
    file_request(study, RequestFile(kind="run", backend="local", runs={other.id: Wanted()}))
    assert read_jobs(study) == {}


def test_a_study_without_jobs_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "ask", lambda *_: pytest.fail("asked"))
    make_run(tmp_path / "s" / "a-1", make_config())
    assert not Observer(tmp_path / "s").jobs
    assert RunDirectory(tmp_path / "s" / "a-1").observe().state == "pending"
