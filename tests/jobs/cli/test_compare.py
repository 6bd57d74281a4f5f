"""``compare``: on a study of made-up results."""

import itertools
import random
from pathlib import Path

import pytest

from seqlm.comparisons import read_comparisons
from seqlm.reading import listed
from tests.commands import Ask
from tests.seqlm.test_comparisons import finish, make_run

STUDY = "seeds"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / STUDY
    draws = random.Random(4)
    for seed, arch in itertools.product(range(1, 13), ("gru", "rnn")):
        run_id = f"{arch}-{seed}"
        make_run(folder, run_id)
        finish(folder, run_id, draws.gauss(5.0 if arch == "gru" else 5.1, 0.01))
    return folder


def test_a_comparison_says_which_is_lower_by_how_much_and_files_it(study: Path, ask: Ask) -> None:
    code, data, _ = ask("compare", STUDY, "arch=gru", "arch=rnn", "--runs-dir", str(study.parent))
    verdict = data["verdict"]
    assert (code, verdict["outcome"], verdict["comparisons"]) == (0, "lower", 1)
    assert verdict["low"] < -0.1 < verdict["high"] < 0
    assert verdict["seeds"] == list(range(1, 13))
    _, turned, _ = ask("compare", STUDY, "arch=rnn", "arch=gru", "--runs-dir", str(study.parent))
    assert turned["verdict"]["outcome"] == "higher"
    assert turned["verdict"]["comparisons"] == 1, "it is the same comparison"
    (key,) = read_comparisons(study)
    assert [path.name for path in listed(study / "comparisons" / key, "verdict-*.json")] == ["verdict-12-of-1.json"]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ("arch=gru", "arch=gru seed>3", "two settings"),
        ("arch=gru", "arch=gru,rnn", "one setting"),
        ("arch=gru val_ppl<200", "arch=rnn", "results"),
        ("arch=gru", "arch=lstm", "arch"),
        ("arch=gru", "arch", "cannot read"),
    ],
)
def test_bad_sides_are_one_line_and_file_nothing(study: Path, ask: Ask, a: str, b: str, says: str) -> None:
    code, error, _ = ask("compare", STUDY, a, b, "--runs-dir", str(study.parent))
    assert code == 2
    assert says in str(error)
    assert not read_comparisons(study)
