"""One run of a study, for notebooks and scripts: its configuration, metrics, checkpoint and trained model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.reading import is_file
from seqlm.rundir import RunDirectory
from seqlm.trust import distrusted, of_run

if TYPE_CHECKING:
    from seqlm.models import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Text that a trained model has written. ``str`` returns the prompt and the text."""

    prompt: str
    """The prompt as the model read it."""
    text: str
    """What the model wrote after it."""
    unknown: list[str]
    """Words of the prompt that are not in the vocabulary, each once; of characters, characters."""

    def __str__(self) -> str:
        return f"{self.prompt}{self.text}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run of a study."""

    number: int
    """Its place in the manifest, from 1."""
    id: str
    """Name of its folder."""
    name: str
    """Its name in the manifest."""
    state: str
    """``done``, ``running``, ``queued``, ``pending``, ``stopped``, ``cancelled`` or ``failed``."""
    directory: Path
    """Its folder."""
    metrics: pd.DataFrame
    """One row for each finished epoch; the columns of ``Study.epochs`` without ``id`` and ``number``."""

    @cached_property
    def config(self) -> RunConfig:
        """The configuration.

        >>> study.run("gru-adam").config.optim.lr
        0.003

        Raises:
            FileError: ``config.json`` cannot be read.
        """
        return RunDirectory(self.directory).read_config()

    @property
    def checkpoint(self) -> Path | None:
        """File with the best epoch's parameters; ``None`` without one."""
        path = RunDirectory(self.directory).best_checkpoint
        return path if is_file(path) else None

    def load_model(self, *, trust: bool = False) -> LanguageModel:
        """Load the best epoch's model: on the CPU, in float32, without dropout.

        Args:
            trust: run the file of a user's own model, of a run that you did not launch. Read it first.

        >>> model = study.run("gru-adam").load_model()
        >>> sum(parameter.numel() for parameter in model.parameters())
        986

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another run.
            FileError: a file of the run cannot be read.
            UsageError: the run has a user's own model, and you have not launched this run.
        """
        from seqlm.training.checkpoint import load_checkpoint, trained_model

        model = self.config.model
        place = f"{self.directory.parent}/{self.name}"
        if not trust and (why := distrusted(of_run(self.config, place))):
            raise UsageError(f"{why}; read it, then use load_model(trust=True), or --trust on the command line")
        path = RunDirectory(self.directory).best_checkpoint
        checkpoint = load_checkpoint(path, self.config.fingerprint())
        folder = RunDirectory(self.directory).model_dir
        return trained_model(path, checkpoint, model, self.config.train.seq_len, folder)

    def load_vocabulary(self) -> list[str]:
        """Load the token of each id from the checkpoint.

        >>> study.run("gru-adam").load_vocabulary()[:3]
        ['the', 'a', '<unk>']

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another run.
            FileError: a file of the run cannot be read.
        """
        from seqlm.training.checkpoint import load_checkpoint

        path = RunDirectory(self.directory).best_checkpoint
        return load_checkpoint(path, self.config.fingerprint()).vocabulary

    def generate(
        self, prompt: str, *, tokens: int = 50, temperature: float = 1.0, seed: int = 1, trust: bool = False
    ) -> Generated:
        """Let the best epoch's model continue a text.

        Args:
            prompt: one word or several; a line's end is one for the model. Unknown words become ``<unk>``.
            tokens: how many to write.
            temperature: divides the logits; below 1, likelier tokens become likelier still.
            seed: equal arguments give the same text.
            trust: as for :meth:`load_model`.

        >>> text = study.run("gru-adam").generate("the zebra", tokens=3)
        >>> text.prompt, text.unknown
        ('the <unk>', ['zebra'])

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another run.
            ConfigError: an argument is out of range.
            DataError: no token is in the prompt, or an unknown one and the vocabulary has no ``<unk>``.
            DivergedError: the model's predictions are not finite numbers.
            FileError: a file of the run cannot be read.
        """
        from analysis.behaviour.sampling import draw_samples, prompt_ids
        from analysis.behaviour.task import settings_from
        from analysis.study.units import plain_text
        from seqlm.data.tokenizer import Tokenizer

        model, vocabulary, data = self.load_model(trust=trust), self.load_vocabulary(), self.config.data
        wanted = {"samples": 1, "lengths": [tokens], "temperature": temperature, "seed": seed}
        settings = settings_from(wanted, self.config)
        assert data.level is not None, "DataConfig fills it in"
        tokenizer = None
        if data.tokenizer is not None:
            tokenizer = Tokenizer(RunDirectory(self.directory).tokenizer_file, data.tokenizer_sha256)
        ids, unknown = prompt_ids(prompt, vocabulary, data.level, tokenizer)
        (drawn,) = draw_samples(model, settings, ids)
        whole = [*ids, *drawn.text.tokens]
        words = tokenizer.pieces(whole) if tokenizer else [vocabulary[number] for number in whole]
        read = plain_text(words[: len(ids)], data.level)
        return Generated(prompt=read, text=plain_text(words, data.level).removeprefix(read), unknown=unknown)
