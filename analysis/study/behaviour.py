"""How the model of a run behaves, with arrays in place of the lists of ``behaviour.json`` and ``samples.jsonl``.

:mod:`analysis.behaviour` computes and writes it, the report reads it. What cannot be used is left out, with a warning.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from analysis.study.values import Values, clean, read_or_warn
from seqlm.errors import DamagedFileError, FileError
from seqlm.files import file_sha256, read_json_lines
from seqlm.records.behaviour import (
    BehaviourFile,
    BehaviourSettings,
    GradientNormsPart,
    Judge,
    MeasuresPart,
    Numbers,
    SampleLine,
    StepLossesPart,
)
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLosses:
    """Mean of -log p(target) at each step of a window, in nats, over all windows and columns of the validation text."""

    window: int
    """Tokens of a window."""
    windows: int
    """Windows of each column."""
    columns: int
    zero_state: Values
    """With the state zero at the start of each window."""
    carried_state: Values
    """With the state that the window before has left; zero before the first."""

    @classmethod
    def of(cls, part: StepLossesPart) -> Self:
        """Return what a file has. Raises ``ValueError``: the lists differ in length."""
        zero, carried = _arrays("loss_per_step", part.zero_state, part.carried_state)
        return cls(
            window=part.window, windows=part.windows, columns=part.columns, zero_state=zero, carried_state=carried
        )

    def to_part(self) -> StepLossesPart:
        """Return the part of the file."""
        return StepLossesPart(
            window=self.window,
            windows=self.windows,
            columns=self.columns,
            zero_state=_plain(self.zero_state),
            carried_state=_plain(self.carried_state),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNorms:
    """Euclidean norms at each time step of the gradient of the last step's loss, over the sequences of a minibatch."""

    window: int
    columns: int
    """Sequences of the minibatch."""
    overall: Values
    """Norm of the mean over the sequences, of the gradients of all layers side by side. In it, gradients of different
    sequences cancel, so it shrinks with their number."""
    mean_of_norms: Values
    """Mean over the sequences of the norm of each one's own gradient, of all layers side by side."""
    layers: Values
    """As ``overall``, of each layer or block (the first axis), the lowest first."""

    @classmethod
    def of(cls, part: GradientNormsPart) -> Self:
        """Return what a file has. Raises ``ValueError``: the lists differ in length."""
        overall, mean, *layers = _arrays("gradient_norms", part.overall, part.mean_of_norms, *part.layers)
        return cls(
            window=part.window, columns=part.columns, overall=overall, mean_of_norms=mean, layers=np.array(layers)
        )

    def to_part(self) -> GradientNormsPart:
        """Return the part of the file."""
        return GradientNormsPart(
            window=self.window,
            columns=self.columns,
            overall=_plain(self.overall),
            mean_of_norms=_plain(self.mean_of_norms),
            layers=tuple(_plain(layer) for layer in self.layers),
        )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What can be counted in the tokens that a model has drawn. A number that is not known is NaN."""

    perplexity_own: float
    perplexity_other: float
    """Under the judge; NaN without one."""
    repetition: float
    """Share of the tokens that occur among the 16 before them."""
    distinct_1: float
    """Distinct n-grams divided by n-grams, here for n = 1."""
    distinct_2: float
    distinct_3: float
    unk_share: float
    longest_copy: int
    """Tokens of the longest passage without ``<unk>`` that occurs in the training text."""
    copied: Sequence[str]
    """That passage."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A text that a model has written. The fields are those of :class:`seqlm.records.behaviour.SampleLine`."""

    index: int
    length: int
    prompt: Sequence[str]
    tokens: Sequence[str]
    entropy: Values
    log_prob: Values
    measures: Measures

    @classmethod
    def of(cls, line: SampleLine) -> Self:
        """Return what a line of the file has. Raises ``ValueError``: the lists differ in length."""
        entropy, log_prob, _ = _arrays(
            "entropy, log_prob and tokens", line.entropy, line.log_prob, (0.0,) * len(line.tokens)
        )
        known: dict[str, Any] = dict(vars(line.measures))
        known |= {name: math.nan for name, value in known.items() if value is None}
        known["copied"] = list(line.measures.copied)
        return cls(
            index=line.index,
            length=line.length,
            prompt=list(line.prompt),
            tokens=list(line.tokens),
            entropy=entropy,
            log_prob=log_prob,
            measures=Measures(**known),
        )

    def to_line(self) -> SampleLine:
        """Return the line of the file."""
        known: dict[str, Any] = dict(vars(self.measures))
        known |= {name: _number(value) for name, value in known.items() if isinstance(value, float)}
        known["copied"] = tuple(self.measures.copied)
        return SampleLine(
            index=self.index,
            length=self.length,
            prompt=tuple(self.prompt),
            tokens=tuple(self.tokens),
            entropy=_plain(self.entropy),
            log_prob=_plain(self.log_prob),
            measures=MeasuresPart(**known),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """How one run's model behaves. The fields are those of :class:`seqlm.records.behaviour.BehaviourFile`."""

    checkpoint_sha256: str
    best_epoch: int
    judge: Judge | None
    settings: BehaviourSettings
    device: str
    seconds: float
    seq_len: int
    level: str
    corpus: str
    loss_per_step: StepLosses
    gradient_norms: GradientNorms | None
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, file: BehaviourFile) -> Self:
        """Return what a file has, without samples. Raises ``ValueError``: it is of another version, or damaged."""
        if file.version != BEHAVIOUR_VERSION:
            raise ValueError(f"version: expected {BEHAVIOUR_VERSION}, got {file.version}")
        return cls(
            checkpoint_sha256=file.checkpoint_sha256,
            best_epoch=file.best_epoch,
            judge=None if file.judge is None else replace(file.judge, name=clean(file.judge.name)),
            settings=file.settings,
            device=clean(file.device),
            seconds=math.nan if file.seconds is None else file.seconds,
            seq_len=file.seq_len,
            level=file.level,
            corpus=file.corpus,
            loss_per_step=StepLosses.of(file.loss_per_step),
            gradient_norms=None if file.gradient_norms is None else GradientNorms.of(file.gradient_norms),
        )

    def to_file(self) -> BehaviourFile:
        """Return the record of the file."""
        return BehaviourFile(
            version=BEHAVIOUR_VERSION,
            checkpoint_sha256=self.checkpoint_sha256,
            best_epoch=self.best_epoch,
            judge=self.judge,
            settings=self.settings,
            device=self.device,
            seconds=_number(self.seconds),
            seq_len=self.seq_len,
            level=self.level,
            corpus=self.corpus,
            loss_per_step=self.loss_per_step.to_part(),
            gradient_norms=None if self.gradient_norms is None else self.gradient_norms.to_part(),
        )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(values: Values) -> Numbers:
    return tuple(_number(value) for value in values.tolist())


