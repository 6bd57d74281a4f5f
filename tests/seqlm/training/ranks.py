"""One rank of a gloo group, for the tests of DistributedDataParallel.

Usage: ``python -m tests.seqlm.training.ranks RUN_FOLDER...``.

For each run, takes three steps with the trainer's own step and writes the losses, the validation loss, the carried
state and the gradients of the first step into the run's folder; once for each number in ``MICRO_BATCHES`` (``1,2``).
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from seqlm.data.batches import windows
from seqlm.data.corpus import load_corpus
from seqlm.rundir import RunDirectory
from seqlm.training.distributed import Rank, process_group, rank_from_environment, run_program
from seqlm.training.step import StepResults
from seqlm.training.trainer import Trainer

STEPS = 3


def take_steps(folder: Path, text: Path, rank: Rank, micro_batches: int = 1) -> dict[str, Any]:
    """What three steps of this rank gave, in float64, so that only a wrong weighting can make a difference."""
    run = RunDirectory(folder)
    config = run.read_config()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        corpus = load_corpus(config.data, text)
        trainer = Trainer(config, corpus, rank=rank, micro_batches=micro_batches, model_dir=run.model_dir)
    finally:
        torch.set_default_dtype(before)
    gradients: dict[str, Tensor] = {}
    total_norm = nn.utils.get_total_norm

    def record(tensors: Any) -> Tensor:
        if not gradients:  # after the reduction over ranks, before clipping
            scale = trainer.take_step.scale
            gradients.update(
                {name: scale * p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
            )
        return total_norm(tensors)

    state, results = trainer.model.initial_state(trainer.columns.shape[1]), []
    reader = StepResults(rank)
    with mock.patch.object(nn.utils, "get_total_norm", record):
        for number, (inputs, targets) in zip(range(STEPS), windows(trainer.columns, 5), strict=False):
            trainer.set_step(0, number)
            result = trainer.take_step(inputs, targets, state)
            state = result.state
            reader.add(result)
            results += reader.read()[0]
    valid = trainer.evaluate("valid")
    losses = trainer.token_losses(corpus.splits["valid"])
    return {
        "results": results,
        "gradients": gradients,
        "valid": [valid.loss_nats, valid.tokens],
        "losses": losses,
        "state": state,
    }


def steps_file(folder: Path, world_size: int, rank: int, micro_batches: int = 1) -> Path:
    """Where a rank has left what its steps gave."""
    return folder / f"steps-{world_size}-{rank}-{micro_batches}.pt"


def main() -> int:
    """Take the steps of this rank on each run of the command line; returns the exit code."""
    this = rank_from_environment(os.environ)
    with process_group(this):
        for name in sys.argv[1:]:
            for parts in map(int, os.environ.get("MICRO_BATCHES", "1").split(",")):
                steps = take_steps(Path(name), Path(os.environ["SEQLM_DATA"]), this, parts)
                torch.save(steps, steps_file(Path(name), this.world_size, this.index, parts))
    return 0


if __name__ == "__main__":
    run_program(main)
