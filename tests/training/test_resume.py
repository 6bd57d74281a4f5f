"""What a resumed run's log says of the process that wrote its checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seqlm.files import read_json
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import recorded
from seqlm.training.checkpoint import Position
from seqlm.training.distributed import Rank
from seqlm.training.resume import changes, circumstances

HERE = circumstances(Rank(), 1)
CARD = dict(HERE, device="cuda", hardware="NVIDIA H100", threads=16, multiprocessors=132)


@pytest.mark.parametrize(
    ("before", "now", "says", "masks"),
    [
        (dict(HERE, threads=3), dict(HERE, threads=2), "threads 2 instead of 3", False),
        (dict(HERE, torch="2.7"), dict(HERE, torch="2.13"), "torch 2.13 instead of 2.7", True),
        (dict(HERE, hardware="Zen 4"), dict(HERE, hardware="Zen 5"), "device Zen 5 instead of Zen 4", False),
        (dict(HERE, hardware="Zen 4"), CARD, "device NVIDIA H100 instead of Zen 4", True),
        (CARD, dict(CARD, hardware="NVIDIA A100"), "device NVIDIA A100 instead of NVIDIA H100", True),
        (CARD, dict(CARD, multiprocessors=60), "multiprocessors 60 instead of 132", True),
        (HERE, dict(HERE, micro_batches=2), "micro-batches 2 instead of 1", True),
    ],
)
def test_what_rounds_otherwise_is_one_line(before: dict[str, Any], now: dict[str, Any], says: str, masks: bool) -> None:
    line = changes(Position(epoch=0, **before), now)
    assert says in line
    assert len(line.splitlines()) == 1
    assert ("dropout masks" in line) == masks


@pytest.mark.parametrize(
    ("before", "now"),
    [(HERE, HERE), ({}, HERE), (CARD, dict(CARD, threads=4))],
    ids=["the same", "a checkpoint that does not say", "threads beside a GPU"],
)
def test_nothing_is_said_of_what_is_equal_or_unknown(before: Any, now: Any) -> None:
    assert changes(Position(epoch=3, **before), now) == ""


def test_a_gpu_is_recorded_with_its_multiprocessors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's generator gives its numbers to places in a tensor by them: a MIG instance has a part of the card's."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=14))
    card, run = Rank(device=torch.device("cuda")), RunDirectory(tmp_path)
    assert circumstances(card, 1)["multiprocessors"] == 14
    for rank, expected in ((card, 14), (Rank(), 0)):
        with recorded(run, rank, 1):
            assert (read_json(run.worker_file(1)) or {})["multiprocessors"] == expected
