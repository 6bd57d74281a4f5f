"""What affects the rounding of a run, or its dropout masks, and has changed since its checkpoint, is one line."""

from typing import Any

import pytest

from seqlm.records.attempts import Worker
from seqlm.rounding import changes

HERE = {"ranks": 1, "micro_batches": 1, "threads": 2, "device": "Zen 4", "gpus": 0, "matmul": "onednn", "torch": "2.13"}
CARD = {**HERE, "device": "NVIDIA H100", "gpus": 1, "threads": 16, "multiprocessors": 132, "matmul": ""}


@pytest.mark.parametrize(
    ("before", "now", "says", "masks"),
    [
        (HERE, {**HERE, "threads": 3}, "threads 3 instead of 2", False),
        (HERE, {**HERE, "torch": "2.14"}, "torch 2.14 instead of 2.13", True),
        (HERE, {**HERE, "device": "Zen 5"}, "device Zen 5 instead of Zen 4", False),
        (HERE, {**HERE, "matmul": "blas"}, "matmul blas instead of onednn", False),
        ({**HERE, "reduction": "flat"}, {**HERE, "reduction": "buckets"}, "reduction buckets instead of flat", False),
        (HERE, CARD, "device NVIDIA H100 instead of Zen 4", True),
        (CARD, {**CARD, "device": "NVIDIA A100"}, "device NVIDIA A100 instead of NVIDIA H100", True),
        (CARD, {**CARD, "multiprocessors": 60}, "multiprocessors 60 instead of 132", True),
        (HERE, {**HERE, "micro_batches": 2}, "micro-batches 2 instead of 1", True),
    ],
)
def test_what_rounds_otherwise_is_one_line(before: Any, now: Any, says: str, masks: bool) -> None:
    line = changes(Worker(**before), Worker(**now))
    assert says in line
    assert len(line.splitlines()) == 1
    assert ("dropout masks" in line) == masks


@pytest.mark.parametrize(("before", "now"), [(HERE, HERE), ({}, HERE), (CARD, {**CARD, "threads": 4})])
def test_nothing_is_said_of_what_is_equal_or_unknown(before: Any, now: Any) -> None:
    assert changes(Worker(**before), Worker(**now)) == ""
