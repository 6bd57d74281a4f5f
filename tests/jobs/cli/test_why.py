"""Why a run waits, failed or was stopped, here and on Ray; ``tests/slurm/test_waiting.py`` has the jobs of SLURM."""

import time
import typing
from datetime import datetime
from pathlib import Path

import pytest

import launch
from jobs.cli.why import NEXT
from jobs.study.folder import launching, write_queue
from seqlm.state import FailureKind
from tests.commands import ask
from tests.facts import fail
from tests.jobs.cli.test_watch import add, at_step, running, trained


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


def test_nothing_is_said_of_the_start_of_a_run_behind_one_whose_time_is_not_known(tmp_path: Path) -> None:
    study = tmp_path / "s"
    first, second = add(study, "one"), add(study, "two", order=1)
    with launching(study), running(first):
        write_queue(study, {second.id: "needs 1 core, 0 free"})
        (two,) = ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert (two["starts_at"], two["details"]) == (None, {})


def test_a_failed_run_has_what_to_do_and_the_last_line_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = typing.get_args(FailureKind)
    assert set(NEXT) == {*kinds, None}
    for number, kind in enumerate(kinds):
        run = add(tmp_path / "s", kind, order=number)
        fail(run, {"kind": kind, "message": "it fails"})
        run.stderr_log(1).write_text("Traceback\nValueError: wrong\n\n")
    found = {run["name"]: run for run in ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]}
    for kind in kinds:
        assert found[kind]["details"]["do"] == NEXT[kind]
        assert found[kind]["details"].get("log") == (None if kind == "cancelled" else "ValueError: wrong")
    assert launch.main(["why", "s", "code", "--runs-dir", str(tmp_path)]) == 0
    headline, *details = capsys.readouterr().out.splitlines()
    assert headline == "code  failed: code: it fails"
    assert len(details) == 2


def test_a_run_that_is_well_needs_no_line(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    with running(run):
        assert ask(["why", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"] == []
