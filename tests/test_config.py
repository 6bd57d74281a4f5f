from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from seqlm.architectures import TransformerConfig
from seqlm.config import RunConfig, applicable_keys, valid_keys
from seqlm.errors import ConfigError
from seqlm.optimizers import AdamConfig, SgdConfig

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
    assert isinstance(config.optim, SgdConfig)
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
        "d131736ae341400e58cf1416e21c05bafaad257fd551e4ce952f95ab825e0564"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"hidden_size": 511}},
        {"model": {"keep": 0.36}},
        {"data": {"level": "char"}},
        {"optim": {"lr": 2}},
        {"optim": {"schedule": "per_epoch"}},
        {"train": {"batch_size": 2}},
    ],
)
def test_every_scientific_choice_changes_the_fingerprint(change: dict[str, dict[str, Any]]) -> None:
    assert RunConfig.from_dict(changed(**change)).fingerprint() != RunConfig.from_dict(RNN).fingerprint()


def test_how_far_a_run_is_to_go_is_no_part_of_its_fingerprint() -> None:
    config, longer = RunConfig.from_dict(RNN), RunConfig.from_dict(changed(train={"epochs": 60}))
    assert longer == config.with_epochs(60) != config
    assert longer.fingerprint() == config.fingerprint()


def test_the_seed_is_part_of_the_fingerprint() -> None:
    assert RunConfig.from_dict({**RNN, "seed": 2}).fingerprint() != RunConfig.from_dict(RNN).fingerprint()


def test_a_whole_number_is_the_same_learning_rate_without_a_file_too() -> None:
    config = RunConfig.from_dict(changed(optim={"optimizer": "adam"}))
    made = dataclasses.replace(config, optim=AdamConfig(optimizer="adam", lr=1))
    assert made.fingerprint() == config.fingerprint()


def test_configurations_cannot_be_changed() -> None:
    config = RunConfig.from_dict(RNN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]


def test_keys_apply_to_the_variant_that_is_chosen() -> None:
    assert "num_heads" not in applicable_keys("model", {"arch": "gru"})
    assert "embedding_size" not in applicable_keys("model", {"arch": "transformer"})
    assert {"num_heads", "embedding_size"} <= applicable_keys("model", {})
    assert "momentum" not in applicable_keys("optim", {"optimizer": "adamw"})
    assert "beta1" not in applicable_keys("optim", {"optimizer": "sgd"})
    assert {"optim.lr", "model.num_heads", "seed"} <= set(valid_keys())


def test_a_whole_number_beyond_any_float_is_one_line() -> None:
    (line,) = problems_of(changed(optim={"lr": 10**400}))
    assert line.startswith("optim.lr: expected a positive finite number, got 1000")
    assert len(line) < 200


# -- identity ------------------------------------------------------------------------------------------------------

TRANSFORMER = {"arch": "transformer", "hidden_size": 512}
PER_EPOCH = {"optimizer": "sgd_schedule", "lr": 1, "schedule": "per_epoch"}


@pytest.mark.parametrize(
    ("sections", "fingerprint"),
    [
        (
            {"model": {"arch": "gru", "hidden_size": 512}},
            "008fe0cf9494151645dcb050c4092ce02d0b28a099e493964f5fe00f46dd827c",
        ),
        ({"model": TRANSFORMER}, "b3df925c1baf277c5d823e41b5c0532fecf67432fe7b18ec4b878ff00a967c4c"),
        (
            {"optim": {"optimizer": "adam", "lr": 0.001}},
            "8eeede67a6f975059a090302c58a93eacde909d10043a08fe51236a51a9186ae",
        ),
        (
            {"optim": {"optimizer": "sgd", "lr": 1}},
            "a41d1a64955d48c836213ab9a7155a5d54681ad4dc4ccf020bc237930cabfcca",
        ),
        ({"optim": PER_EPOCH}, "addbcd09e68dba48c2c2e7174fa8d2d38f494b5f100eba2416ad30e1901fdcec"),
        ({"data": {}, "train": {}}, "acc44402c60e25b5a188e60ae5f9b10928002bd2da28b5771fdfd88cf4dd1844"),
        (
            {"data": {"corpus": "files", "sha256": "0" * 64}},
            "43bf0d3e400d2e019ebb598ddb2aecd74db142bda50a74b3f9d007e093333de0",
        ),
    ],
)
def test_the_fingerprint_of_each_variant_with_its_defaults_does_not_change(
    sections: dict[str, dict[str, Any]], fingerprint: str
) -> None:
    assert RunConfig.from_dict({**RNN, **sections}).fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"tied": True}),
        ("model", {"embedding_keep": 0.9}),
        ("optim", {"warmup_steps": 1}),
        ("optim", {"weight_decay": 1e-6}),
        ("optim", {"momentum": 0.9}),
        ("train", {"precision": "tf32"}),
        ("train", {"precision": "bf16"}),
        ("eval", {"batch_size": 20}),
        ("eval", {"seq_len": 35}),
    ],
)
def test_a_later_key_changes_the_fingerprint_unless_it_has_its_neutral_value(
    section: str, change: dict[str, Any]
) -> None:
    base = {**RNN, "model": TRANSFORMER}
    raw = {**base, section: {**base.get(section, {}), **change}}
    assert RunConfig.from_dict(raw).fingerprint() != RunConfig.from_dict(base).fingerprint()


