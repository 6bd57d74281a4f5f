"""The records a launcher handles: a run to train, and the submission handed to a backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from seqlm.config import RunConfig
from seqlm.model_files import ModelFiles
from seqlm.resources import Resources


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a study, as expanded from a manifest."""

    name: str
    """The run's name in the manifest, unique in the study."""
    config: RunConfig
    resources: Resources = field(default_factory=Resources)
    order: int = 0
    """Position in the manifest, from 0."""
    data_path: Path | None = None
    """Where its corpus is. ``None``: the default place."""
    tokenizer: Path | None = None
    """Where its tokenizer file is. ``None``: it has no tokenizer."""
    model_files: ModelFiles | None = None
    """The files of the user's own model. ``None``: an architecture of seqlm's."""
    command: Sequence[str] = ()
    """The command line that launches this run alone."""
    entry: str = ""
    """The run's name in the manifest before ``--set``."""
    first_seed: int | None = None
    """Of a final seed (``[search] final_seeds``): the seed of the run that it follows, whose setting is the same.
    ``None``: it follows no run."""

    turn: int = 0
    """Of a run of a ``[[decide]]``: the place of its seed, from 0. Runs of earlier seeds start first."""

    panel: tuple[RunConfig, ...] = ()
    """Of a behaviour job: the configurations of the models that rate the texts."""
    launched: tuple[str, ...] = ()
    """Fingerprints of the configurations whose models its worker may run, as the launch had them. Empty: those of
    :attr:`config` and :attr:`panel`."""

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint()

    def may_run(self) -> tuple[str, ...]:
        """Return the fingerprints of the configurations whose models its worker may run."""
        return self.launched or tuple(config.fingerprint() for config in self.configs())

    def first_fingerprint(self) -> str | None:
        """Return the fingerprint of the run that it follows. ``None``: it follows none."""
        return None if self.first_seed is None else replace(self.config, seed=self.first_seed).fingerprint()

    def configs(self) -> list[RunConfig]:
        """Return its configuration, and those of its panel."""
        return [self.config, *self.panel]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One attempt at one run, in the form every backend starts: a command line, an environment and a path.

    Nothing is pickled: running the same command on the same folder resumes the run.
    """

    run_dir: Path
    attempt: int
    """Number of the attempt, from 1."""
    argv: tuple[str, ...]
    """The worker's command line, the same on every rank."""
    env: Mapping[str, str]
    """Environment variables added to the worker's environment."""
    cwd: Path
    """The folder of the code that the worker runs: the copy kept with the study, or the working tree."""
    resources: Resources

    def holding(self, gpus: float) -> Self:
        """Return it for ranks that each hold so much of a GPU.

        It may be more than :attr:`resources` ask for at least: a small GPU has the memory that a run needs in a larger
        part than a large one.
        """
        return replace(self, resources=replace(self.resources, gpus=gpus))
