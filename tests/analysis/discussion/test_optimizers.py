from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path

from analysis.blocks.section import Block
from analysis.discussion.effects import effects_section, optimizers_blocks
from analysis.study.pairs import pairs_of
from analysis.study.study import load_study
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
