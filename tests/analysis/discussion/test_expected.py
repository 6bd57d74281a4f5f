from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.blocks.section import Block
from analysis.discussion.expected import expected_blocks
from analysis.study.study import load_study
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run, digits


def held_against(
    study_dir: Path, lower: Sequence[RunDirectory], higher: Sequence[RunDirectory], metric: str = "val_ppl", **more: Any
) -> list[Block]:
    sides = {"lower": list(map(digits, lower)), "higher": list(map(digits, higher))}
    claim = {"text": "It is so.", "metric": metric, **sides, **more}
    write_json(study_dir / "study.json", {"expectations": [claim]})
    return expected_blocks(load_study(study_dir))


def shown(blocks: list[Block]) -> list[str]:
    return [row["shows"] for row in table(blocks, "discussion-1-expected")]


@pytest.mark.parametrize(
    ("values", "others", "verdict"),
    [
        ([99.9, 100.1, 100.0], [103.0, 102.9], "lower"),
        ([103.0, 102.9], [99.9, 100.1, 100.0], "higher"),
        ([90.0, 110.0, 100.0], [103.0, 102.9], "no clear difference"),
        ([99.9, 100.1, 100.0], [103.0], "no clear difference"),
    ],
)
def test_seeds_decide_by_welchs_test(tmp_path: Path, values: list[float], others: list[float], verdict: str) -> None:
    p = stats.ttest_ind(np.log(values), np.log(others), equal_var=False).pvalue
    assert (len(others) > 1 and p < 0.05) == (verdict != "no clear difference")
    sides = [
        [add_run(tmp_path, 9 * n + seed, arch, arch, "sgd", [ppl], seed=seed) for seed, ppl in enumerate(found)]
        for n, (arch, found) in enumerate([("gru", values), ("rnn", others)])
    ]
    blocks = held_against(tmp_path, *sides)
    assert shown(blocks) == [verdict]
    word = {"lower": "As expected", "higher": "Not as expected"}.get(verdict, "No clear difference")
    assert f"{word}: the validation perplexity is " in said(blocks)


@pytest.mark.parametrize("metric", ["speed", None, 7])
def test_an_expectation_about_no_measure_is_left_out(tmp_path: Path, metric: Any) -> None:
    sides = [[add_run(tmp_path, place, arch, arch, "sgd", [9.0])] for place, arch in enumerate(("gru", "rnn"))]
    found = held_against(tmp_path, *sides, metric)
    write_json(tmp_path / "study.json", {})
    assert found == expected_blocks(load_study(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "device", "verdict"),
    [([10.0, 8.0, 12.0], "A", "no clear difference"), ([40.0, 38.0, 42.0], "A", "lower"), ([40.0] * 3, "B", None)],
)
def test_times_differ_beyond_the_scatter_of_epochs_on_one_machine(
    tmp_path: Path, seconds: list[float], device: str, verdict: str | None
) -> None:
    quick = add_run(tmp_path, 0, "quick", "gru", "sgd", [9.0] * 3, seconds=[9.1, 7.0, 11.0], device="A")
    other = add_run(tmp_path, 1, "other", "rnn", "sgd", [9.0] * 3, seconds=seconds, device=device)
    blocks = held_against(tmp_path, [quick], [other], "wall_seconds")
    if verdict is None:
        assert "are otherwise equal and were trained on equal machines." in said(blocks)
        return
    assert shown(blocks) == [verdict]
    deviation = 3 * np.hypot(np.std([9.1, 7.0, 11.0], ddof=1), np.std(seconds, ddof=1))
    assert (abs(sum(seconds) - 27.1) > 2 * deviation) == (verdict == "lower")


@pytest.mark.parametrize(
    ("values", "others", "printed"),
    [
        ([90.0, 90.1], [103.0, 102.9], ["why"]),
        ([103.0, 102.9], [90.0, 90.1], ["otherwise"]),
        ([90.0, 110.0], [100.0, 100.1], []),
        ([90.0], [103.0], []),
        ([], [103.0], []),
    ],
    ids=["as expected", "contrary", "unclear", "one seed", "missing"],
)
def test_a_reason_is_printed_only_for_what_came_out(
    tmp_path: Path, values: list[float], others: list[float], printed: list[str]
) -> None:
    texts = {"why": "Because gates.", "otherwise": "Then gates cost."}
    sides = [
        [add_run(tmp_path, 9 * n + seed, arch, arch, "sgd", [ppl], seed=seed) for seed, ppl in enumerate(found)]
        for n, (arch, found) in enumerate([("gru", values), ("rnn", others)])
    ]
    blocks = held_against(tmp_path, *sides, **texts)
    assert [key for key, text in texts.items() if text in said(blocks)] == printed