def _arrays(name: str, *lists: Numbers) -> list[Values]:
    """Return lists as arrays, with NaN for ``None``. Raises ``ValueError``: they differ in length."""
    lengths = [len(one) for one in lists]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: expected lists of one length, got {lengths}")
    return [np.array([math.nan if value is None else value for value in one], np.float64) for one in lists]


def read_behaviour(run: RunDirectory) -> tuple[Behaviour | None, list[str]]:
    """Return the behaviour of a run, ``None`` if it has none, and a warning for each file that cannot be used.

    If only the samples or the checkpoint cannot be read, the behaviour has no samples, or counts as up to date.
    """
    try:
        file = BehaviourFile.read_file(run.behaviour_file)
        if file is None:
            return None, []
        found = Behaviour.of(file)
    except DamagedFileError as error:
        return None, [f"{error}, or compute the behaviour again"]
    except FileError as error:
        return None, [str(error)]
    except ValueError as error:
        return None, [f"{run.behaviour_file} is damaged or of another version ({error}); compute the behaviour again"]
    warnings: list[str] = []
    samples, lines = _read_samples(run.samples_file, warnings)
    digest = read_or_warn(lambda: file_sha256(run.best_checkpoint), None, warnings)
    if digest not in (None, found.checkpoint_sha256):
        warnings.append(f"{run.behaviour_file} was computed from an earlier checkpoint; compute the behaviour again")
    return replace(found, samples=samples), [*lines, *warnings]


def _read_samples(path: Path, warnings: list[str]) -> tuple[list[Sample], list[str]]:
    """Return the samples in a file, and a warning for each line that is none."""

    def is_sample(raw: Any) -> bool:
        try:
            Sample.of(SampleLine.from_plain(raw if isinstance(raw, dict) else {}, path))
        except (DamagedFileError, ValueError):
            return False
        return True

    lines, cut = read_or_warn(lambda: read_json_lines(path, is_sample), None, warnings) or ([], [])
    return [Sample.of(SampleLine.from_plain(line, path)) for line in lines], cut
