"""A checkpoint that is a program in disguise runs nothing, wherever it is read."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import commands
from tests.test_launch import ROOT, Study
from tests.training.studies import make_config, make_run, write_text

pytestmark = pytest.mark.process


class Program:
    """What runs a command where somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Program(marker)))


def as_archive(path: Path, marker: Path) -> None:
    torch.save({"format": "seqlm checkpoint 1", "model": {}, "optimizer": Program(marker)}, path)


def in_the_old_form(path: Path, marker: Path) -> None:
    torch.save({"model": Program(marker)}, path, _use_new_zipfile_serialization=False)


@pytest.fixture(params=[as_pickle, as_archive, in_the_old_form], ids=["pickle", "archive", "old form"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Path]:
    """Puts such a file into a place; returns the marker that it would leave."""

    def plant(path: Path) -> Path:
        marker = tmp_path / "marker"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        request.param(path, marker)
        return marker

    return plant


def test_such_a_file_is_dangerous_to_who_trusts_it(tmp_path: Path, plant: Callable[[Path], Path]) -> None:
    marker = plant(tmp_path / "evil.pt")
    read = "import pickle, sys, torch; torch.load(sys.argv[1], weights_only=False)"
    commands.run([sys.executable, "-c", read, tmp_path / "evil.pt"])
    assert marker.exists()


def test_a_worker_does_not_run_its_last_checkpoint(tmp_path: Path, plant: Callable[[Path], Path]) -> None:
    run = make_run(tmp_path / "run", make_config())
    marker = plant(run.last_checkpoint)
    env = {**os.environ, "SEQLM_DATA": str(write_text(tmp_path / "text")), "SEQLM_DEVICE": "cpu"}
    argv = [sys.executable, "-m", "seqlm.training.worker", str(run.path)]
    done = commands.run(argv, cwd=ROOT, env=env)
    assert not marker.exists()
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if str(run.last_checkpoint) in line], done.stderr


def test_what_looks_into_a_trained_model_does_not_run_it(tmp_path: Path, plant: Callable[[Path], Path]) -> None:
    study = Study(tmp_path, epochs=1)
    assert study("run", "small.toml").returncode == 0
    (run,) = study.runs()
    marker = plant(run.best_checkpoint)
    done = study("behaviour", "small", "--backend", "local")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "failed" in line]
    assert "best.pt" in row
    assert study("report", "small", "--no-behaviour").returncode == 0
    assert not marker.exists()
