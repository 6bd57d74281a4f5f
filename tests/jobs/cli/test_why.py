"""Why a run waits, failed or was stopped, here and on Ray; ``tests/slurm/test_waiting.py`` has the jobs of SLURM."""

import time
from datetime import datetime
from pathlib import Path

import pytest

import launch
from jobs.cli.why import GO_ON, STOPPED
from jobs.study.folder import launching, write_queue
from seqlm.files import write_json, write_json_lines
from seqlm.records.attempts import Start
from seqlm.records.batch import Batch
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from seqlm.state import KINDS
from tests.commands import ask
from tests.facts import fail, stop
from tests.jobs.cli.test_watch import add, at_step, running, trained
from tests.slurm_jobs import array_of, write_jobs


def test_a_run_behind_others_starts_when_one_before_it_ends(tmp_path: Path) -> None:
    study = tmp_path / "s"
    first, *later = (add(study, name, order=number) for number, name in enumerate(("one", "two", "three")))
    trained(first, 2)
    with launching(study), running(first):
        at_step(first, epoch=2, step=25)  # 15 s are left: one and a half epochs of 10 s
        write_queue(study, {run.id: "needs 1 core, 0 free" for run in later})
        two, three = ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
        one, *_ = ask(["why", "s", "one", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    waits = [datetime.fromisoformat(run["starts_at"]).timestamp() - time.time() for run in (two, three)]
    assert waits == pytest.approx([15, 15 + 40], abs=5), "one after the other, each of four epochs of 10 s"
    assert (two["headline"], one["headline"]) == ("queued: needs 1 core, 0 free", "running")


def test_a_failed_run_has_what_to_do_and_its_log_and_the_overview_has_a_line_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = tuple(KINDS)
    for number, kind in enumerate(kinds):
        fail(add(tmp_path / "s", kind, order=number), {"kind": kind, "message": "it fails"})
        (run,) = ask(["why", "s", kind, "--runs-dir", "."], folder=tmp_path, env={})["runs"]
        assert run["details"]["do"] == (KINDS[kind].advice or GO_ON)
        assert run["details"].get("log", "").endswith("stderr.log") == (kind != "cancelled")
    stop(add(tmp_path / "s", "slow", order=99), {"rung": 2, "rank": 5, "of": 12, "goes_on": 4})
    (run,) = ask(["why", "s", "slow", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert run["details"]["do"] == STOPPED
    assert launch.main(["why", "s", "--runs-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(kinds) + 1
    assert "code  failed: code: it fails" in shown


def test_runs_of_which_the_same_is_to_be_said_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, message in enumerate(["it fails", "no room", "it fails"]):
        fail(add(tmp_path / "s", f"run{number}", order=number), {"message": message})
    assert launch.main(["why", "s", "--runs-dir", str(tmp_path)]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["run0, run2", "run1"]


def test_a_name_with_a_line_break_makes_no_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "a\nb  failed: code: forged"
    fail(add(tmp_path / "s", forged), {"kind": "code", "message": "it fails"})
    assert launch.main(["why", "s", "--runs-dir", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def done(run: RunDirectory, *seconds: float) -> None:
    """Let a run be done after epochs that took ``seconds``, on two ranks of three cores each."""
    phases = {"start_up": 0.1, "data": 1.9, "step": 60.0, "waiting": 31.0, "checkpoint": 2.0, "validation": 5.0}
    every = {"val_ppl": 100.0, "val_loss": 4.6, "phases": phases, "steps": 10, "communication_seconds": 2.0}
    records = [{"epoch": epoch, "epoch_seconds": time, **every} for epoch, time in enumerate(seconds)]
    write_json_lines(run.metrics_file, records)
    run.attempt_dir(1).mkdir(parents=True)
    Start(request=1, resources=Resources(ranks=2, cpus=3)).write(run.attempt_dir(1))
    for rank in range(2):
        used = {"seconds": 4320.0, "cpu_seconds": 4320.0 * 1.1, "peak_resident_bytes": 3 * 2**30}
        write_json(run.worker_file(1, rank), {"device": "a card", "resources": used})
    write_json(run.result_file, {"epochs": 4})


def test_a_slow_run_is_compared_with_others_like_it_and_its_plan(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for number in range(4):
        done(add(study, f"gru-{number}", "gru", order=number), *[20 if number == 3 else 10] * 4)
    done(add(study, "rnn", order=4), *[40] * 4)
    fingerprint = add(study, "gru-3", "gru", order=3).read_config().fingerprint()
    write_json(study / "study.json", {"version": 3, "estimates": {fingerprint: {"seconds": 32, "epochs": 4}}})
    (slow,) = ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert (slow["name"], slow["headline"]) == ("gru-3", "done, 100% slower than its 3 siblings, 2.5 x plan")


def test_a_run_no_slower_than_its_siblings_are_at_times_is_well(tmp_path: Path) -> None:
    for number in range(4):
        done(
            add(tmp_path / "s", f"gru-{number}", "gru", order=number), *([20] * 4 if number == 3 else [10, 21, 10, 10])
        )
    assert ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"] == []


@pytest.mark.parametrize("of_job", [False, True])
def test_a_run_has_where_its_time_went_what_it_used_and_what_would_be_enough(tmp_path: Path, of_job: bool) -> None:
    run = add(tmp_path / "s", "gru", "gru")
    if of_job:
        other = array_of("other", job="6", mem_gb=1, timeout_min=1)
        own = array_of("other", run.id, job="7", jobs=2, mem_gb=32, timeout_min=120)
        Batch(arrays=(other, own)).write(write_jobs(tmp_path / "s", {run.id: "7_1"}).folder)
    done(run, *[10] * 4)
    (found,) = ask(["why", "s", "gru", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert found["details"] == {
        "time": "waiting for ranks 51%, steps 40%, validation 5%, checkpoints 2%, data 2%",
        "asked": f"6 cores{', 32 GiB, 120 min' if of_job else ''}; used 2.2 cores, 6 GiB, 72 min",
        "enough": f"cpus = 2{', mem_gb = 9, timeout_min = 90' if of_job else ''}",
    }


def test_what_a_failed_attempt_used_is_not_said_to_be_enough(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "gru", "gru")
    done(run, *[10] * 4)
    run.result_file.unlink()
    fail(run, {"kind": "oom", "message": "no memory"})
    (found,) = ask(["why", "s", "gru", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert "6 GiB" in found["details"]["asked"]
    assert "enough" not in found["details"]


def test_an_interrupted_run_says_which_attempts_of_it_have_failed(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "gru", "gru")
    for attempt in (1, 2, 3):
        run.attempt_dir(attempt).mkdir(parents=True)
        fail(run, {"kind": "oom", "message": f"no memory {attempt}"})
    run.attempt_dir(4).mkdir(parents=True)
    (found,) = ask(["why", "s", "gru", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert "no memory 3" in found["headline"]
    assert "attempts 1 to 3: oom" in found["details"]["failed"]


def test_a_run_that_is_well_needs_no_line(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    with running(run):
        assert ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"] == []
