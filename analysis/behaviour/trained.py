"""The trained model of a run of the study."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch

from seqlm.config import RunConfig
from seqlm.errors import CheckpointError
from seqlm.files import file_sha256
from seqlm.models import LanguageModel
from seqlm.reading import is_folder
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, trained_model
from seqlm.trust import require_launched


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ``best.pt`` of a run holds, without the state of the optimizer."""

    run: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    sha256: str
    """Digest of the file."""

    @classmethod
    def load(cls, run: RunDirectory) -> Self:
        """Read the files of a finished run.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another run.
            FileError: a file of the run cannot be read.
        """
        if not is_folder(run.path):
            raise CheckpointError(f"{run.path} does not exist; expected a finished run of this study")
        config = run.read_config()
        require_launched(config)
        checkpoint = dataclasses.replace(load_checkpoint(run.best_checkpoint, config.fingerprint()), optimizer=None)
        sha256 = file_sha256(run.best_checkpoint)
        if sha256 is None:
            raise CheckpointError(f"{run.best_checkpoint} has vanished while it was read")
        return cls(run=run, config=config, checkpoint=checkpoint, sha256=sha256)

    def model(self, device: torch.device) -> LanguageModel:
        """The model, dropout off and products in float32, whatever precision it was trained in.

        Raises:
            CheckpointError: the checkpoint's parameters are not those of this model.
        """
        path, config = self.run.best_checkpoint, self.config
        return trained_model(path, self.checkpoint, config.model, config.train.seq_len, self.run.model_dir).to(device)
