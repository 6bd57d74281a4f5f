"""Small texts, configurations and run directories for the tests of training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from seqlm.config import RunConfig
from seqlm.data.corpus import Corpus
from seqlm.records.runs import Provenance, Result
from seqlm.rundir import RunDirectory
from seqlm.training import attempt as attempts
from seqlm.training.distributed import Rank
from seqlm.training.train import train
from seqlm.training.trainer import Trainer

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "house", "and", "then", "it", "saw", "<unk>", "N"]


def write_text(folder: Path, *, train_lines: int = 220, seed: int = 0) -> Path:
    """A folder with {train,valid,test}.txt: random sentences of a small vocabulary, all of it in train."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for split, lines in (("train", train_lines), ("valid", 60), ("test", 60)):
        sentences = [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(lines)]
        (folder / f"{split}.txt").write_text("\n".join([" ".join(WORDS), *sentences]) + "\n", "utf-8")
    return folder


def make_config(
    arch: str = "rnn",
    *,
    optimizer: str = "sgd",
    lr: float = 0.5,
    optim: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunConfig:
    """A tiny run; ``changes`` such as ``keep=1.0`` or ``epochs=3`` go to the section that has the key.

    ``optim`` has further keys of the optimizer.
    """
    model: dict[str, Any] = {"arch": arch, "hidden_size": 16, "num_layers": 2, "keep": 1.0}
    if arch == "transformer":
        model.update(num_heads=4, mlp_size=32, attention_keep=1.0)
    else:
        model.update(embedding_size=12)
    train: dict[str, Any] = {"epochs": 2, "batch_size": 8, "seq_len": 5, "clip_norm": 0.25, "precision": "fp32"}
    top: dict[str, Any] = {}
    for key, value in changes.items():
        section = top if key in ("seed", "eval") else train if key in train else model
        section[key] = value
    sections = {
        "model": model,
        "data": {"corpus": "files"},
        "optim": {"optimizer": optimizer, "lr": lr, **(optim or {})},
        "train": train,
    }
    return RunConfig.from_dict({**sections, **top})


def make_run(folder: Path, config: RunConfig) -> RunDirectory:
    """A run directory as a launcher would make it."""
    run = RunDirectory(folder)
    run.create(config, Provenance(name=folder.name))
    return run


def runs_in(study_dir: Path) -> list[RunDirectory]:
    """Every run directory of a study, in the order of its manifest."""
    return sorted(RunDirectory.unordered_in(study_dir), key=lambda run: run.place(run.read_provenance()))


class Attempt:
    """An attempt at a run, put together as the worker does it."""

    def __init__(
        self, run: RunDirectory, corpus: Corpus, *, attempt: int | None = None, rank: Rank | None = None, **options: Any
    ) -> None:
        self.run = run
        number = attempt or run.last_attempt() + 1
        self.made = attempts.Attempt(run=run, rank=rank or Rank(), number=number)
        self.stop = self.made.stop
        self.trainer = Trainer(
            run.read_config(), corpus, rank=self.made.rank, attempt=number, model_dir=run.model_dir, **options
        )

    def train(self) -> Result:
        return train(self.trainer, self.made)

    def before_each_step(self, look: Callable[[int], object]) -> Attempt:
        """Call ``look`` before each step with its number, counted from 1 in this process."""
        take, numbers = self.trainer.take_step, itertools.count(1)

        def step(*arguments: Any) -> Any:
            look(next(numbers))
            return take(*arguments)

        self.trainer.take_step = Mock(wraps=take, side_effect=step)
        return self

    def stop_after(self, steps: int) -> Attempt:
        """Have the attempt receive a stop request in a step."""
        return self.before_each_step(lambda number: number == steps and self.stop.request())
