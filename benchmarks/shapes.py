"""The shapes that are measured: those of the published runs, small ones, and tiny ones for a trial."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jobs
from jobs.manifests.load import load_manifest
from seqlm.architectures import BuiltInConfig, CustomConfig, RecurrentConfig, TransformerConfig
from seqlm.config import DataConfig, RunConfig, TrainConfig
from seqlm.errors import UsageError, nearest
from seqlm.optimizers import AdamConfig

PUBLISHED_MANIFEST = Path(jobs.__file__).parent / "manifests" / "paper.toml"

GROUPS = {
    "published": "every distinct shape of the published runs",
    "small": "five small ones",
    "all": "published and small",
    "tiny": "three that take a moment, to see that the benchmark works; their figures mean nothing",
}


def built_in(config: RunConfig) -> BuiltInConfig:
    """Return the model of a run whose architecture comes with seqlm."""
    assert not isinstance(config.model, CustomConfig), "every shape is of one of seqlm's models"
    return config.model


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides the cost of a training step."""

    config: RunConfig
    """Model, optimizer, batch and window; of the first run where several have the shape."""
    runs: tuple[int, ...] = ()
    """Numbers of the published runs that have it, from 1."""
    vocab_size: int = 10_000
    cube: int = 2048
    """Side of the cubic product among those that show the machine's peak."""

    @property
    def name(self) -> str:
        model = built_in(self.config)
        return f"{model.arch}-{model.num_layers}x{model.hidden_size}-b{self.config.train.batch_size}"

    @property
    def tokens(self) -> int:
        """Predicted tokens of a step."""
        return self.config.train.batch_size * self.config.train.seq_len

    def shrunk(self) -> Shape:
        """A copy of next to no size, with the same architecture and optimizer."""
        model: BuiltInConfig
        match built_in(self.config):
            case RecurrentConfig() as recurrent:
                model = replace(recurrent, hidden_size=16, embedding_size=16)
            case TransformerConfig() as transformer:
                model = replace(transformer, hidden_size=2 * transformer.num_heads, mlp_size=16)
            case _:
                raise ValueError(f"{self.config.model.arch} is no architecture of the published study")
        train = replace(self.config.train, batch_size=2, seq_len=2)
        return replace(self, config=replace(self.config, model=model, train=train), vocab_size=16)


@functools.cache
def published() -> tuple[Shape, ...]:
    """One for each architecture, width, depth and batch of the study's manifest, in its order."""
    found: dict[str, Shape] = {}
    for number, run in enumerate(load_manifest(PUBLISHED_MANIFEST).runs, start=1):
        shape = Shape(config=run.config)
        first = found.setdefault(shape.name, shape)
        found[shape.name] = replace(first, runs=(*first.runs, number))
    return tuple(found.values())


def small() -> tuple[Shape, ...]:
    """Sizes at which overheads weigh more than arithmetic."""
    models: list[BuiltInConfig] = [
        RecurrentConfig(arch="rnn", hidden_size=200),
        RecurrentConfig(arch="gru", hidden_size=200),
        RecurrentConfig(arch="rnn", hidden_size=256),
        RecurrentConfig(arch="gru", hidden_size=256),
        TransformerConfig(arch="transformer", hidden_size=256),
    ]
    return tuple(Shape(config=_with_adam(model, TrainConfig(batch_size=20))) for model in models)


def tiny() -> tuple[Shape, ...]:
    """Sizes for a trial of the benchmark itself."""
    models: list[BuiltInConfig] = [
        RecurrentConfig(arch="rnn", hidden_size=16, embedding_size=8),
        RecurrentConfig(arch="gru", hidden_size=16, embedding_size=8),
        TransformerConfig(arch="transformer", hidden_size=16, num_heads=2, mlp_size=32),
    ]
    train = TrainConfig(batch_size=4, seq_len=5)
    return tuple(Shape(config=_with_adam(model, train), vocab_size=50, cube=32) for model in models)


def _with_adam(model: BuiltInConfig, train: TrainConfig) -> RunConfig:
    optim = AdamConfig(optimizer="adam", lr=1e-4)
    return RunConfig(model=model, data=DataConfig(corpus="ptb"), optim=optim, train=train)


def by_name() -> dict[str, Shape]:
    """Every shape by its name."""
    return {shape.name: shape for shape in (*published(), *small(), *tiny())}


def select(names: Sequence[str]) -> list[Shape]:
    """The shapes that groups and names stand for, none twice.

    Raises:
        UsageError: one of them is no group and no shape.
    """
    groups = {"published": published(), "small": small(), "all": (*published(), *small()), "tiny": tiny()}
    shapes = by_name()
    chosen: dict[str, Shape] = {}
    for name in names:
        if name not in groups and name not in shapes:
            valid = [*groups, *shapes]
            hint = nearest(name, valid) or f"; expected one of {', '.join(valid)}"
            raise UsageError(f'--shapes: unknown shape "{name}"{hint}')
        for shape in groups[name] if name in groups else (shapes[name],):
            chosen.setdefault(shape.name, shape)
    return list(chosen.values())
