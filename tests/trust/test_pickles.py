"""A checkpoint or a message that is a program in disguise runs nothing, wherever it is read."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import commands
from tests.crawl import blank_figures
from tests.seqlm.training.studies import make_config, make_run, write_text
from tests.small_study import ROOT, Study

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("pickles")]  # a study is trained once


class Program:
    """What runs a command where somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Program(marker)))


def as_archive(path: Path, marker: Path) -> None:
    torch.save({"format": "seqlm checkpoint 2", "model": {}, "optimizer": Program(marker)}, path)


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that is done."""
    study = Study(tmp_path_factory.mktemp("trained"), epochs=1)
    assert study("run", "small.toml").returncode == 0
    return study.folder


def test_what_looks_into_a_trained_model_does_not_run_it(
    tmp_path: Path, trained: Path, plant: Callable[[Path], Path]
) -> None:
    study = Study(tmp_path, epochs=1)
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (run,) = study.runs()
    marker = plant(run.best_checkpoint)
    done = study("behaviour", "small", "--backend", "local")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "failed" in line]
    assert "best.pt" in row
    assert study("report", "small", "--no-behaviour", env={**os.environ, **blank_figures()}).returncode == 0
    assert not marker.exists()


RANK = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from seqlm.training.distributed import Rank, process_group
from tests.trust.test_pickles import Program

rank = Rank(index=int(sys.argv[1]), world_size=2)
with process_group(rank):
    if rank.index != int(sys.argv[2]):
        print("asks", flush=True)
        rank.gather(torch.zeros(3)) if sys.argv[3] == "gather" else rank.from_first(None)
    elif sys.argv[3] == "gather":
        dist.all_gather_object([None, None], Program(Path(sys.argv[4])))
    else:
        dist.broadcast_object_list([Program(Path(sys.argv[4]))], src=0)
"""


@pytest.mark.parametrize(("evil", "what"), [("1", "gather"), ("0", "from_first")])
def test_a_rank_that_sends_a_program_to_the_others_starts_none(tmp_path: Path, evil: str, what: str) -> None:
    marker = tmp_path / "marker"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "SEQLM_RENDEZVOUS": str(tmp_path / "meeting")}
    env["SEQLM_COLLECTIVE_MINUTES"] = "0.2"
    argv = [sys.executable, "-c", RANK]
    ranks = [commands.start([*argv, str(rank), evil, what, marker], cwd=ROOT, env=env) for rank in range(2)]
    said = [commands.finish(rank)[0] for rank in ranks]
    assert said[1 - int(evil)] == "asks\n"
    assert not marker.exists()
