"""A run's model as its best epoch left it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from seqlm.config import RunConfig
from seqlm.errors import CheckpointError
from seqlm.models import LanguageModel, build_model
from seqlm.rundir import RunDirectory, file_sha256
from seqlm.training.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ``best.pt`` of a run holds, without the state of the optimizer."""

    run: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    sha256: str
    """Digest of the file."""

    @property
    def name(self) -> str:
        """What the manifest calls the run."""
        return str(self.run.read_provenance().get("name") or self.run.id)

    @property
    def best_epoch(self) -> int:
        """The epoch of these parameters, from 0."""
        return int(self.checkpoint.history[-1]["epoch"])

    def model(self, implementation: Literal["fused", "reference"], device: torch.device) -> LanguageModel:
        """The model, dropout off and products in float32, whatever precision it was trained in.

        Raises:
            CheckpointError: the checkpoint's parameters are not those of this model.
        """
        config = dataclasses.replace(self.config.model, implementation=implementation)
        model = build_model(config, len(self.checkpoint.vocabulary), self.config.train.seq_len)
        try:
            model.load_state_dict(self.checkpoint.model)
        except RuntimeError:
            raise CheckpointError(f"{self.run.best_checkpoint} does not hold the parameters of its model") from None
        return model.to(device).eval()


def load_trained(run: RunDirectory) -> Trained:
    """Read ``best.pt`` of a finished run.

    Raises:
        CheckpointError: it is missing, damaged, or of another run.
        FileError: a file of the run cannot be read.
    """
    if not run.path.is_dir():
        raise CheckpointError(f"{run.path} does not exist; valid is a finished run of this study")
    config = run.read_config()
    checkpoint = load_checkpoint(run.best_checkpoint, config.fingerprint())
    sha256 = file_sha256(run.best_checkpoint)
    if sha256 is None:
        raise CheckpointError(f"{run.best_checkpoint} has vanished while it was read")
    slim: dict[str, Any] = {"optimizer": {}}
    return Trained(
        run=run,
        config=config,
        checkpoint=dataclasses.replace(checkpoint, **slim),
        sha256=sha256,
    )
