"""A checkpoint or a message that is a program in disguise runs nothing, wherever it is read."""

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seqlm.errors import CheckpointError
from seqlm.training.checkpoint import load_checkpoint
from tests import commands
from tests.crawl import blank_figures
from tests.small_study import ROOT, Study

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


def test_a_checkpoint_that_is_a_program_is_refused_and_does_not_run(
    tmp_path: Path, plant: Callable[[Path], Path]
) -> None:
    marker = plant(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        load_checkpoint(tmp_path / "last.pt", "f" * 64)
    assert not marker.exists()
    with contextlib.suppress(RuntimeError):  # what a pickle alone gives is no checkpoint
        torch.load(tmp_path / "last.pt", weights_only=False)
    assert marker.exists(), "it is dangerous to a reader that trusts it"


def test_commands_on_a_study_with_such_a_checkpoint_do_not_run_it(tmp_path: Path) -> None:
    study, marker = Study(tmp_path, stub=True, epochs=1), tmp_path / "marker"
    assert study("run", "small.toml").returncode == 0
    study.program = ROOT / "launch.py"
    (run,) = study.runs()
    as_archive(run.best_checkpoint, marker)
    done = study("behaviour", "small", "--backend", "local")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "failed" in line]
    assert "best.pt" in row
    assert study("report", "small", "--no-behaviour", env={**os.environ, **blank_figures()}).returncode == 0
    as_archive(run.last_checkpoint, marker)
    done = study("run", "small.toml", "--set", "train.epochs=2")
    assert done.returncode == 1
    assert "last.pt" in done.stdout
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
        rank.gather(torch.zeros(3)) if sys.argv[3] == "gather" else rank.from_rank(0, None)
    elif sys.argv[3] == "gather":
        dist.all_gather_object([None, None], Program(Path(sys.argv[4])))
    else:
        dist.broadcast_object_list([Program(Path(sys.argv[4]))], src=0)
"""


@pytest.mark.parametrize(("evil", "what"), [("1", "gather"), ("0", "from_rank")])
def test_a_rank_that_sends_a_program_to_the_others_starts_none(tmp_path: Path, evil: str, what: str) -> None:
    marker = tmp_path / "marker"
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "SEQLM_RENDEZVOUS": str(tmp_path / "meeting")}
    env["SEQLM_COLLECTIVE_MINUTES"] = "0.2"
    argv = [sys.executable, "-c", RANK]
    ranks = [commands.start([*argv, str(rank), evil, what, marker], cwd=ROOT, env=env) for rank in range(2)]
    said = [commands.finish(rank)[0] for rank in ranks]
    assert said[1 - int(evil)] == "asks\n"
    assert not marker.exists()
