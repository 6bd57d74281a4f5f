"""What a run costs: exact where it can be, against the models themselves; and never a guess of the time."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.plan.estimate import (
    CHUNK_TOKENS,
    Throughput,
    checkpoint_bytes,
    earlier_throughput,
    estimate,
    flops_per_token,
    memory_bytes,
    seconds_estimate,
    training_tokens_per_epoch,
)
from seqlm.config import RunConfig
from seqlm.data.corpus import CorpusFacts, load_corpus
from seqlm.files import write_json
from seqlm.models import build_model, output_loss
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from tests.seqlm.training.studies import Attempt, write_text

VOCAB = 11
MODELS: list[dict[str, Any]] = [
    {"arch": "rnn", "hidden_size": 6, "num_layers": 1, "embedding_size": 5},
    {"arch": "rnn", "hidden_size": 6, "num_layers": 3, "embedding_size": 5},
    {"arch": "gru", "hidden_size": 6, "num_layers": 1, "embedding_size": 5},
    {"arch": "gru", "hidden_size": 6, "num_layers": 3, "embedding_size": 5},
    {"arch": "transformer", "hidden_size": 6, "num_layers": 1, "num_heads": 2, "mlp_size": 7},
    {"arch": "transformer", "hidden_size": 6, "num_layers": 3, "num_heads": 3, "mlp_size": 7},
]
REGULARISED: list[dict[str, Any]] = [
    *(
        {**model, "embedding_size": 6, "tied": True, "embedding_keep": 0.8, "weight_keep": 0.5}
        for model in (MODELS[0], MODELS[3])
    ),
    {**MODELS[5], "tied": True, "embedding_keep": 0.8},
]


def config(
    model: dict[str, Any] | None = None, optimizer: str = "adam", corpus: dict[str, Any] | None = None, **train: Any
) -> RunConfig:
    raw = {
        "model": model or MODELS[0],
        "data": corpus or {"corpus": "ptb"},
        "optim": {"optimizer": optimizer, "lr": 1.0},
        "train": {"epochs": 2, "batch_size": 4, "seq_len": 5, **train},
    }
    return RunConfig.from_dict(raw)


def label(model: dict[str, Any]) -> str:
    return f"{model['arch']}-{model['num_layers']}"


@pytest.mark.parametrize("model", [*MODELS, *REGULARISED], ids=label)
def test_the_number_of_parameters_is_that_of_the_model(model: dict[str, Any]) -> None:
    run = config(model)
    built = build_model(run.model, VOCAB)
    assert run.model.parameter_count(VOCAB) == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("model", [*MODELS, *REGULARISED], ids=label)
def test_the_operations_per_token_are_those_that_torch_counts(model: dict[str, Any]) -> None:
    run = config(model)
    built = build_model(run.model, VOCAB).to("meta")  # torch does not know the operations of oneDNN's products
    tokens = torch.zeros(5, 4, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as forward:
        logits, _ = built(tokens, built.initial_state(4))
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    per_token = flops_per_token(run, VOCAB)
    assert 3 * forward.get_total_flops() == per_token * tokens.numel()
    if model["arch"] == "transformer":
        assert forward.get_total_flops() + backward.get_total_flops() == per_token * tokens.numel()


def test_memory_grows_with_what_has_to_be_kept() -> None:
    parameters = config().model.parameter_count(VOCAB)
    assert memory_bytes(config(), VOCAB) - memory_bytes(config(optimizer="sgd"), VOCAB) == 4 * 2 * parameters
    assert memory_bytes(config(batch_size=8), VOCAB) > memory_bytes(config(), VOCAB)
    assert memory_bytes(config(seq_len=10), VOCAB) > memory_bytes(config(), VOCAB)
    # A vocabulary entry more: its parameters with gradient and moments, and the planes of T x B of its logits.
    grown = 4 * 4 * (config().model.parameter_count(VOCAB + 1) - parameters) + 4 * 2 * 5 * 4
    assert memory_bytes(config(), VOCAB + 1) - memory_bytes(config(), VOCAB) == grown
    # A batch of more than a chunk of tokens has no more logits than a chunk.
    large = config(batch_size=1024)
    growth = memory_bytes(large, VOCAB + 1) - memory_bytes(large, VOCAB)
    assert growth == 4 * 4 * (large.model.parameter_count(VOCAB + 1) - parameters) + 4 * 2 * CHUNK_TOKENS


@pytest.mark.parametrize("model", REGULARISED, ids=label)
def test_memory_has_the_masks_of_a_whole_step_and_a_tied_matrix_once(model: dict[str, Any]) -> None:
    plain = {key: value for key, value in model.items() if not key.endswith("_keep") and key != "tied"}
    gates = {"rnn": 1, "gru": 3, "transformer": 0}[model["arch"]]
    values = 5 * 4 * (6 + 1) + 2 * gates * model["num_layers"] * 6 * 6 - 4 * VOCAB * 6
    assert memory_bytes(config(model), VOCAB) - memory_bytes(config(plain), VOCAB) == 4 * values


def test_memory_and_checkpoints_have_the_moments_of_the_optimizer() -> None:
    run = config(optimizer="sgd")
    heavy = dataclasses.replace(run, optim=dataclasses.replace(run.optim, momentum=0.9))
    parameters = 4 * run.model.parameter_count(VOCAB)
    assert memory_bytes(heavy, VOCAB) - memory_bytes(run, VOCAB) == parameters
    sizes = [checkpoint_bytes(one, VOCAB, to_resume=True) for one in (run, heavy, config(optimizer="adamw"))]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == parameters


def test_the_estimates_chunk_is_that_of_the_loss() -> None:
    assert CHUNK_TOKENS == output_loss.CHUNK_TOKENS


def test_a_rank_keeps_its_share_of_the_batch_and_buckets_for_the_others() -> None:
    one, two = memory_bytes(config(batch_size=7), VOCAB), memory_bytes(config(batch_size=7), VOCAB, ranks=2)
    buckets = 4 * config().model.parameter_count(VOCAB)
    assert two - buckets == memory_bytes(config(batch_size=4), VOCAB) < one


@pytest.mark.parametrize(
    ("tokens", "batch_size", "seq_len", "expected"),
    [
        (929_589, 20, 35, 1327 * 35 * 20),
        (929_589, 128, 35, 207 * 35 * 128),
        (24, 4, 5, 20),
        (23, 4, 5, 0),
        (0, 4, 5, 0),
    ],
)
def test_an_epoch_has_whole_windows_of_whole_columns(tokens: int, batch_size: int, seq_len: int, expected: int) -> None:
    assert training_tokens_per_epoch(tokens, batch_size, seq_len) == expected


SMALL, LARGE, LARGER, HUGE = (
    config({**MODELS[0], "hidden_size": size, "embedding_size": embedding})
    for size, embedding in ((6, 5), (50, 5), (60, 5), (300, 300))
)
OTHER_TEXT = config(corpus={"corpus": "pydoc", "vocab_size": 500})


@pytest.mark.parametrize(
    ("wanted", "speeds", "relative", "words"),
    [
        (SMALL, {SMALL: 10.0}, SMALL, VOCAB),
        (LARGER, {SMALL: 10.0}, SMALL, VOCAB),
        (LARGE, {LARGER: 10.0, SMALL: 1e6}, LARGER, VOCAB),  # of two, the one with closer work
        (LARGE, {SMALL: 1e6, LARGER: 10.0}, LARGER, VOCAB),
        (SMALL, {OTHER_TEXT: 10.0}, OTHER_TEXT, 500),
        (HUGE, {SMALL: 10.0}, None, VOCAB),  # a thousand times the work
        (SMALL, {}, None, VOCAB),
        (SMALL, {config(MODELS[2]): 1.0}, None, VOCAB),
        (SMALL, {config(corpus={"corpus": "pydoc", "level": "char"}): 1.0}, None, VOCAB),  # of unknown vocabulary
    ],
)
def test_the_time_of_a_run_follows_from_the_operations_per_second_of_its_nearest_relative(
    wanted: RunConfig, speeds: dict[RunConfig, float], relative: RunConfig | None, words: int
) -> None:
    found = seconds_estimate(wanted, VOCAB, 24, Throughput(speeds=speeds))
    if relative is None:
        assert found is None
    else:
        ratio = flops_per_token(wanted, VOCAB) / flops_per_token(relative, words)
        assert found == pytest.approx(2 * 20 / 10 * ratio)


def make_run(root: Path, study: str, run_config: RunConfig, speeds: list[float | None]) -> RunDirectory:
    run = RunDirectory.locate(root / study, "run", run_config.fingerprint())
    run.create(run_config, Provenance())
    lines = [{"epoch": i, "val_ppl": 1.0, "train_tokens_per_second": speed} for i, speed in enumerate(speeds)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_earlier_speeds_are_the_median_over_the_epochs_of_all_studies(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config(), [1.0, 10.0])
    make_run(tmp_path, "b", config(), [20.0, None])
    make_run(tmp_path, "b", config(MODELS[2]), [7.0])
    make_run(tmp_path, "b", config(MODELS[3]), [])
    found = earlier_throughput(tmp_path)
    assert found.speeds == {config(): 10.0, config(MODELS[2]): 7.0}


def make_canary(root: Path, study: str, run_config: RunConfig, **record: Any) -> RunDirectory:
    run = RunDirectory.canary(root / study, f"run-{run_config.fingerprint()[:8]}")
    run.create(run_config, Provenance())
    write_json(run.canary_file, record)
    return run


def test_a_canary_tells_the_speed_where_no_epoch_of_its_configuration_does(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config(), [10.0])
    make_canary(tmp_path, "b", config(), train_tokens_per_second=99.0)
    make_canary(tmp_path, "b", config(MODELS[2]), train_tokens_per_second=7.0)
    make_canary(tmp_path, "b", config(MODELS[3]), train_tokens_per_second=None)
    make_canary(tmp_path, "b", config(MODELS[4]), train_tokens_per_second=1.0).canary_file.write_text("{")
    found = earlier_throughput(tmp_path)
    assert found.speeds == {config(): 10.0, config(MODELS[2]): 7.0}


def test_the_memory_of_a_configuration_is_the_highest_that_any_run_or_canary_of_it_has_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", config(), [])
    lines = [{"epoch": i, "val_ppl": 1.0, "peak_memory_bytes": peak} for i, peak in enumerate((500, 900, None))]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_canary(tmp_path, "a", config(), peak_memory_bytes=700)
    make_canary(tmp_path, "a", config(MODELS[2]), peak_memory_bytes=300)
    known = earlier_throughput(tmp_path)
    facts = CorpusFacts(vocab_size=VOCAB, tokens={"train": 24, "valid": 9, "test": 9}, sha256="")
    measured = [estimate(config(model), facts, known).measured_memory_bytes for model in (None, MODELS[2], MODELS[4])]
    assert measured == [900, 300, None]
    found = estimate(config(), facts, known)
    assert found.memory_bytes == memory_bytes(config(), VOCAB), "the estimate stays one"
    assert found.flops_per_token == flops_per_token(config(), VOCAB)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "size", "optimizer"), [(16, 128, "adam"), (6000, 16, "sgd")])
def test_the_size_of_a_checkpoint_is_that_of_its_file_within_5_percent(
    tmp_path: Path, words: int, size: int, optimizer: str
) -> None:
    # Few words and a large model; thousands of words, which are a sixth of the file, and a small one.
    model = {"arch": "gru", "hidden_size": size, "num_layers": 1, "embedding_size": size}
    run_config = config(model, optimizer, {"corpus": "files"}, batch_size=8, epochs=1)
    text = write_text(tmp_path / "text", train_lines=12)
    with (text / "train.txt").open("a") as train:
        train.write(" ".join(f"word{number}" for number in range(words - 16)) + "\n")
    loaded = load_corpus(run_config.data, text)
    run = RunDirectory(tmp_path / "run")
    run.create(run_config, Provenance())
    Attempt(run, loaded).train()
    for file, to_resume in ((run.last_checkpoint, True), (run.best_checkpoint, False)):
        expected = checkpoint_bytes(run_config, len(loaded.vocabulary), to_resume=to_resume)
        assert expected == pytest.approx(file.stat().st_size, rel=0.05)


def test_damaged_runs_and_lines_and_absent_folders_are_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path, "a", config(), [1.0]).config_file.write_text("{")
    cut = make_run(tmp_path, "a", config(MODELS[2]), [4.0])
    with cut.metrics_file.open("a") as file:
        file.write('{"epoch": 1, "val_ppl"')
    nonsense = make_run(tmp_path, "a", config(MODELS[4]), [0.0, -1.0])
    nonsense.metrics_file.write_text(
        nonsense.metrics_file.read_text() + '{"epoch": 2, "val_ppl": 1, "train_tokens_per_second": "x"}\n'
    )
    assert earlier_throughput(tmp_path).speeds == {config(MODELS[2]): 4.0}
    assert earlier_throughput(tmp_path / "absent") == Throughput()


def test_what_another_user_has_measured_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "a", config(), [4.0])
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert earlier_throughput(tmp_path) == Throughput()


@pytest.mark.parametrize("speed", [1e308, 1e-320, 2**62, -1, 1e60, 1e-50])
def test_a_speed_or_a_memory_that_no_machine_has_is_passed_over(tmp_path: Path, speed: float) -> None:
    make_run(tmp_path, "a", config(), [4.0, speed])
    make_canary(tmp_path, "a", config(MODELS[2]), train_tokens_per_second=speed, peak_memory_bytes=abs(speed) * 2**60)
    assert earlier_throughput(tmp_path) == Throughput(speeds={config(): 4.0})
