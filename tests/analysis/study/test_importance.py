import math
import random
from typing import Any

from analysis.study.importance import importances


def made(seed: int, number: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "model.arch": rng.choice(["rnn", "gru"]),
            "model.hidden_size": rng.choice([16, 32, 48, 64]),
            "optim.lr": 10 ** rng.uniform(-4, -1),
            "train.batch_size": 40,
            **({"model.keep": rng.random()} if rng.random() < 0.5 else {}),
        }
        for _ in range(number)
    ]


def noise(seed: int, number: int = 60) -> list[float]:
    rng = random.Random(-seed)
    return [rng.gauss(5, 1) for _ in range(number)]


def test_a_hyperparameter_that_decides_is_shown_whatever_the_order_of_the_settings() -> None:
    settings = made(1)
    losses = [abs(math.log10(one["optim.lr"]) + 2) + loss / 20 for one, loss in zip(settings, noise(1), strict=True)]
    losses[3] = math.inf
    found = importances(settings, losses)
    assert found is not None
    assert [row.key for row in found if row.is_shown] == ["optim.lr"]
    assert {row.key for row in found} == {"model.arch", "model.hidden_size", "optim.lr"}
    assert abs(sum(row.share for row in found) - 1) < 1e-9
    order = list(range(len(settings)))
    random.Random(2).shuffle(order)
    assert importances([settings[place] for place in order], [losses[place] for place in order]) == found


def test_a_choice_that_decides_is_shown() -> None:
    settings = made(4)
    losses = [(one["model.arch"] == "rnn") + loss / 20 for one, loss in zip(settings, noise(4), strict=True)]
    found = importances(settings, losses)
    assert found is not None
    assert [row.key for row in found if row.is_shown] == ["model.arch"]


def test_keys_that_vary_together_are_one_hyperparameter() -> None:
    """Two of them would share its importance, and a correction for one more would hide others."""
    settings = made(4)
    losses = [(one["model.arch"] == "rnn") + loss / 20 for one, loss in zip(settings, noise(4), strict=True)]
    linked = [{**one, "model.embedding_size": one["model.hidden_size"]} for one in settings]
    alone, together = importances(settings, losses), importances(linked, losses)
    assert alone is not None
    assert together is not None
    assert [(row.share, row.p) for row in together] == [(row.share, row.p) for row in alone]
    assert {*together[1].key.split(", "), *together[2].key.split(", ")} >= {"model.hidden_size", "model.embedding_size"}


def test_noise_shows_hardly_ever_anything() -> None:
    """A search without any influence shows one in one of twenty cases."""
    shown = [any(row.is_shown for row in importances(made(seed), noise(seed)) or []) for seed in range(12)]
    assert sum(shown) <= 2


def test_nothing_varies() -> None:
    assert importances([{"optim.lr": 0.1}] * 50, noise(1, 50)) == []
    assert importances([], []) == []
