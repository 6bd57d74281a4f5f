import errno
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.backends.base import MARK
from jobs.cli.doctor import _devices, _folder, _torch, examine
from seqlm import machine
from seqlm.machine import Card, Gpu

CARDS = [
    Card(index=0, whole=Gpu("GPU-082b5928-f417-d18b-2e66-7ac8725d2eef", "Quadro P1000")),
    Card(index=1, whole=Gpu("GPU-513536b6-7d19-9063-b049-1e69664bb298", "NVIDIA A100-SXM4-80GB")),
]


@pytest.fixture(autouse=True)
def _two_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cards", lambda: CARDS)
    monkeypatch.setattr(machine, "exclusive_gpus", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))


def lines(gpus: list[Gpu]) -> list[str]:
    return [f"{finding.level} {finding.subject}: {finding.text}" for finding in _devices(gpus)]


def test_doctor_tells_whether_shares_take_turns(tmp_path: Path) -> None:
    assert lines(machine.gpus())[-1].startswith("note shares of a GPU: no MPS daemon: runs that share a GPU take turns")
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "control").touch()
    assert lines(machine.gpus())[-1] == (
        f"ok shares of a GPU: the MPS daemon of {tmp_path / 'mps'} lets runs that share a GPU compute at the same time"
    )
    assert lines([])[-1] == "note GPU: none; runs will train on the CPU"


@pytest.mark.parametrize(("capability", "level"), [((7, 0), "bad"), ((8, 6), "ok")])
def test_doctor_compares_the_gpus_with_what_torch_is_built_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], level: str
) -> None:
    answer = json.dumps([MARK, "2.13", [["Tesla V100", capability]], ["sm_80", "sm_90"]])
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: SimpleNamespace(stdout=answer))
    found = _torch(machine.gpus())
    assert found.level == level
    assert ("has no code for Tesla V100 (compute capability 7.0)" in found.text) == (level == "bad")


def test_doctor_says_that_shares_of_an_exclusive_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "exclusive_gpus", lambda: [CARDS[0].whole])
    assert lines(machine.gpus())[-1].startswith("note shares of a GPU: refused without an MPS daemon: ")


@pytest.mark.process
def test_a_wrong_choice_of_gpus_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (found,) = [finding for finding in examine(tmp_path, None) if finding.subject == "GPU"]
    assert found.level == "bad"
    assert found.text.startswith('CUDA_VISIBLE_DEVICES: found "7", and 7 names no GPU of this machine')


def test_a_folder_that_can_be_written_is_left_as_it_was_and_another_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _folder("runs", tmp_path / "not" / "yet").level == "ok"
    assert list(tmp_path.iterdir()) == []

    def refused(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refused)
    assert _folder("runs", tmp_path).level == "bad"
