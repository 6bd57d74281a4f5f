"""The made-up studies of the examples in docs/reference/python.md and of the notebook. One run has a small model."""

from pathlib import Path
from typing import Any

import torch

from seqlm.files import file_sha256
from seqlm.models import build_model
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import Checkpoint, Position, save_checkpoint
from tests.analysis.attempt_files import write_attempt
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.hand_made import add_run

CARD = "NVIDIA H100 80GB HBM3"
VOCABULARY = ["the", "a", "<unk>", "cat", "dog", "sat", "ran", "on", "mat", "<eos>"]


def make_examples(runs_dir: Path, name: str = "optimizers") -> Path:
    """Make seven runs: five done, two of them seeds of one setting; one diverged, one waiting. Return their folder."""
    study = runs_dir / name

    def add(order: int, run: str, arch: str, optimizer: str, val: list[float], lr: float, **more: Any) -> RunDirectory:
        return add_run(study, order, run, arch, optimizer, val, lr=lr, provenance={"study": name}, **more)

    gru = add(3, "gru-adam", "gru", "adam", [220.0, 130.0, 110.0], 0.003, seconds=12.0, hidden_size=8, embedding_size=8)
    runs = [
        add(0, "rnn-adam", "rnn", "adam", [300.0, 190.0, 150.0], 0.001, seconds=5.0),
        add(1, "rnn-adam-wide", "rnn", "adam", [280.0, 180.0, 140.0], 0.001, seconds=6.0, hidden_size=96),
        add(2, "gru-sgd", "gru", "sgd", [400.0], 10.0, failure="diverged", epochs=3),
        gru,
        add(4, "transformer-seed1", "transformer", "adam", [180.0, 128.0, 120.0], 0.001, seconds=4.0, seed=1),
        add(5, "transformer-seed2", "transformer", "adam", [180.0, 132.0, 124.0], 0.001, seconds=4.0, seed=2),
        add(6, "gru-schedule", "gru", "sgd_schedule", [250.0], 10.0, done=False, epochs=3),
    ]
    for place, run in enumerate(runs):
        start = 60.0 * (place // 2)  # on one of two GPUs, a minute after the one before
        write_attempt(run, 1, start=start, end=start + 45, hosts=("node01",), gpus=(str(place % 2),), device=CARD)
    _add_checkpoint(gru)
    add_behaviour(gru, checkpoint_sha256=file_sha256(gru.best_checkpoint))
    add_samples(gru, [raw_sample(0, ["cat", "sat"]), raw_sample(1, ["dog", "ran", "on", "the"])])
    return study


def make_widths(runs_dir: Path) -> Path:
    """Two finished runs of another study."""
    study = runs_dir / "widths"
    for order, size in enumerate((32, 128)):
        name = f"rnn-h{size}"
        add_run(
            study, order, name, "rnn", "adam", [300.0, 200.0 - size], hidden_size=size, provenance={"study": "widths"}
        )
    return study


def _add_checkpoint(run: RunDirectory) -> None:
    config = run.read_config()
    model = build_model(config.model, len(VOCABULARY), config.train.seq_len)
    history, _ = run.read_metrics()
    checkpoint = Checkpoint(
        fingerprint=config.fingerprint(),
        corpus_sha256="ab" * 32,
        vocabulary=VOCABULARY,
        model=dict(model.state_dict()),
        optimizer=None,
        history=history,
        position=Position(epoch=3),
    )
    run.best_checkpoint.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save_checkpoint(run.best_checkpoint, checkpoint)
