from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from seqlm.data.corpus import load_corpus
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint, save_checkpoint
from tests.outcome import outcome
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text


def test_one_bit_of_one_weight_is_a_difference_and_the_day_is_none(tmp_path: Path) -> None:
    config = make_config(optimizer="adam", lr=0.01, epochs=1)
    run = make_run(tmp_path / "run", config)
    corpus = load_corpus(config.data, write_text(tmp_path / "text"))
    Attempt(run, corpus).train()
    shutil.copytree(run.path, tmp_path / "copy")
    copy = RunDirectory(tmp_path / "copy")

    (epoch,) = copy.read_metrics()[0]
    copy.metrics_file.write_text(json.dumps({**epoch, "attempt": 7, "epoch_seconds": 1e3}) + "\n")
    assert outcome(run).differences(outcome(copy)) == []

    checkpoint = load_checkpoint(copy.last_checkpoint, config.fingerprint())
    name, weight = next(iter(checkpoint.model.items()))
    weight.flatten().view(torch.int32)[0] ^= 1
    save_checkpoint(copy.last_checkpoint, dataclasses.replace(checkpoint))
    assert outcome(run).differences(outcome(copy)) == [f"last.pt model {name}"]

    copy.metrics_file.write_text(json.dumps({**epoch, "val_loss": epoch["val_loss"] + 1e-12}) + "\n")
    assert "metrics.jsonl" in outcome(run).differences(outcome(copy))
