from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from seqlm.config import RunConfig, SgdScheduleConfig, TransformerConfig, applicable_keys, valid_keys
from seqlm.errors import ConfigError

RNN: dict[str, Any] = {
    "model": {"arch": "rnn", "hidden_size": 512},
    "data": {"corpus": "ptb"},
    "optim": {"optimizer": "sgd_schedule", "lr": 1},
    "train": {"batch_size": 20},
}


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """RNN with some sections' keys changed."""
    return {**RNN, **{name: {**RNN[name], **values} for name, values in sections.items()}}


def problems_of(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(raw)
    return caught.value.problems


def test_defaults_are_the_study_protocol() -> None:
    config = RunConfig.from_dict(RNN)
    assert (config.train.epochs, config.train.seq_len, config.train.clip_norm, config.seed) == (40, 35, 0.25, 1111)
    assert isinstance(config.optim, SgdScheduleConfig)
    assert (config.optim.schedule, config.optim.decay, config.optim.flat_epochs) == ("compounding", 1.15, 15)
    transformer = RunConfig.from_dict({**RNN, "model": {"arch": "transformer", "hidden_size": 512}})
    assert isinstance(transformer.model, TransformerConfig)
    assert (transformer.model.num_heads, transformer.model.mlp_size, transformer.model.attention_keep) == (
        16,
        2048,
        0.9,
    )


def test_a_configuration_survives_the_trip_through_json() -> None:
    config = RunConfig.from_dict(RNN)
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_the_fingerprint_is_that_of_the_resolved_configuration() -> None:
    short, spelled_out = RunConfig.from_dict(RNN), RunConfig.from_dict(RunConfig.from_dict(RNN).to_dict())
    assert short.fingerprint() == spelled_out.fingerprint()
    assert RunConfig.from_dict(changed(optim={"lr": 1.0})).fingerprint() == short.fingerprint(), (
        "1 and 1.0 are one rate"
    )
    assert len(short.fingerprint()) == 64


def test_fingerprints_do_not_change_from_one_version_to_the_next() -> None:
    # If this fails, every run of every user would be trained again. Add a key in a way that keeps old runs the same.
    assert RunConfig.from_dict(RNN).fingerprint() == (
        "7719a0282943b0795933785555102c3e3130a3d2fc557bcb7d3505ea2b7744a0"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"hidden_size": 511}},
        {"model": {"keep": 0.36}},
        {"data": {"level": "char"}},
        {"optim": {"lr": 2}},
        {"optim": {"schedule": "per_epoch"}},
        {"train": {"epochs": 2}},
    ],
)
def test_every_scientific_choice_changes_the_fingerprint(change: dict[str, dict[str, Any]]) -> None:
    assert RunConfig.from_dict(changed(**change)).fingerprint() != RunConfig.from_dict(RNN).fingerprint()


def test_the_seed_is_part_of_the_fingerprint() -> None:
    assert RunConfig.from_dict({**RNN, "seed": 2}).fingerprint() != RunConfig.from_dict(RNN).fingerprint()


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (changed(optim={"lrate": 1}), 'unknown key "optim.lrate"; did you mean "optim.lr"?'),
        ({**RNN, "modle": {}}, 'unknown key "modle"; did you mean "model"?'),
        (changed(optim={"lr": -1}), "optim.lr: found -1.0, valid is a positive finite number"),
        (changed(optim={"lr": 0}), "optim.lr: found 0.0, valid is a positive finite number"),
        (changed(optim={"lr": float("nan")}), "optim.lr: found nan, valid is a positive finite number"),
        (changed(optim={"lr": "fast"}), 'optim.lr: found "fast", valid is a number'),
        (changed(model={"arch": "lstm"}), 'model.arch: found "lstm", valid is one of "rnn", "gru", "transformer"'),
        (changed(optim={"optimizer": "adamw"}), 'optim.optimizer: found "adamw", valid is one of "adam", "sgd"'),
        (changed(model={"hidden_size": 0}), "model.hidden_size: found 0, valid is a positive whole number"),
        (changed(model={"hidden_size": 1.5}), "model.hidden_size: found 1.5, valid is a whole number"),
        (changed(model={"hidden_size": True}), "model.hidden_size: found true, valid is a whole number"),
        (changed(model={"keep": 0}), "model.keep: found 0.0, valid is a number above 0 and at most 1"),
        (changed(model={"num_heads": 4}), 'model.num_heads: applies to transformer only, found arch = "rnn"'),
        (changed(data={"corpus": "wiki"}), 'data.corpus: found "wiki", valid is one of "ptb", "pydoc", "files"'),
        (changed(data={"vocab_size": 2}), "data.vocab_size: found 2, valid is a whole number of at least 3"),
        (changed(data={"sha256": "00"}), 'data.sha256: applies to corpus = "files" only, found corpus = "ptb"'),
        (changed(train={"epochs": 0}), "train.epochs: found 0, valid is a positive whole number"),
        (changed(optim={"decay": 1.0}), "optim.decay: found 1.0, valid is a number greater than 1"),
        ({**RNN, "model": 3}, "model: found 3, valid is a table"),
        ({**RNN, "seed": -1}, "seed: found -1, valid is a whole number from 0 to 2^63 - 1"),
        ({**RNN, "model": {"hidden_size": 3}}, 'model.arch: missing, valid is one of "rnn", "gru", "transformer"'),
        ({**RNN, "optim": {"optimizer": "adam"}}, "optim.lr: missing, valid is a number"),
        (
            {**RNN, "model": {"arch": "transformer", "hidden_size": 100, "num_heads": 3}},
            "model.hidden_size: found 100, valid is a multiple of model.num_heads = 3",
        ),
        (
            {**RNN, "model": {"arch": "transformer", "hidden_size": 1, "num_heads": 1}},
            "model.hidden_size: found 1, valid is at least 2",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(raw: dict[str, Any], line: str) -> None:
    (problem,) = problems_of(raw)
    assert problem.startswith(line)
    assert "\n" not in problem


def test_all_problems_come_at_once() -> None:
    problems = problems_of(
        changed(model={"hidden_size": -1, "keep": 2.0}, optim={"lrate": 1, "lr": -1}, train={"x": 1})
    )
    starts = [
        "model.hidden_size: found -1",
        "model.keep: found 2.0",
        'unknown key "optim.lrate"',
        "optim.lr: found -1.0",
        'unknown key "train.x"',
    ]
    assert len(problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(problems, starts, strict=True)), problems


def test_configurations_cannot_be_changed() -> None:
    config = RunConfig.from_dict(RNN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]


def test_keys_apply_to_the_variant_that_is_chosen() -> None:
    assert "num_heads" not in applicable_keys("model", {"arch": "gru"})
    assert "embedding_size" not in applicable_keys("model", {"arch": "transformer"})
    assert {"num_heads", "embedding_size"} <= applicable_keys("model", {})
    assert applicable_keys("optim", {"optimizer": "adam"}) == {"optimizer", "lr"}
    assert {"optim.lr", "model.num_heads", "seed"} <= set(valid_keys())
