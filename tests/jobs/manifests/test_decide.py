"""``[[decide]]``: which seeds a study gets, in which turn, and what is refused."""

from pathlib import Path

import pytest

from jobs.manifests.decide import compared_in
from tests.jobs.manifests.test_manifest import BASE, load, problems

GRID = '\n[[grid]]\nmodel.arch = ["rnn", "gru"]\noptim.optimizer = "adam"\noptim.lr = [0.01, 0.001]\n'
DECIDE = '\n[[decide]]\na = "arch=gru lr=0.01"\nb = "arch=rnn lr=0.01"\nseeds = 6\n'
SECOND = '\n[[decide]]\na = "arch=gru lr=0.001"\nb = "arch=gru lr=0.01"\nseeds = 5\n'


def test_both_sides_get_the_next_seeds_in_turn_and_shared_runs_once(tmp_path: Path) -> None:
    manifest = load(tmp_path, BASE + GRID + DECIDE + SECOND)
    further = manifest.runs[4:]
    assert len(further) == 5 + 5 + 4
    assert [spec.turn for spec in further] == sorted(spec.turn for spec in further)
    assert {spec.config.seed for spec in further} == set(range(1112, 1117))
    assert [spec.order for spec in manifest.runs] == list(range(18))
    assert len({spec.name for spec in manifest.runs}) == 18
    ids = {spec.fingerprint: spec.name for spec in manifest.runs}
    for decide in manifest.decides:
        record = compared_in(decide, manifest.runs, ids).record
        assert [pair.seed for pair in record.pairs] == list(range(1111, 1111 + decide.seeds))
    again = load(tmp_path, f"{BASE}{GRID}seeds = [1111, 1112, 1113]\n{DECIDE}{SECOND}")
    assert {spec.fingerprint for spec in manifest.runs} < {spec.fingerprint for spec in again.runs}


def test_a_side_may_be_named_by_one_of_its_runs(tmp_path: Path) -> None:
    base = load(tmp_path, BASE + GRID)
    gru, rnn = (next(spec.name for spec in base.runs if spec.config.model.arch == arch) for arch in ("gru", "rnn"))
    manifest = load(tmp_path, f'{BASE}{GRID}[[decide]]\na = "name={gru}"\nb = "name={rnn}"\nseeds = 6\n')
    ids = {spec.fingerprint: spec.name for spec in manifest.runs}
    assert len(compared_in(manifest.decides[0], manifest.runs, ids).record.pairs) == 6


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (DECIDE.replace("arch=rnn lr=0.01", "arch=gru lr=0.01"), "two settings"),
        (DECIDE.replace("arch=gru lr=0.01", "arch=gru"), "optim.lr"),
        (DECIDE.replace("arch=gru lr=0.01", "arch=gru lr=7"), "no run passes"),
        (DECIDE.replace("seeds = 6", "seeds = 2"), "from 5"),
        (DECIDE.replace("seeds = 6", "error = 1.5"), "error"),
        (DECIDE.replace("seeds = 6", "margin = -1"), "margin"),
        (DECIDE + "[search]\nrungs = [2]\n", "[search] and [[decide]]"),
    ],
)
def test_what_does_not_compare_is_one_line(tmp_path: Path, table: str, says: str) -> None:
    (line,) = problems(tmp_path, BASE + GRID + table)
    assert says in line


def test_unlike_epochs_and_texts_are_one_line_each(tmp_path: Path) -> None:
    run = '\n[[run]]\nname = "other"\nmodel.arch = "lstm"\noptim.optimizer = "sgd"\noptim.lr = 5\n'.replace(
        "lstm", "rnn"
    )
    for change in ("train.epochs = 77\n", "eval.seq_len = 9\n"):
        table = DECIDE.replace("arch=rnn lr=0.01", "name=other")
        (line,) = problems(tmp_path, BASE + GRID + run + change + table)
        assert change.split(" ")[0] in line
