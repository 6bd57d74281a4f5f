import math
from pathlib import Path

import pytest

from analysis.study.pairs import MOST_VALUES, Pair, pairs_of
from analysis.study.settings import settings_of
from analysis.study.study import load_study
from tests.analysis.hand_made import add_run


def found_in(study_dir: Path) -> list[Pair]:
    return pairs_of(settings_of(load_study(study_dir).runs))


def names(pairs: list[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.key, pair.a.name, pair.b.name) for pair in pairs]


def test_a_pair_differs_in_one_key_and_not_in_two(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "slow", "rnn", "sgd", [120.0], lr=1.0)
    add_run(tmp_path, 1, "fast", "rnn", "sgd", [100.0], lr=2.0)
    add_run(tmp_path, 2, "wide", "rnn", "sgd", [90.0], lr=2.0, hidden_size=128)
    found = found_in(tmp_path)
    assert names(found) == [("model.hidden_size", "fast", "wide"), ("optim.lr", "slow", "fast")]
    assert [pair.values for pair in found] == [(64, 128), (1.0, 2.0)]
    assert [pair.difference_nats for pair in found] == pytest.approx([math.log(90 / 100), math.log(100 / 120)])


def test_values_are_in_their_order_whatever_the_order_of_the_runs(tmp_path: Path) -> None:
    for order, lr in enumerate([10.0, 9.0, 0.5]):
        add_run(tmp_path, order, f"lr{lr:g}", "gru", "sgd", [100.0], lr=lr)
    assert names(found_in(tmp_path)) == [
        ("optim.lr", "lr0.5", "lr9"),
        ("optim.lr", "lr0.5", "lr10"),
        ("optim.lr", "lr9", "lr10"),
    ]


def test_a_diverged_or_unfinished_run_is_in_no_pair(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0], lr=1.0)
    add_run(tmp_path, 1, "b", "rnn", "sgd", [90.0], lr=2.0, failure="diverged")
    add_run(tmp_path, 2, "c", "rnn", "sgd", [90.0], lr=3.0, done=False)
    assert found_in(tmp_path) == []


def test_optimizers_and_architectures_meet_at_the_best_of_their_learning_rates(tmp_path: Path) -> None:
    for order, (arch, optimizer, lr, ppl) in enumerate(
        [("rnn", "sgd", 1.0, 100.0), ("rnn", "sgd", 5.0, 90.0), ("rnn", "adam", 0.01, 95.0), ("gru", "adam", 0.1, 80.0)]
    ):
        add_run(tmp_path, order, f"r{order}", arch, optimizer, [ppl], lr=lr)
    found = [pair for pair in found_in(tmp_path) if pair.key != "optim.lr"]
    assert [(*one, pair.a_tried, pair.b_tried) for one, pair in zip(names(found), found, strict=True)] == [
        ("model.arch", "r2", "r3", 1, 1),
        ("optim.optimizer", "r2", "r1", 1, 2),
    ]


def test_a_schedule_is_compared_by_the_keys_that_both_have(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "constant", "rnn", "adam", [100.0])
    add_run(tmp_path, 1, "falling", "rnn", "adam", [90.0], schedule="cosine", decay_epochs=9)
    add_run(tmp_path, 2, "halved", "rnn", "adam", [95.0], schedule="per_epoch", decay=2.0)
    assert names(found_in(tmp_path)) == [
        ("optim.schedule", "constant", "halved"),
        ("optim.schedule", "constant", "falling"),
        ("optim.schedule", "halved", "falling"),
    ]


def test_an_rnn_and_a_gru_must_agree_in_the_embedding_that_a_transformer_does_not_have(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "narrow", "rnn", "sgd", [100.0], embedding_size=100)
    add_run(tmp_path, 1, "broad", "gru", "sgd", [100.0], embedding_size=200)
    add_run(tmp_path, 2, "blocks", "transformer", "sgd", [100.0], keep=0.35)
    assert names(found_in(tmp_path)) == [("model.arch", "narrow", "blocks"), ("model.arch", "broad", "blocks")]


def test_of_many_values_each_meets_the_next_alone(tmp_path: Path) -> None:
    count = MOST_VALUES + 1
    for order in range(count):
        add_run(tmp_path, order, f"run{order}", "rnn", "sgd", [100.0], lr=float(count - order))
    found = found_in(tmp_path)
    assert len(found) == count - 1
    assert all(pair.values[1] - pair.values[0] == 1 for pair in found)


def test_a_run_whose_configuration_cannot_be_read_is_in_no_pair(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0], lr=1.0)
    for order, lr in ((1, 2.0), (2, 3.0)):
        run = add_run(tmp_path, order, f"broken{order}", "rnn", "sgd", [100.0], lr=lr)
        run.config_file.write_text("{", encoding="utf-8")
    assert found_in(tmp_path) == []
