import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from analysis.behaviour.__main__ import main
from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.files import read_json, write_json
from seqlm.models import build_model
from seqlm.records.runs import Result
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory
from seqlm.training.checkpoint import load_checkpoint
from tests import commands
from tests.facts import failure_of, owned
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.waiting import wait_for

SEQ_LEN = 5


@dataclasses.dataclass(frozen=True)
class Lab:
    """A study with three finished runs."""

    study: Path
    text: Path
    configs: ClassVar[dict[str, RunConfig]] = {
        "rnn-1": make_config("rnn", epochs=3),
        "transformer-2": make_config("transformer", lr=0.1, epochs=1),
        "gru-3": make_config("gru", epochs=1),
    }

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.study / name)

    def job(self, name: str, **task: Any) -> RunDirectory:
        job = RunDirectory(self.study / "behaviour" / name)
        job.path.mkdir(parents=True)
        write_json(job.config_file, self.configs[name].to_dict())
        write_json(job.path / "task.json", task)
        return job


def train(lab: Lab, name: str, text: Path) -> None:
    config = lab.configs[name]
    run = make_run(lab.run(name).path, config)
    Attempt(run, load_corpus(config.data, text)).train()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("trained")
    lab = Lab(folder / "runs/tiny", write_text(folder / "text", train_lines=100))
    for name in lab.configs:
        train(lab, name, lab.text)
    return lab


