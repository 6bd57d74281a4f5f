from __future__ import annotations

from pathlib import Path

from analysis.blocks.section import Block
from analysis.discussion.optimizers import optimizers_blocks
from analysis.plots.look import marker_of
from analysis.study import units
from analysis.study.settings import timed_settings
from analysis.study.study import load_study
from seqlm.files import write_json
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def compared(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return optimizers_blocks(study, timed_settings(study))


def test_each_optimizer_has_its_best_run_time_and_gap(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn-adam", "rnn", "adam", [300.0, 204.0, 200.0], train=150.0)  # within 5 % after 20 s
    add_run(tmp_path, 1, "gru-adam", "gru", "adam", [102.0, 101.0, 100.0], train=80.0)  # at once
    add_run(tmp_path, 2, "rnn-sgd", "rnn", "sgd", [500.0, 400.0, 90.0], train=95.0, lr=2.0)
    add_run(tmp_path, 3, "gru-sgd", "gru", "sgd", [90.0], failure="diverged")
    blocks = compared(tmp_path)
    adam, sgd = table(blocks, "discussion-2-optimizers")
    assert list(adam.values()) == [
        "Adam",
        "2",
        "0",
        "100.00",
        "141.42",
        "2 gru-adam",
        "GRU",
        *("15 s", "20.00", "20.00", "35.00", "35.00"),
    ]
    assert list(sgd.values()) == [
        "SGD",
        "1",
        "1",
        "90.00",
        "90.00",
        "3 rnn-sgd",
        "RNN",
        *("30 s", "-5.00", "-5.00", "-5.00", "-5.00"),
    ]
    sentences = said(blocks)
    assert "Lowest validation perplexity: SGD 90.0 (3 rnn-sgd), Adam 100 (2 gru-adam)." in sentences
    assert (
        "The optimizers have unequal numbers of finished settings, and the lowest of more settings is lower by chance "
        "alone. Expected lowest perplexity of 1 setting chosen at random: SGD 90.0 (of 1), Adam 141 (of 2)."
    ) in sentences
    assert "Adam does best with GRU (100), then RNN (200)." in sentences
    assert "SGD has only finished runs of RNN (90.0)." in sentences
    assert "own best validation perplexity: 15 s with Adam, 30 s with SGD." in sentences
    assert "No two finished runs with different optimizers agree in model, data, training and seed." not in sentences


def test_pairs_agree_in_all_but_the_optimizer_section_and_their_best_runs_meet(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn-adam", "rnn", "adam", [110.0], lr=0.001)
    add_run(tmp_path, 1, "rnn-sgd1", "rnn", "sgd", [100.0], lr=1.0)
    add_run(tmp_path, 2, "rnn-sgd9", "rnn", "sgd", [900.0], lr=9.0)
    add_run(tmp_path, 3, "gru-adam", "gru", "adam", [100.0], seconds=10.0)
    add_run(tmp_path, 4, "gru-sgd", "gru", "sgd", [105.0], seconds=30.0)
    add_run(tmp_path, 5, "wide-adam", "gru", "adam", [50.0], hidden_size=128)  # alone
    add_run(tmp_path, 6, "other-seed", "gru", "sgd", [1.0], hidden_size=128, seed=2)
    (row,) = table(compared(tmp_path), "discussion-2-pairs")
    # ln(100/110) = -0.095 and ln(105/100) = 0.049: the middle is -0.023; times 1 and 3
    # one of the two SGD runs has 300 (the geometric mean of 100 and 900): ln(300/110) = 1.003, and the middle is 0.526
    assert list(row.values()) == ["Adam", "SGD", "2", "1", "1", "-0.023", "+0.526", "2.00"]
    assert (
        "In 1 pair one optimizer has more runs to choose the best from (such as more learning rates), which favours "
        "it. Expected median difference at equal numbers of runs: SGD against Adam +0.526 nats."
    ) in said(compared(tmp_path))
    assert (
        "2 pairs of runs agree in model, data, training and seed: Adam and SGD each have the lower validation "
        "perplexity in 1 of 2."
    ) in said(compared(tmp_path))


def test_one_pair_is_told_with_its_winner(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [200.0])
    add_run(tmp_path, 1, "b", "rnn", "sgd_schedule", [100.0])
    assert (
        "1 pair of runs agrees in model, data, training and seed: SGD schedule has a lower validation perplexity than "
        "SGD in 1 of 1 (by 0.693 nats)." in (said(compared(tmp_path)))
    )
    assert "unequal" not in said(compared(tmp_path))
    assert "at equal numbers" not in said(compared(tmp_path))


def test_without_pairs_it_says_that_settings_differ_in_other_ways(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [200.0])
    add_run(tmp_path, 1, "b", "rnn", "adam", [100.0], hidden_size=128)
    assert "settings differ in other ways too" in said(compared(tmp_path))


def test_seeds_count_as_their_mean_and_a_single_seed_never_clearly_wins(tmp_path: Path) -> None:
    for seed, ppl in enumerate([80.0, 125.0]):
        add_run(tmp_path, seed, f"a{seed}", "rnn", "sgd", [ppl], seed=seed)
    add_run(tmp_path, 2, "b", "rnn", "adam", [95.0], seed=5)
    blocks = compared(tmp_path)
    adam, sgd = table(blocks, "discussion-2-optimizers")
    assert (adam["val_ppl"], sgd["val_ppl"], sgd["run"], sgd["runs"]) == ("95.00", "100.00", "1/2 a0", "2")
    assert "The order of the first two is not clear (one of them has a single seed)." in said(blocks)


def test_a_single_optimizer_or_none_is_not_compared(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [200.0], done=False)
    assert said(compared(tmp_path)) == "No run has finished, so the optimizers cannot be compared."
    add_run(tmp_path, 1, "b", "gru", "sgd", [200.0])
    assert said(compared(tmp_path)) == "Only SGD has finished runs, so there is nothing to compare it with."


def test_a_pair_with_the_same_perplexity_is_equal_and_wins_nothing(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0])
    add_run(tmp_path, 1, "b", "rnn", "sgd_schedule", [100.0])
    assert "1 pair of runs agrees in model, data, training and seed: SGD and SGD schedule are equal in 1 of 1." in said(
        compared(tmp_path)
    )
    (row,) = table(compared(tmp_path), "discussion-2-pairs")
    assert (row["first_wins"], row["second_wins"], row["median_difference_nats"]) == ("0", "0", "+0.000")


def test_runs_without_times_and_training_perplexities_are_compared_by_validation_perplexity_alone(
    tmp_path: Path,
) -> None:
    for order, (optimizer, ppl) in enumerate([("adam", 100.0), ("sgd", 200.0)]):
        run = add_run(tmp_path, order, optimizer, "gru", optimizer, [ppl])
        run.metrics_file.unlink()
        result = {key: value for key, value in (run.read_result() or {}).items() if "train_ppl" not in key}
        write_json(run.result_file, result)
    sentences = said(compared(tmp_path))
    assert "Lowest validation perplexity: Adam 100 (1 adam), SGD 200 (2 sgd)." in sentences
    assert "Median time" not in sentences
    assert "Median generalisation gap" not in sentences


def test_generalisation_gaps_are_those_of_the_best_and_of_the_last_epoch(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn-adam", "rnn", "adam", [200.0, 210.0], train=[150.0, 120.0])
    add_run(tmp_path, 1, "gru-adam", "gru", "adam", [100.0, 5012.0], train=[80.0, 3.0])
    add_run(tmp_path, 2, "rnn-sgd", "rnn", "sgd", [92.0, 90.0], train=[99.0, 95.0])
    blocks = compared(tmp_path)
    assert (
        "Median generalisation gap (validation minus training perplexity) at the best epoch and after the last: SGD "
        "-5.0 and -5.0 (-5.0 and -5.0 in its best run); Adam 35.0 and 2,550 (20.0 and 5,009 in its best run)."
    ) in said(blocks).splitlines()
    adam, _ = table(blocks, "discussion-2-optimizers")
    assert (adam["gap"], adam["final_gap"], adam["median_gap"], adam["median_final_gap"]) == (
        *("20.00", "5,009.00"),
        *("35.00", "2,549.50"),
    )


def test_sgd_with_momentum_is_an_optimizer_of_its_own_and_is_never_called_sgd_alone(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "plain", "gru", "sgd", [100.0], lr=2.0)
    add_run(tmp_path, 1, "heavy", "gru", "sgd", [95.0], lr=2.0, momentum=0.9)
    add_run(tmp_path, 2, "ahead", "gru", "sgd", [90.0], lr=2.0, momentum=0.9, nesterov=True)
    add_run(tmp_path, 3, "decoupled", "gru", "adamw", [85.0], lr=0.01)
    blocks = compared(tmp_path)
    found = {row["optimizer"]: row["run"] for row in table(blocks, "discussion-2-optimizers")}
    assert found == {"SGD": "1 plain", "SGD momentum": "2 heavy", "SGD Nesterov": "3 ahead", "AdamW": "4 decoupled"}
    assert "SGD Nesterov 90.0 (3 ahead), SGD momentum 95.0 (2 heavy), SGD 100 (1 plain)" in said(blocks)
    runs = load_study(tmp_path).runs
    assert runs["optimizer"].tolist() == ["sgd", "sgd_momentum", "sgd_nesterov", "adamw"]
    assert len({marker_of(kind) for kind in units.OPTIMIZERS}) == len(units.OPTIMIZERS)
