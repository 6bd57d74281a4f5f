import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from seqlm.config import RunConfig, applicable_keys, valid_keys
from seqlm.errors import ConfigError
from seqlm.optimizers import AdamConfig

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


def test_a_whole_number_is_the_same_learning_rate_without_a_file_too() -> None:
    config = RunConfig.from_dict(changed(optim={"optimizer": "adam"}))
    made = dataclasses.replace(config, optim=AdamConfig(optimizer="adam", lr=1))
    assert made.fingerprint() == config.fingerprint()


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


OTHERS: dict[str, Any] = {
    **{"hidden_size": 256, "num_layers": 3, "num_heads": 8, "mlp_size": 7, "embedding_size": 7, "tied": True},
    **{"keep": 0.7, "attention_keep": 0.7, "embedding_keep": 0.7, "weight_keep": 0.7},
    **{"corpus": "pydoc", "level": "char", "vocab_size": 7},
    **{"lr": 2, "decay": 1.5, "flat_epochs": 3, "warmup_steps": 1, "weight_decay": 1e-6, "momentum": 0.9},
    **{"nesterov": True, "beta1": 0.8, "beta2": 0.8},
    **{"batch_size": 10, "seq_len": 7, "clip_norm": 1.0, "precision": "bf16"},
}
"""Another value of each key that may be changed alone."""


@pytest.mark.parametrize("arch", ["rnn", "transformer"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd_schedule", "adam"])
def test_each_key_of_a_run_but_its_epochs_is_part_of_its_fingerprint(arch: str, optimizer: str) -> None:
    model = {"arch": arch, "hidden_size": 512, **({"embedding_size": 512} if arch == "rnn" else {})}
    optim = {"optimizer": optimizer, "lr": 1, **({} if optimizer == "adam" else {"momentum": 0.5})}
    base = RunConfig.from_dict({**RNN, "model": model, "optim": optim}).to_dict()
    keys = [(section, key) for section, table in base.items() if section != "seed" for key in table if key in OTHERS]
    alone = {"arch", "optimizer", "schedule", "epochs", "sha256", "column", "tokenizer", "tokenizer_sha256"}
    assert {key for section, table in base.items() if section != "seed" for key in table} - {*OTHERS} <= alone
    found = [base, {**base, "seed": 7}, *({**base, name: {**base[name], key: OTHERS[key]}} for name, key in keys)]
    assert len({RunConfig.from_dict(raw).fingerprint() for raw in found}) == 2 + len(keys)
    assert RunConfig.from_dict({**base, "train": {**base["train"], "epochs": 7}}).fingerprint() == (
        RunConfig.from_dict(base).fingerprint()
    )


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