@pytest.fixture
def lab(trained: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A copy of the trained study, and the environment of a worker."""
    lab = Lab(shutil.copytree(trained.study, tmp_path / "runs/tiny"), trained.text)
    monkeypatch.setenv("SEQLM_DATA", str(lab.text))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield lab
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_job_writes_what_the_model_does_into_the_folder_of_its_run(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = lab.run("rnn-1"), {path: path.read_bytes() for path in lab.study.rglob("*.*") if path.is_file()}
    members = ["gru-3", "transformer-2"]
    job = lab.job("rnn-1", panel=members, settings={"samples": 3, "lengths": [4, 12], "seed": 3})
    assert main([str(job.path)]) == 0, capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing else is touched"

    behaviour = read_json(run.behaviour_file) or {}
    sha256 = hashlib.sha256(run.best_checkpoint.read_bytes()).hexdigest()
    panel_sha256 = [hashlib.sha256(lab.run(name).best_checkpoint.read_bytes()).hexdigest() for name in members]
    settings = {"window": 10, "samples": 3, "lengths": [4, 12], "temperature": 1.0, "prompt": None, "seed": 3}
    settings["gradient_columns"] = 20
    assert behaviour.pop("seconds") > 0
    losses, norms = behaviour.pop("loss_per_step"), behaviour.pop("gradient_norms")
    of_blocks, held_out = behaviour.pop("losses"), behaviour.pop("held_out")
    assert behaviour == {
        "version": BEHAVIOUR_VERSION,
        "checkpoint_sha256": sha256,
        "best_epoch": (run.read_result() or Result()).best_epoch,
        "panel": [
            {"id": name, "name": name, "checkpoint_sha256": digest}
            for name, digest in zip(members, panel_sha256, strict=True)
        ],
        "settings": settings,
        "device": "cpu",
        "seq_len": SEQ_LEN,
        "level": "word",
        "corpus": "files",
    }
    corpus = load_corpus(lab.configs["rnn-1"].data, lab.text)
    valid, valid_tokens = corpus.splits["valid"], len(corpus.splits["valid"]) // 8
    assert (losses["split"], losses["window"], losses["columns"]) == ("valid", 10, 8)
    assert losses["windows"] == (valid_tokens - 1) // 10
    assert [len(losses[key]) for key in ("zero_state", "carried_state")] == [10, 10]
    assert (norms["split"], norms["window"], norms["columns"]) == ("train", SEQ_LEN, 20), "not the run's batch of 8"
    assert [len(layer) for layer in norms["layers"]] == [SEQ_LEN, SEQ_LEN]
    overall = [math.hypot(*step) for step in zip(*norms["layers"], strict=True)]
    assert norms["overall"] == pytest.approx(overall)

    assert losses["tokens"] == len(valid) - 10
    numbers = np.fromfile(run.losses_file, "<f4")
    assert hashlib.sha256(run.losses_file.read_bytes()).hexdigest() == of_blocks["sha256"]
    assert of_blocks["blocks"] == losses["tokens"] // 100
    assert len(numbers) == of_blocks["blocks"] * 10
    if losses["tokens"] % 100 == 0:
        assert numbers.reshape(-1, 10).mean(axis=0) == pytest.approx(losses["zero_state"], rel=1e-5)

    samples = [json.loads(line) for line in run.samples_file.read_text("utf-8").splitlines()]
    assert [(sample["index"], sample["length"]) for sample in samples] == list(enumerate([4] * 3 + [12] * 3))
    train_words = [
        *(word for line in (lab.text / "train.txt").read_text().splitlines() for word in [*line.split(), "<eos>"])
    ]
    for sample in samples:
        tokens, measures = sample["tokens"], sample["measures"]
        assert len(tokens) == len(sample["entropy"]) == len(sample["log_prob"]) == sample["length"] - 1
        assert len(sample["prompt"]) == 1
        assert all(0 <= entropy <= math.log(18) + 1e-9 for entropy in sample["entropy"])
        assert measures["perplexity_own"] == pytest.approx(math.exp(-sum(sample["log_prob"]) / len(tokens)))
        _, by_transformer = sample["panel"]
        assert by_transformer == pytest.approx(rated(lab, sample), abs=1e-3)
        rating = [-values[t] for values in sample["panel"] for t, token in enumerate(tokens) if token != "<unk>"]
        assert measures["rating"] == (pytest.approx(sum(rating) / len(rating)) if rating else None)
        for n, name in ((2, "known_pairs"), (3, "known_triples")):
            grams = [" ".join(tokens[t : t + n]) for t in range(len(tokens) - n + 1)]
            known = [f" {gram} " in f" {' '.join(train_words)} " for gram in grams]
            assert measures[name] == pytest.approx(sum(known) / len(known))
        assert sample["ends_known_triple"] == [False, False, *known]
        assert measures["unk_share"] == tokens.count("<unk>") / len(tokens)
        assert measures["distinct_1"] == len(set(tokens)) / len(tokens)
        assert measures["longest_copy"] == len(measures["copied"])
        copied = " ".join(measures["copied"])
        assert f" {copied} " in f" {' '.join(train_words)} "
        assert f" {copied} " in f" {' '.join(tokens)} "
    assert len(held_out) == len(samples)
    assert all(0 <= piece["known_triples"] <= piece["known_pairs"] <= 1 for piece in held_out)
    assert all(piece["rating"] > 0 for piece in held_out)
    assert not any(piece["copied"] for piece in held_out), "no file has a text of the corpus"
    result = read_json(job.result_file) or {}
    assert result.pop("finished_at").endswith("+00:00")
    digests = {"checkpoint_sha256": sha256, "panel_sha256": panel_sha256}
    assert result == {"version": BEHAVIOUR_VERSION, **digests, "settings": settings, "unknown": [], "attempt": 1}
    worker = read_json(job.worker_file(1)) or {}
    assert (worker["pid"], worker["rank"], worker["ranks"]) == (os.getpid(), 0, 1)
    assert failure_of(job) is None

    stamp = run.behaviour_file.stat().st_mtime_ns
    assert main([str(job.path)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run.behaviour_file.stat().st_mtime_ns == stamp


def rated(lab: Lab, sample: dict[str, Any]) -> list[float]:
    """The log-probability of each token, from one whole window for each, with the Transformer's parameters."""
    run = lab.run("transformer-2")
    config = lab.configs["transformer-2"]
    checkpoint = load_checkpoint(run.best_checkpoint, config.fingerprint())
    model = build_model(config.model, len(checkpoint.vocabulary), SEQ_LEN)
    model.load_state_dict(checkpoint.model)
    model.double().eval()
    ids = [checkpoint.vocabulary.index(token) for token in [*sample["prompt"], *sample["tokens"]]]
    found = []
    for end in range(len(sample["prompt"]), len(ids)):
        logits, _ = model(torch.tensor(ids[:end][-SEQ_LEN:]).unsqueeze(1), model.initial_state(1))
        p = logits[-1, 0].exp() / logits[-1, 0].exp().sum()
        found.append(math.log(float(p[ids[end]].detach())))
    return found


def test_windows_of_the_training_length_give_the_loss_of_the_training(lab: Lab) -> None:
    job = lab.job("rnn-1", settings={"window": SEQ_LEN, "prompt": "the zebra", "samples": 1, "temperature": 0.5})
    assert main([str(job.path)]) == 0
    losses = (read_json(lab.run("rnn-1").behaviour_file) or {})["loss_per_step"]
    wanted = (lab.run("rnn-1").read_result() or Result()).best_val_loss
    assert sum(losses["carried_state"]) / SEQ_LEN == pytest.approx(wanted, rel=1e-6)
    assert losses["carried_state"] != losses["zero_state"]
    assert (read_json(job.result_file) or {})["unknown"] == ["zebra"]
    for line in lab.run("rnn-1").samples_file.read_text("utf-8").splitlines():
        sample = json.loads(line)
        assert sample["prompt"] == ["the", "<unk>"]
        assert sample["measures"]["rating"] is None
        assert sample["panel"] == []


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_checkpoint_that_cannot_be_used_is_a_failure_in_one_line(
    lab: Lab, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    best = lab.run("rnn-1").best_checkpoint
    if damage == "missing":
        best.unlink()
    elif damage == "cut":
        best.write_bytes(best.read_bytes()[:1000])
    else:
        best.write_bytes(lab.run("gru-3").best_checkpoint.read_bytes())
    job = lab.job("rnn-1")
    assert main([str(job.path)]) == 1
    failure = failure_of(job) or {}
    words = {"missing": "is missing", "cut": "is truncated", "foreign": "belongs to another run"}
    assert (failure["kind"], failure["attempt"]) == ("code", 1)
    assert words[damage] in failure["message"]
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not job.result_file.exists()
    assert not lab.run("rnn-1").behaviour_file.exists()


def test_a_run_trained_on_another_text_is_a_failure(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "other", seed=9)))
    job = lab.job("rnn-1")
    assert main([str(job.path)]) == 1
    assert "was trained on another text" in (failure_of(job) or {})["message"]


