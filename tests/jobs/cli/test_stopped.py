"""A run that a search stopped, as each view of a study shows it."""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import terminal
from jobs.cli.studies import summary
from jobs.cli.view import STATES, StudyView, Watcher, changes, tell_skipped
from jobs.spec import RunSpec
from jobs.study.squeue import Scheduler
from seqlm.rundir import RunDirectory
from seqlm.state import State
from tests.commands import ask
from tests.facts import launch_again, stop
from tests.fakes import make_planned
from tests.jobs.cli.test_live import shown
from tests.jobs.cli.test_watch import add, trained

REASON = "stopped at epoch 2: 5th of 12, keeps 4"


@pytest.fixture
def stopped(tmp_path: Path) -> RunDirectory:
    run = add(tmp_path / "s", "one")
    trained(run, 2)
    stop(run, {"rung": 2, "rank": 5, "of": 12, "goes_on": 4})
    return run


def test_every_state_has_its_place_and_its_color() -> None:
    assert set(STATES) == set(typing.get_args(State))
    assert set(terminal.STATE_COLORS.values()) <= set(terminal.CODES)


@pytest.mark.usefixtures("stopped")
def test_status_watcher_list_and_live_table_show_it_as_over(tmp_path: Path) -> None:
    (run,) = ask(["status", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert (run["state"], run["epochs_done"], run["epochs_total"], run["reason"]) == ("stopped", 2, 4, REASON)
    study = Watcher(tmp_path / "s").look()
    assert study.is_over
    assert study.summary == "s: 1 stopped"
    assert summary(tmp_path / "s", Scheduler())["states"] == {"stopped": 1}
    assert any("stopped" in line and "180.00" in line for line in shown(study, 120))
    (line,) = changes(StudyView(name="s", runs=[{**study.runs[0], "state": "running"}]), study)
    assert line.endswith(REASON)


def test_a_run_that_goes_on_after_all_is_read_again(tmp_path: Path, stopped: RunDirectory) -> None:
    watcher = Watcher(tmp_path / "s")
    assert watcher.look().summary == "s: 1 stopped"
    launch_again(stopped)
    assert watcher.look().summary == "s: 1 pending"


def test_a_launch_names_the_first_run_in_each_state_that_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table at its end has the reasons of all."""
    config = add(tmp_path / "s", "one").read_config()
    states: list[State] = ["failed", "failed", "stopped", "failed"]
    planned = [
        replace(make_planned(RunSpec(name=f"run{number}", config=config)), action="skip", reason=f"because {number}")
        for number in range(4)
    ]
    planned = [
        replace(item, observation=replace(item.observation, state=state))
        for item, state in zip(planned, states, strict=True)
    ]
    tell_skipped(planned)
    failed, stopped = capsys.readouterr().err.splitlines()
    assert failed == "skipped run0: because 0; and 2 more failed (--verbose names them)"
    assert stopped == "skipped run2: because 2"
    terminal.configure(verbose=True)
    tell_skipped(planned)
    terminal.configure()
    assert len(capsys.readouterr().err.splitlines()) == 4
