"""How the model of a run behaves, with arrays in place of the lists of ``behaviour.json`` and ``samples.jsonl``.

:mod:`analysis.behaviour` computes and writes it, the report reads it. What cannot be used is left out, with a warning.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from analysis.study.values import Values, clean, read_or_warn
from seqlm.errors import DamagedFileError, FileError
from seqlm.files import file_sha256, read_json_lines
from seqlm.reading import read_kept_bytes
from seqlm.records.behaviour import (
    BehaviourFile,
    BehaviourSettings,
    GradientNormsPart,
    LossesPart,
    MeasuresPart,
    Numbers,
    PanelMember,
    SampleLine,
    StepLossesPart,
)
from seqlm.rundir import BEHAVIOUR_READABLE_FROM, BEHAVIOUR_VERSION, RunDirectory

Floats: TypeAlias = npt.NDArray[np.float32]
"""Numbers of ``losses.f32``."""
BLOCK = 100
"""Successive tokens of a block, over whose means the uncertainty of a difference of losses is estimated."""
LARGEST_LOSSES = 8 * 2**20
"""Most bytes of ``losses.f32``."""
LOSS_TYPE = np.dtype("<f4")
"""Of a number in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepLosses:
    """Mean of -log p(target) at each step of a window, in nats, over tokens of the validation text."""

    window: int
    """Tokens of a window."""
    windows: int
    """Windows of each column, for ``carried_state``. If ``tokens`` is ``None``, for ``zero_state`` too."""
    columns: int
    zero_state: Values
    """With the state zero at the start of each window."""
    carried_state: Values
    """With the state that the window before has left; zero before the first."""
    tokens: int | None = None
    """Tokens that ``zero_state`` predicts at every step, from as many tokens before them as the step says: the same for
    all steps, and for all runs with this text and ``window``. ``None``: not recorded (version 3), so the steps of
    ``zero_state`` are means over different tokens."""
    blocks: Floats | None = None
    """The means of ``zero_state`` over each whole block of ``BLOCK`` of them (blocks x window), float32. ``None``: not
    recorded."""

    @classmethod
    def of(cls, part: StepLossesPart) -> Self:
        """Return what a file has. Raises ``ValueError``: the lists differ in length."""
        zero, carried = _arrays("loss_per_step", part.zero_state, part.carried_state)
        return cls(
            window=part.window,
            windows=part.windows,
            columns=part.columns,
            zero_state=zero,
            carried_state=carried,
            tokens=part.tokens,
        )

    def to_part(self) -> StepLossesPart:
        """Return the part of the file."""
        return StepLossesPart(
            window=self.window,
            windows=self.windows,
            columns=self.columns,
            zero_state=_plain(self.zero_state),
            carried_state=_plain(self.carried_state),
            tokens=self.tokens,
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
    """What can be counted in the tokens of a text. A number that is not known is NaN."""

    perplexity_own: float
    """Under the model itself."""
    rating: float = math.nan
    """Mean of -log p over the panel and the tokens that are not ``<unk>``, in nats."""
    known_pairs: float = math.nan
    """Share of the pairs of successive tokens that occur in the training text."""
    known_triples: float = math.nan
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
    """That passage. Of a piece of the validation text it is not recorded."""

    @classmethod
    def of(cls, part: MeasuresPart) -> Self:
        """Return what a file has."""
        known: dict[str, Any] = dict(vars(part))
        known |= {name: math.nan for name, value in known.items() if value is None}
        return cls(**{**known, "copied": list(part.copied)})

    def to_part(self) -> MeasuresPart:
        """Return the part of the file."""
        known: dict[str, Any] = dict(vars(self))
        known |= {name: _number(value) for name, value in known.items() if isinstance(value, float)}
        return MeasuresPart(**{**known, "copied": tuple(self.copied)})


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
    panel: Values | None = None
    """Natural logarithm of the probability of each token under each run of the panel (runs x tokens). ``None``: not
    recorded (version 3)."""
    ends_known_triple: Sequence[bool] | None = None
    """Whether each token is the last of a triple of drawn tokens that occurs in the training text. ``None``: not
    recorded."""

    @classmethod
    def of(cls, line: SampleLine) -> Self:
        """Return what a line of the file has. Raises ``ValueError``: the lists differ in length."""
        zeros = (0.0,) * len(line.tokens)
        known = line.ends_known_triple
        entropy, log_prob, _, _, *panel = _arrays(
            "entropy, log_prob, panel, ends_known_triple and tokens",
            line.entropy,
            line.log_prob,
            zeros,
            zeros if known is None else (0.0,) * len(known),
            *(line.panel or ()),
        )
        return cls(
            index=line.index,
            length=line.length,
            prompt=list(line.prompt),
            tokens=list(line.tokens),
            entropy=entropy,
            log_prob=log_prob,
            measures=Measures.of(line.measures),
            panel=None if line.panel is None else np.array(panel).reshape(len(panel), len(zeros)),
            ends_known_triple=known,
        )

    def to_line(self) -> SampleLine:
        """Return the line of the file."""
        return SampleLine(
            index=self.index,
            length=self.length,
            prompt=tuple(self.prompt),
            tokens=tuple(self.tokens),
            entropy=_plain(self.entropy),
            log_prob=_plain(self.log_prob),
            measures=self.measures.to_part(),
            panel=None if self.panel is None else tuple(_plain(member) for member in self.panel),
            ends_known_triple=None if self.ends_known_triple is None else tuple(self.ends_known_triple),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """How one run's model behaves. The fields are those of :class:`seqlm.records.behaviour.BehaviourFile`."""

    checkpoint_sha256: str
    best_epoch: int
    settings: BehaviourSettings
    device: str
    seconds: float
    seq_len: int
    level: str
    corpus: str
    loss_per_step: StepLosses
    gradient_norms: GradientNorms | None
    panel: tuple[PanelMember, ...] | None = None
    held_out: tuple[Measures, ...] | None = None
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, file: BehaviourFile) -> Self:
        """Return what a file has, without samples. Raises ``ValueError``: it is of another version, or damaged."""
        if not BEHAVIOUR_READABLE_FROM <= file.version <= BEHAVIOUR_VERSION:
            raise ValueError(
                f"version: expected one from {BEHAVIOUR_READABLE_FROM} to {BEHAVIOUR_VERSION}, got {file.version}"
            )
        return cls(
            checkpoint_sha256=file.checkpoint_sha256,
            best_epoch=file.best_epoch,
            settings=file.settings,
            device=clean(file.device),
            seconds=math.nan if file.seconds is None else file.seconds,
            seq_len=file.seq_len,
            level=file.level,
            corpus=file.corpus,
            loss_per_step=StepLosses.of(file.loss_per_step),
            gradient_norms=None if file.gradient_norms is None else GradientNorms.of(file.gradient_norms),
            panel=None if file.panel is None else tuple(replace(one, name=clean(one.name)) for one in file.panel),
            held_out=None if file.held_out is None else tuple(Measures.of(part) for part in file.held_out),
        )

    def losses_content(self) -> bytes:
        """Return the content of ``losses.f32``, of a behaviour that has it."""
        assert self.loss_per_step.blocks is not None
        return self.loss_per_step.blocks.astype(LOSS_TYPE).tobytes()

    def with_losses(self, part: LossesPart, content: bytes) -> Self:
        """Return the behaviour with the content of ``losses.f32``. Raises ``ValueError``: it is not what ``part`` says.

        What is no loss counts as not known.
        """
        expected = LOSS_TYPE.itemsize * part.blocks * self.loss_per_step.window
        if len(content) != expected:
            raise ValueError(f"expected {expected:,} bytes, found {len(content):,}")
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise ValueError("it has another digest than behaviour.json says")
        blocks = np.frombuffer(content, LOSS_TYPE).astype(np.float32).reshape(part.blocks, self.loss_per_step.window)
        blocks[~(np.isfinite(blocks) & (blocks >= 0))] = np.nan
        return replace(self, loss_per_step=replace(self.loss_per_step, blocks=blocks))

    def to_file(self) -> BehaviourFile:
        """Return the record of the file."""
        losses, blocks = None, self.loss_per_step.blocks
        if blocks is not None:
            losses = LossesPart(blocks=len(blocks), sha256=hashlib.sha256(self.losses_content()).hexdigest())
        return BehaviourFile(
            version=BEHAVIOUR_VERSION,
            checkpoint_sha256=self.checkpoint_sha256,
            best_epoch=self.best_epoch,
            settings=self.settings,
            device=self.device,
            seconds=_number(self.seconds),
            seq_len=self.seq_len,
            level=self.level,
            corpus=self.corpus,
            loss_per_step=self.loss_per_step.to_part(),
            gradient_norms=None if self.gradient_norms is None else self.gradient_norms.to_part(),
            losses=losses,
            panel=self.panel,
            held_out=None if self.held_out is None else tuple(piece.to_part() for piece in self.held_out),
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

    If only the samples, the losses of tokens or the checkpoint cannot be read, the behaviour has no samples, no such
    losses, or counts as up to date.
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
    if file.losses is not None:
        found = _with_losses(found, run.losses_file, file.losses, warnings)
    samples, lines = _read_samples(run.samples_file, warnings)
    digest = read_or_warn(lambda: file_sha256(run.best_checkpoint), None, warnings)
    if digest not in (None, found.checkpoint_sha256):
        warnings.append(f"{run.behaviour_file} was computed from an earlier checkpoint; compute the behaviour again")
    return replace(found, samples=samples), [*lines, *warnings]


def _with_losses(found: Behaviour, path: Path, part: LossesPart, warnings: list[str]) -> Behaviour:
    """Return a behaviour with what its ``losses.f32`` holds; with a warning, without it."""
    try:
        return found.with_losses(part, read_kept_bytes(path, LARGEST_LOSSES))
    except FileNotFoundError:
        warnings.append(f"{path} is missing; compute the behaviour again")
    except FileError as error:
        warnings.append(str(error))
    except ValueError as error:
        warnings.append(f"{path} is damaged ({error}); compute the behaviour again")
    return found


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
