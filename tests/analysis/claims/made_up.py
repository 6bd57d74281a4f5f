"""Studies made up for tests of claims: losses of tokens, seeds and times chosen by hand."""

import math
import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqlm.rundir import RunDirectory
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.hand_made import add_run
from tests.analysis.study.test_numbering import launch

ARCHS = ("rnn", "gru", "transformer")
OPTIMIZERS = ("adam", "sgd", "sgd_schedule")
PUBLISHED = {
    **{1: (120, 156), 2: (3010, 2210), 3: (230, 196), 4: (60, 111), 5: (50, 113), 6: (66, 103)},
    **{7: (3, 131), 8: (24, 167), 9: (60, 143), 10: (113, 159), 11: (151, 154), 12: (109, 145)},
    **{13: (59, 117), 14: (44, 112), 15: (65, 103), 16: (60, 119), 17: (33, 120), 18: (9, 121)},
}
"""Number of a run of the published study -> its final training and its best validation perplexity."""
TOKENS = 3000
SEED_NATS = 0.01
"""Standard deviation of losses over seeds."""
LOSSES = {
    ("rnn", "adam"): 4.20,
    ("rnn", "sgd"): 4.28,
    ("rnn", "sgd_schedule"): 4.285,
    ("gru", "adam"): 4.14,
    ("gru", "sgd"): 4.10,
    ("gru", "sgd_schedule"): 4.125,
    ("transformer", "adam"): 4.06,
    ("transformer", "sgd"): 4.19,
    ("transformer", "sgd_schedule"): 4.13,
}
SECONDS = {"rnn": 10.0, "gru": 14.0, "transformer": 11.0}


def make_study(
    study_dir: Path,
    *,
    seeds: dict[tuple[str, str], int] | None = None,
    with_tokens: bool = True,
    order: Sequence[int] | None = None,
    time_factor: float = 1.0,
    slow: dict[str, tuple[int, float]] | None = None,
    losses: dict[tuple[str, str], float] | None = None,
    behaviours: bool = False,
    rare: dict[str, float] | None = None,
    **keys: Any,
) -> list[RunDirectory]:
    """Make runs of three architectures and three optimizers.

    ``seeds``: seeds of some of them, else one. ``order``: places of the runs in the manifest. ``slow``: by name, an
    epoch and the factor of its time. ``losses``: the losses of some of them. ``rare``: of some
    architectures, what SGD loses in rare tokens against Adam. ``behaviours``: of the runs with Adam;
    their training length is 2. ``keys``: of :func:`add_run`.
    """
    runs = []
    wanted = [
        (arch, optimizer, seed)
        for arch in ARCHS
        for optimizer in OPTIMIZERS
        for seed in range((seeds or {}).get((arch, optimizer), 1))
    ]
    text = random.Random(0)
    base = [text.gauss(0.0, 0.7) for _ in range(TOKENS)]  # no loss of a token is below 0
    for place, (arch, optimizer, seed) in enumerate(wanted):
        name = f"{arch}-{optimizer}" + (f"-seed{seed}" if seed else "")
        chance = random.Random(f"{arch} {optimizer} {seed}")
        loss = {**LOSSES, **(losses or {})}[arch, optimizer] + chance.gauss(0.0, SEED_NATS)
        own = [loss + one + chance.gauss(0.0, 0.3) for one in base]
        mean = sum(own) / len(own)
        own = [one - mean + loss for one in own]
        curve = [math.exp(loss + 0.6 * 0.5**epoch) for epoch in range(6)] + [math.exp(loss)]
        times = [time_factor * SECONDS[arch] * (1 + 0.02 * chance.random()) for _ in curve]
        if name in (slow or {}):
            epoch, factor = (slow or {})[name]
            times[epoch] *= factor
        rate = {"adam": 0.003, "sgd": 5.0, "sgd_schedule": 5.0}[optimizer]
        result = {
            "train_slice_loss": loss - {"rnn": 0.0, "gru": 0.05, "transformer": 0.2}[arch],
            "train_slice_tokens": TOKENS,
            "frequency_losses": [2.0, 3.0, 6.0 + (rare or {}).get(arch, 0.0) * (optimizer == "sgd")],
            "frequency_tokens": [1000, 1000, 1000],
            "parameters": {"rnn": 1000, "gru": 1100, "transformer": 1200}[arch],
        }
        run = add_run(
            study_dir,
            order[place] if order else place,
            name,
            arch,
            optimizer,
            curve,
            train=[0.9 * ppl for ppl in curve],
            seconds=times,
            device="AMD EPYC",
            seed=1111 + seed,
            result=result,
            **{"lr": rate, "hidden_size": 32, **({"num_heads": 4} if arch == "transformer" else {}), **keys},
        )
        if with_tokens:
            run.token_losses_file.write_bytes(array("f", [math.nan, *own]).tobytes())
        if behaviours and optimizer == "adam":
            blocks = [[loss + 1, loss + 0.2, loss, loss + chance.gauss(0.1, 0.01)] for _ in range(20)]
            add_behaviour(run, blocks)
            words = ["a", "b", "c"]
            add_samples(run, [raw_sample(index, words, [3.0, 2.0, chance.random()]) for index in range(4)])
        runs.append(run)
    return runs


def make_paper(folder: Path) -> None:
    """Make the runs of the manifest ``paper`` with the published perplexities and made-up curves; run 7 ends far up."""
    for number, (train, val) in PUBLISHED.items():
        best = 2 if number == 7 else 38
        curve = [val * (1 + 0.03 * abs(epoch - best) ** (2 if number == 7 else 1)) for epoch in range(40)]
        launch(folder, number, curve, train=[train * (1 + 0.05 * (39 - epoch)) for epoch in range(40)])
