from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

from analysis.blocks.section import Block
from analysis.discussion.effects import effects_section, optimizers_blocks
from analysis.study.pairs import pairs_of
from analysis.study.study import load_study
from seqlm.files import write_json
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def compared(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    settings = study.settings
    return optimizers_blocks(study, settings, pairs_of(settings))


def add_quickstart(study_dir: Path) -> dict[tuple[str, str], float]:
    """Nine runs as of the quickstart: each optimizer has learning rates of its own, which differ by architecture."""
    val = dict(
        zip(
            itertools.product(("rnn", "gru", "transformer"), ("adam", "sgd", "sgd_schedule")),
            [68.06, 74.54, 73.85, 64.61, 61.24, 62.65, 58.66, 65.20, 63.71],
            strict=True,
        )
    )
    for order, ((arch, optimizer), ppl) in enumerate(val.items()):
        lr = 0.003 if optimizer == "adam" else 10.0 if arch == "gru" else 5.0
        add_run(study_dir, order, f"{arch}-{optimizer}", arch, optimizer, [99.0, ppl], lr=lr, keep=0.9)
    return val


def test_optimizers_are_compared_at_their_own_rates_and_each_part_of_the_report_has_the_same_numbers(
    tmp_path: Path,
) -> None:
    val = add_quickstart(tmp_path)
    blocks = compared(tmp_path)
    difference = {
        pair: [math.log(val[arch, pair[1]] / val[arch, pair[0]]) for arch in ("rnn", "gru", "transformer")]
        for pair in [("adam", "sgd"), ("adam", "sgd_schedule"), ("sgd", "sgd_schedule")]
    }
    medians = [abs(statistics.median(nats)) for nats in difference.values()]
    assert (
        f"Adam has a lower loss than SGD in 2 of 3 (by {medians[0]:.3f} nats in the median; 3 against 3 settings tried "
        f"in all); Adam has a lower loss than SGD schedule in 2 of 3 (by {medians[1]:.3f} nats"
    ) in said(blocks)
    effects = {
        (row["lower"], row["higher"]): row["mean_change_nats"]
        for row in table(effects_section(load_study(tmp_path)).blocks, "effects")
        if row["key"] == "optim.optimizer"
    }
    assert effects == {
        (first, second): f"{statistics.fmean(nats):+.3f}"
        for (first, second), nats in zip(
            [("Adam", "SGD"), ("Adam", "SGD schedule"), ("SGD", "SGD schedule")], difference.values(), strict=True
        )
    }


def test_what_another_hyperparameter_does_is_said_for_each_optimizer(tmp_path: Path) -> None:
    add_quickstart(tmp_path)
    changes = [math.log(after / before) for before, after in ((64.61, 58.66), (61.24, 65.20), (62.65, 63.71))]
    assert (
        f"Transformer in place of GRU, each at the best learning rate that it was tried with, changes the loss by "
        f"{changes[0]:+.3f} nats with Adam, {changes[1]:+.3f} nats with SGD and {changes[2]:+.3f} nats with SGD "
        "schedule: the direction depends on the optimizer."
    ) in said(compared(tmp_path)).splitlines()


def test_a_side_with_more_learning_rates_is_named(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "adam", "rnn", "adam", [110.0], lr=0.001)
    for order, ppl in enumerate([100.0, 900.0, 120.0], start=1):
        add_run(tmp_path, order, f"sgd{order}", "rnn", "sgd", [ppl], lr=float(order))
    add_run(tmp_path, 5, "wide", "rnn", "adam", [50.0], hidden_size=128)  # alone
    blocks = compared(tmp_path)
    assert "SGD has a lower loss than Adam in 1 of 1 (by 0.095 nats; 3 against 1 settings tried in all)." in said(
        blocks
    )
    assert "The numbers of settings differ (Adam 2, SGD 3)" in said(blocks)


def test_each_optimizer_has_its_best_setting_its_test_perplexity_time_and_gaps(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn-adam", "rnn", "adam", [300.0, 204.0, 200.0], train=150.0)  # within 5 % after 20 s
    add_run(tmp_path, 1, "gru-adam", "gru", "adam", [102.0, 101.0, 100.0], train=[90.0, 85.0, 80.0])  # at once
    add_run(tmp_path, 2, "rnn-sgd", "rnn", "sgd", [500.0, 400.0, 90.0], train=95.0, lr=2.0, result={"test_ppl": 93.0})
    add_run(tmp_path, 3, "gru-sgd", "gru", "sgd", [90.0], failure="diverged")
    blocks = compared(tmp_path)
    adam, sgd = table(blocks, "discussion-2-optimizers")
    gap = statistics.median([math.log(200 / 150), math.log(100 / 80)])
    assert list(adam.values()) == ["Adam", "2", "0", "100.00", "100.00", "2 gru-adam", "15 s", *[f"{gap:+.3f}"] * 2]
    assert list(sgd.values()) == ["SGD", "1", "1", "90.00", "93.00", "3 rnn-sgd", "30 s", *["-0.054"] * 2]


def test_times_are_those_of_one_machine(tmp_path: Path) -> None:
    for order, (optimizer, device) in enumerate([("adam", "A"), ("sgd", "A"), ("adam", "B")]):
        add_run(
            tmp_path, order, optimizer, "gru", optimizer, [9.0], device=device, seconds=10.0 + order, lr=1.0 + order
        )
    assert (
        "10 s with Adam, 11 s with SGD. Times compare only on equal machines: these are of the 2 of 3 settings on A, 2 "
        "cores."
    ) in said(compared(tmp_path))


def test_seeds_count_as_their_mean_and_a_single_seed_never_clearly_wins(tmp_path: Path) -> None:
    for seed, ppl in enumerate([80.0, 125.0]):
        add_run(tmp_path, seed, f"a{seed}", "rnn", "sgd", [ppl], seed=seed)
    add_run(tmp_path, 2, "b", "rnn", "adam", [95.0], seed=5)
    blocks = compared(tmp_path)
    assert [row["val_ppl"] for row in table(blocks, "discussion-2-optimizers")] == ["95.00", "100.00"]
    assert "The order of the first two is not clear (one of them has a single seed)." in said(blocks)


def test_without_other_optimizers_times_or_pairs_it_says_so(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "a", "rnn", "sgd", [200.0], done=False)
    assert said(compared(tmp_path)) == "No run has finished, so the optimizers cannot be compared."
    run = add_run(tmp_path, 1, "b", "gru", "sgd", [200.0])
    alone = said(compared(tmp_path))
    assert "Only SGD has finished runs, so there is no other optimizer" in alone
    assert alone.count("200") == 1, "the one perplexity that there is, once"
    run.metrics_file.unlink()
    write_json(run.result_file, {k: v for k, v in (run.read_result() or {}).items() if "train_ppl" not in k})
    add_run(tmp_path, 2, "c", "rnn", "adam", [100.0], hidden_size=128)
    assert "No two settings with different optimizers agree in model, data and training" in said(compared(tmp_path))
    assert "Median time" not in said(compared(tmp_path))