def test_what_earlier_versions_wrote_of_a_model_is_read_if_it_is_what_every_model_is_now() -> None:
    written = {**TRANSFORMER, "implementation": "fused", "attention": "own"}
    assert RunConfig.from_dict({**RNN, "model": written}) == RunConfig.from_dict({**RNN, "model": TRANSFORMER})
    with pytest.raises(ConfigError, match=r'unknown key "model\.attention"'):
        RunConfig.from_dict({**RNN, "model": {**written, "attention": "sdpa"}})


@pytest.mark.parametrize("line", (Path(__file__).parent / "identities.jsonl").read_text("utf-8").splitlines())
def test_fingerprints_are_made_of_what_they_were_made_of(line: str) -> None:
    """Each line has a configuration without later keys, and what its fingerprint is the hash of."""
    kept = json.loads(line)
    assert RunConfig.from_dict(kept["raw"]).fingerprint() == fingerprint_of(kept["identity"])


def test_one_key_of_eval_takes_the_other_from_train() -> None:
    half = RunConfig.from_dict({**RNN, "eval": {"batch_size": 10}})
    assert (half.eval.batch_size, half.eval.seq_len) == (10, half.train.seq_len)
    whole = RunConfig.from_dict({**RNN, "eval": {"batch_size": 10, "seq_len": half.train.seq_len}})
    assert half.fingerprint() == whole.fingerprint()


def fingerprint_of(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize(
    "neutral",
    [
        {"model": {"tied": False, "embedding_keep": 1, "weight_keep": 1.0}},
        {"optim": {"warmup_steps": 0, "weight_decay": 0, "momentum": 0.0, "nesterov": False}},
        {"optim": {"optimizer": "adam", "schedule": "constant", "beta1": 0.9, "beta2": 0.999}},
    ],
)
def test_keys_at_their_neutral_values_are_no_part_of_the_fingerprint(neutral: dict[str, dict[str, Any]]) -> None:
    without = {section: {k: v for k, v in table.items() if k == "optimizer"} for section, table in neutral.items()}
    if "optimizer" in neutral.get("optim", {}):
        base = {**RNN, "optim": {"lr": 1, "optimizer": "adam"}}
        found = RunConfig.from_dict({**base, "optim": {"lr": 1, **neutral["optim"]}})
    else:
        base, found = changed(**without), RunConfig.from_dict(changed(**neutral))
    assert found.fingerprint() == RunConfig.from_dict(base).fingerprint()


def test_sgd_with_a_published_schedule_is_its_published_form() -> None:
    general = RunConfig.from_dict({**RNN, "optim": {"optimizer": "sgd", "lr": 1, "schedule": "compounding"}})
    assert general == RunConfig.from_dict(RNN)
    assert general.optim.optimizer == "sgd_schedule"


def test_keys_of_another_schedule_do_not_apply_to_a_run() -> None:
    constant = RunConfig.from_dict({**RNN, "optim": {"optimizer": "adam", "lr": 1}})
    assert not {"decay", "flat_epochs", "decay_epochs"} & constant.to_dict()["optim"].keys()
    assert "optim.decay" not in constant.by_key()
    assert RunConfig.from_dict(RNN).by_key()["optim.decay"] == 1.15


def test_each_key_of_a_run_but_its_epochs_is_part_of_its_fingerprint() -> None:
    base = RunConfig.from_dict({**RNN, "model": TRANSFORMER})
    values = {"decay": 1.5, "flat_epochs": 3, "clip_norm": 1.0, "seq_len": 7, "batch_size": 7, "seed": 7}
    values |= {"num_layers": 7, "num_heads": 8, "mlp_size": 7, "keep": 0.7, "attention_keep": 0.7, "vocab_size": 7}
    found = {base.fingerprint()}
    for key, value in values.items():
        raw = base.to_dict()
        section = next((name for name in RunConfig.SECTIONS if key in raw[name]), None)
        (raw if section is None else raw[section])[key] = value
        found.add(RunConfig.from_dict(raw).fingerprint())
    assert len(found) == 1 + len(values)


def test_a_vocabulary_of_three_words_and_the_largest_seed_are_valid() -> None:
    assert RunConfig.from_dict(changed(data={"vocab_size": 3})).data.vocab_size == 3
    assert RunConfig.from_dict({**RNN, "seed": 2**32 - 1}).seed == 2**32 - 1
    assert RunConfig.from_dict({**RNN, "seed": 0}).seed == 0
    assert problems_of({**RNN, "seed": 2**32}) == [f"seed: expected a whole number from 0 to 2^32 - 1, got {2**32}"]


def test_the_documentation_has_ten_thousand_words_unless_something_else_is_said() -> None:
    def vocab_size(**data: Any) -> int | None:
        return RunConfig.from_dict({**RNN, "data": data}).data.vocab_size

    assert vocab_size() == vocab_size(corpus="pydoc", level="word") == 10_000
    assert vocab_size(vocab_size=500) == 500
    assert vocab_size(level="char") is None
    assert vocab_size(corpus="ptb") is None


# -- boundaries ----------------------------------------------------------------------------------------------------
