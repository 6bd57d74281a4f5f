"""A factorial grid of finished runs with losses that a test chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.synthetic import make_epochs, make_provenance, make_result

Loss = Callable[[dict[str, Any]], float]


def make_grid(study_dir: Path, axes: dict[str, Iterable[Any]], loss_nats: Loss) -> Path:
    """A run of one epoch for every combination of the values, with ``loss_nats`` of it as its validation loss."""
    base: dict[str, Any] = {
        "model": {"hidden_size": 64, "num_layers": 2, "keep": 0.5},
        "data": {"corpus": "ptb"},
        "train": {"epochs": 1, "batch_size": 20},
    }
    for order, values in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        raw: dict[str, Any] = {section: dict(content) for section, content in base.items()}
        for key, value in {"model.arch": "gru", "optim.optimizer": "sgd", "optim.lr": 0.1, **chosen}.items():
            section, _, name = key.rpartition(".")
            (raw.setdefault(section, {}) if section else raw)[name] = value
        config = RunConfig.from_dict(raw)
        run = RunDirectory.locate(study_dir, f"r{order}", config.fingerprint())
        run.create(config, make_provenance(f"r{order}", order))
        run.attempt_dir(1).mkdir(parents=True)
        loss = loss_nats(chosen)
        (record,) = make_epochs("r", math.exp(loss), math.exp(loss), 50.0, 10.0, 0.1, 1)
        record |= {"val_loss": loss, "val_ppl": math.exp(loss)}
        write_json_lines(run.metrics_file, [record])
        write_json(run.result_file, make_result([record]))
    return study_dir
