"""A factorial grid of finished runs with losses that a test chooses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.analysis.hand_made import add_run

Loss = Callable[[dict[str, Any]], float]


def make_grid(study_dir: Path, axes: dict[str, Iterable[Any]], loss_nats: Loss) -> Path:
    """A run of one epoch for every combination of the values, with ``loss_nats`` of it as its validation loss."""
    for order, values in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        keys = {"arch": "gru", "optimizer": "sgd", "num_layers": 2, "keep": 0.5, "batch_size": 20}
        keys |= {key.rpartition(".")[2]: value for key, value in chosen.items()}
        add_run(study_dir, order, f"r{order}", val=[math.exp(loss_nats(chosen))], **keys)
    return study_dir
