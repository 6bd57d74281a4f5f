"""What a resumed run's log says of the process that wrote its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from seqlm.training.checkpoint import Position
from seqlm.training.distributed import Rank
from seqlm.training.resume import changes, circumstances

HERE = circumstances(Rank(), 1)
CARD = replace(HERE, device="cuda", hardware="NVIDIA H100", threads=16)


@pytest.mark.parametrize(
    ("before", "now", "says", "masks"),
    [
        (replace(HERE, threads=3), replace(HERE, threads=2), "threads 2 instead of 3", False),
        (replace(HERE, torch="2.7"), replace(HERE, torch="2.13"), "torch 2.13 instead of 2.7", False),
        (replace(HERE, hardware="Zen 4"), replace(HERE, hardware="Zen 5"), "device Zen 5 instead of Zen 4", False),
        (replace(HERE, hardware="Zen 4"), CARD, "device NVIDIA H100 instead of Zen 4", True),
        (CARD, replace(CARD, hardware="NVIDIA A100"), "device NVIDIA A100 instead of NVIDIA H100", True),
        (HERE, replace(HERE, micro_batches=2), "micro-batches 2 instead of 1", True),
    ],
)
def test_what_rounds_otherwise_is_one_line(before: Position, now: Position, says: str, masks: bool) -> None:
    line = changes(before, now)
    assert says in line
    assert len(line.splitlines()) == 1
    assert ("dropout masks" in line) == masks


@pytest.mark.parametrize(
    ("before", "now"),
    [(HERE, HERE), (Position(epoch=3), HERE), (CARD, replace(CARD, threads=4))],
    ids=["the same", "a checkpoint that does not say", "threads beside a GPU"],
)
def test_nothing_is_said_of_what_is_equal_or_unknown(before: Any, now: Any) -> None:
    assert changes(before, now) == ""