@pytest.mark.parametrize("fault", ["other-vocabulary", "missing"])
def test_a_member_of_the_panel_that_cannot_rate_the_samples_is_left_out(
    lab: Lab, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "other-vocabulary":
        other = write_text(tmp_path / "other")
        path = other / "train.txt"
        path.write_text(path.read_text() + "zebra\n")
        shutil.rmtree(lab.run("gru-3").path)
        train(lab, "gru-3", other)
    else:
        shutil.rmtree(lab.run("gru-3").path)
    job = lab.job("rnn-1", panel=["gru-3", "rnn-1"], settings={"samples": 1})
    assert main([str(job.path)]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: gru-3 ")
    assert ("another vocabulary than rnn-1" if fault == "other-vocabulary" else "does not exist") in warning
    panel = (read_json(lab.run("rnn-1").behaviour_file) or {})["panel"]
    assert [member["id"] for member in panel] == ["rnn-1"]
    file = lab.run("gru-3").best_checkpoint
    there = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    own = hashlib.sha256(lab.run("rnn-1").best_checkpoint.read_bytes()).hexdigest()
    recorded = (read_json(job.result_file) or {})["panel_sha256"]
    assert recorded == [there, own], "so that it is not computed again and again"
    (first, *_) = map(json.loads, lab.run("rnn-1").samples_file.read_text("utf-8").splitlines())
    assert first["panel"] == [first["log_prob"]], "a run that rates its own samples"


def test_a_job_computes_in_float32_whatever_shortcuts_libraries_take_by_default(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own model may have layers of cuDNN."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert main([str(lab.job("rnn-1", settings={"samples": 1, "lengths": [2]}).path)]) == 0
    assert not torch.backends.cudnn.allow_tf32


def test_a_second_worker_refuses(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    job = lab.job("rnn-1")
    with owned(job):
        assert main([str(job.path)]) == 75
    assert "rnn-1 already has a live worker (pid" in capsys.readouterr().err
    assert failure_of(job) is None


def test_what_is_no_job_is_refused_before_anything_is_written(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 2
    assert main([str(lab.study)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
    job = lab.job("rnn-1", settings={"window": 0})
    assert main([str(job.path)]) == 2
    assert "settings.window: expected" in capsys.readouterr().err
    write_json(job.path / "task.json", {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(job.path)]) == 2
    assert "WORLD_SIZE: expected 1 (behaviour is computed by one process), got 2" in capsys.readouterr().err
    assert {path.name for path in job.path.iterdir()} == {"config.json", "task.json"}


@pytest.mark.process
def test_sigterm_stops_between_two_pieces_of_work(lab: Lab) -> None:
    job = lab.job("rnn-1", settings={"samples": 100_000, "lengths": [50]})
    process = commands.start([sys.executable, "-m", "analysis.behaviour", job.path])
    try:
        wait_for(
            lambda: (job.worker_file(1).exists(), process.poll()),
            "the worker to begin",
            until=lambda seen: seen[0] or seen[1] is not None,
        )
        assert process.poll() is None
        process.terminate()
        _, error = commands.finish(process)
    finally:
        process.kill()
        commands.finish(process)
    assert process.returncode == 143
    assert error == "stopped; run again to resume\n"
    assert failure_of(job) is None
    assert not job.result_file.exists()
    assert not lab.run("rnn-1").samples_file.exists()
