"""A launch plans under the study's lock: what it does follows from the runs as they are then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch import prepare
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import preparing
from jobs.spec import RunSpec
from jobs.study.folder import launching
from seqlm.errors import DataError, RunBusyError
from seqlm.locks import exclusive_lock
from seqlm.rundir import RunDirectory
from tests.cancelling import cancel
from tests.fakes import FakeBackend
from tests.training.studies import make_config, write_text

pytestmark = pytest.mark.process


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(name="a", config=make_config(), data_path=write_text(tmp_path / "text"))


def actions(spec: RunSpec, study_dir: Path) -> list[str]:
    """What a launch does with its runs."""
    options = LaunchOptions(study_dir=study_dir, live_code=True)
    with preparing([spec], FakeBackend(lambda submission: 0), options) as (planned, _):
        return [item.action for item in planned]


def test_a_run_whose_worker_ends_while_its_launcher_leaves_the_lock_is_taken_up(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.locate(tmp_path / "s", spec.name, spec.fingerprint)
    run.create(spec.config, {"name": "a"})
    worker = contextlib.ExitStack()
    worker.enter_context(exclusive_lock(run.worker_lock_file, "busy"))

    @contextlib.contextmanager
    def launching_then(study_dir: Path) -> Iterator[None]:
        worker.close()
        with launching(study_dir):
            yield

    monkeypatch.setattr(prepare, "launching", launching_then)
    assert actions(spec, tmp_path / "s") == ["start"]


def test_the_second_of_two_launchers_is_refused_before_it_looks_at_anything(tmp_path: Path, spec: RunSpec) -> None:
    missing = replace(spec, data_path=tmp_path / "missing")
    with launching(tmp_path / "s"), pytest.raises(RunBusyError, match="is already being launched"):
        actions(missing, tmp_path / "s")
    with pytest.raises(DataError):
        actions(missing, tmp_path / "s")


def test_a_new_study_whose_launch_is_refused_leaves_no_folder(tmp_path: Path, spec: RunSpec) -> None:
    with pytest.raises(DataError):
        actions(replace(spec, data_path=tmp_path / "missing"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_new_study_that_another_launcher_has_begun_meanwhile_is_planned_again(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def launching_after_another(study_dir: Path) -> Iterator[None]:
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
        run.create(spec.config, {"name": "a"})
        cancel(run)
        with launching(study_dir):
            yield

    monkeypatch.setattr(prepare, "launching", launching_after_another)
    assert actions(spec, tmp_path / "s") == ["skip"]
