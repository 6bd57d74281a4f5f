"""How the model of a run behaves: the records of ``behaviour.json`` and ``samples.jsonl``.

:mod:`analysis.behaviour` makes and writes them, the report reads them. What cannot be used is left out, with a warning.
"""

import dataclasses
import json
import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from analysis.study.values import Values, clean, read_or_warn
from seqlm.config import LARGEST_SEED
from seqlm.files import file_sha256, read_json, read_json_lines
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory
from seqlm.schema import show

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""NaN for null."""
Line = Annotated[str, AfterValidator(clean)]
_LISTS = TypeAdapter(list[Number] | list[list[Number]], config=ConfigDict(strict=True))
Numbers = Annotated[
    Values,
    PlainValidator(lambda found: found if isinstance(found, np.ndarray) else np.array(_LISTS.validate_python(found))),
    PlainSerializer(np.ndarray.tolist),
]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Settings:
    """How much is computed, and how the texts are drawn."""

    window: Count
    """Tokens of the windows over which the loss at each time step is averaged; default twice ``seq_len``."""
    samples: Count = 10
    """Texts of each length."""
    lengths: Annotated[list[Count], Field(min_length=1)]
    """Tokens of the texts, a random first one included and a prompt not; default ``seq_len`` and twice that."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The logits are divided by it before a token is drawn; 1 is the model's own distribution."""
    prompt: str | None = None
    """The start of each text. ``None``: one random token for each."""
    gradient_columns: Count = 20
    """Sequences over which gradients are averaged: as many for every model, whatever its batch size."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    """Decides every draw; default the seed of the run."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Curves:
    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        lengths = [value.shape[-1] for value in vars(self).values() if isinstance(value, np.ndarray)]
        if len({*lengths, len(getattr(self, "tokens", range(lengths[0])))}) > 1:
            raise ValueError(f"expected lists of one length, got {lengths}")
        return self


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class StepLosses(_Curves):
    """Mean of -log p(target) at each step of a window, in nats, over all windows and columns of the validation text."""

    split: Literal["valid"] = "valid"
    window: Count
    """Tokens of a window."""
    windows: Count
    """Windows of each column."""
    columns: Count
    zero_state: Numbers
    """With the state zero at the start of each window."""
    carried_state: Numbers
    """With the state that the window before has left; zero before the first."""


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class GradientNorms(_Curves):
    """Euclidean norms at each time step of the gradient of the last step's loss, over the sequences of a minibatch."""

    split: Literal["train"] = "train"
    window: Count
    columns: Count
    """Sequences of the minibatch."""
    overall: Numbers
    """Norm of the mean over the sequences, of the gradients of all layers side by side. In it, gradients of different
    sequences cancel, so it shrinks with their number."""
    mean_of_norms: Numbers
    """Mean over the sequences of the norm of each one's own gradient, of all layers side by side."""
    layers: Numbers
    """As ``overall``, of each layer or block (the first axis), the lowest first."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Measures:
    """What can be counted in the tokens that a model has drawn."""

    perplexity_own: Number
    perplexity_other: Number
    """Under the judge; NaN without one."""
    repetition: Number
    """Share of the tokens that occur among the 16 before them."""
    distinct_1: Number
    """Distinct n-grams divided by n-grams, here for n = 1."""
    distinct_2: Number
    distinct_3: Number
    unk_share: Number
    longest_copy: Whole
    """Tokens of the longest passage without ``<unk>`` that occurs in the training text."""
    copied: list[str]
    """That passage."""


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class Sample(_Curves):
    """A text that a model has written."""

    index: Whole
    """Its place in ``samples.jsonl``, from 0."""
    length: Count
    """Tokens as asked for."""
    prompt: list[str]
    """The tokens that the model was given."""
    tokens: Annotated[list[str], Field(min_length=1)]
    """The tokens that it drew."""
    entropy: Numbers
    """Of the distribution that each was drawn from, in nats."""
    log_prob: Numbers
    """Natural logarithm of each one's probability, at temperature 1."""
    measures: Measures


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Judge:
    """The run whose model rates the samples."""

    id: str
    name: Line
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class Behaviour:
    """How one run's model behaves."""

    version: Annotated[int, Field(ge=BEHAVIOUR_VERSION, le=BEHAVIOUR_VERSION)] = BEHAVIOUR_VERSION
    checkpoint_sha256: str
    best_epoch: Whole
    """Epoch of the parameters, from 0."""
    judge: Judge | None
    settings: Settings
    device: Line
    seconds: Number
    seq_len: Count
    """Tokens of a window in training."""
    level: str
    """``word``, ``char`` or ``token``."""
    corpus: str
    loss_per_step: StepLosses
    gradient_norms: GradientNorms | None
    """``None``: the model shows no hidden states, so there are no gradients by them."""
    samples: Annotated[list[Sample], Field(exclude=True)] = dataclasses.field(default_factory=list)


_BEHAVIOUR, _SAMPLES = TypeAdapter(Behaviour), TypeAdapter(list[Sample])


def plain(record: Behaviour | Sample | Settings) -> dict[str, Any]:
    """Return a record as plain data for a file."""
    made: dict[str, Any] = TypeAdapter(type(record)).dump_python(record)
    return made


def problems_of(error: ValidationError) -> list[str]:
    """Return a line for each value of a record that is not valid."""
    lines = []
    for found in error.errors(include_url=False):
        place, words = ".".join(map(str, found["loc"])), found["msg"].removeprefix("Value error, ")
        got = "" if found["type"] in ("missing", "value_error") else f", got {show(found['input'])}"
        lines.append(f"{f'{place}: ' if place else ''}{words.replace('Input should be', 'expected')}{got}")
    return lines


def read_behaviour(run: RunDirectory) -> tuple[Behaviour | None, list[str]]:
    """Return the behaviour of a run, ``None`` if it has none, and a warning for each file that cannot be used.

    If only the samples or the checkpoint cannot be read, the behaviour has no samples, or counts as up to date.
    """
    warnings: list[str] = []
    raw = read_or_warn(lambda: read_json(run.behaviour_file), None, warnings)
    if raw is None:
        return None, warnings
    lines, cut = read_or_warn(lambda: read_json_lines(run.samples_file, _is_sample), None, warnings) or ([], [])
    warnings += cut
    digest = read_or_warn(lambda: file_sha256(run.best_checkpoint), None, warnings)
    if digest not in (None, raw.get("checkpoint_sha256")):
        warnings.append(f"{run.behaviour_file} was computed from an earlier checkpoint; compute the behaviour again")
    try:
        found = _BEHAVIOUR.validate_json(json.dumps(raw))
        return dataclasses.replace(found, samples=_SAMPLES.validate_json(json.dumps(lines))), warnings
    except ValidationError as error:
        problem = problems_of(error)[0]
    return None, [f"{run.behaviour_file} is damaged or of another version ({problem}); compute the behaviour again"]


def _is_sample(record: Any) -> bool:
    try:
        _SAMPLES.validate_json(json.dumps([record]))
    except ValidationError:
        return False
    return True
