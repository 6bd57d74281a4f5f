from collections.abc import Sequence
from pathlib import Path

from analysis.blocks.section import Block
from analysis.discussion.reliability import reliability_blocks
from analysis.study.study import load_study
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def judged(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return reliability_blocks(study, study.settings)


def add_settings(study_dir: Path, first: int, arch: str, values: Sequence[float], diverged: int = 0) -> None:
    for place, ppl in enumerate([*values, *[1000.0] * diverged]):
        failure = "diverged" if place >= len(values) else None
        add_run(study_dir, first + place, f"{arch}{place}", arch, "sgd", [ppl], lr=1.0 + place, failure=failure)


def test_a_diverged_setting_is_a_failure_of_its_architecture(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 100.5, 101.0], diverged=3)
    add_settings(tmp_path, 10, "gru", [100.0, 110.0, 119.0, 150.0])
    blocks = judged(tmp_path)
    assert "GRU is the most reliable (75 % of settings" in said(blocks)
    assert "and RNN the least (50 %)." in said(blocks)
    rnn, gru = table(blocks, "discussion-4-reliability")
    # the GRU's quartiles: 3/4 of the way from ln 100 to ln 110, 1/4 of the way from ln 119 to ln 150
    assert list(rnn.values()) == ["RNN", "6", "50 %", "100.00", "100.50", "101.00", "0.005", "3"]
    assert list(gru.values()) == ["GRU", "4", "75 %", "100.00", "114.50", "150.00", "0.160", "0"]
