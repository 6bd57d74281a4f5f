"""What a run's ``behaviour.json`` and ``samples.jsonl`` hold. What cannot be used is left out, with a warning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    AliasPath,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from analysis.study.values import Values, clean, tolerated
from seqlm.files import file_sha256, read_json
from seqlm.reading import parse_json, read_bytes
from seqlm.rundir import RunDirectory

VERSION = 2

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""NaN for null."""
Line = Annotated[str, AfterValidator(clean)]
_NUMBERS = TypeAdapter(list[Number], config=ConfigDict(strict=True))
Numbers = Annotated[Values, PlainValidator(lambda value: np.array(_NUMBERS.validate_python(value), dtype=np.float64))]

_NOTHING: Values = np.empty(0)


def _in(*path: str, default: Any = ...) -> Any:
    """A field at a place further inside the file."""
    return Field(default=default, validation_alias=AliasPath(*path))


def _require_length(length: int, *lists: Values) -> None:
    for values in lists:
        if len(values) != length:
            raise ValueError(f"found {len(values)} values in place of {length}")


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class Sample:
    """A text that a model has written."""

    index: Whole
    """Its place in ``samples.jsonl``, from 0."""
    prompt: list[str]
    """The tokens that the model was given."""
    tokens: Annotated[list[str], Field(min_length=1)]
    """The tokens that it drew."""
    entropy: Numbers
    """Of the distribution that each was drawn from, in nats."""
    log_prob: Numbers
    """Natural logarithm of each one's probability, at temperature 1."""
    perplexity_own: Number = _in("measures", "perplexity_own")
    perplexity_other: Number = _in("measures", "perplexity_other")
    """Under the judge; NaN without one."""
    repetition: Number = _in("measures", "repetition")
    """Share of the tokens that occur among the 16 before them."""
    distinct_1: Number = _in("measures", "distinct_1")
    """Distinct n-grams divided by n-grams, here for n = 1."""
    distinct_2: Number = _in("measures", "distinct_2")
    distinct_3: Number = _in("measures", "distinct_3")
    unk_share: Number = _in("measures", "unk_share")
    copied: list[str] = _in("measures", "copied")
    """The longest sequence of its tokens that occurs in the training text."""

    @model_validator(mode="after")
    def _lengths(self) -> Sample:
        _require_length(self.length, self.entropy, self.log_prob)
        return self

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False, config=_STRICT)
class Behaviour:
    """How one run's model behaves."""

    best_epoch: Whole
    """Epoch of the parameters, from 0."""
    judge: Line | None = Field(default=None, validation_alias=AliasPath("judge", "name"))
    """Name of the run that rates the samples."""
    temperature: Number = _in("settings", "temperature")
    seed: Whole = _in("settings", "seed")
    device: Line
    seconds: Number
    seq_len: Count
    """Tokens of a window in training."""
    level: str
    """``word`` or ``char``."""
    corpus: str
    window: Count = _in("loss_per_step", "window")
    windows: Count = _in("loss_per_step", "windows")
    """Windows of each column of the validation text."""
    columns: Count = _in("loss_per_step", "columns")
    zero_state: Numbers = _in("loss_per_step", "zero_state")
    """Mean loss in nats at each step of a window, the state zero at its start."""
    carried_state: Numbers = _in("loss_per_step", "carried_state")
    """The same with the state that the window before has left."""
    gradient_window: Count | None = _in("gradient_norms", "window", default=None)
    """``None``: the model shows no hidden states, so there are no gradients by them."""
    gradient_columns: Count | None = _in("gradient_norms", "columns", default=None)
    """Sequences in the minibatch of training data that the gradients are of."""
    gradient: Numbers = _in("gradient_norms", "overall", default=_NOTHING)
    """Norm of the last step's gradient with respect to the hidden state at each step, averaged over the sequences."""
    gradient_mean_of_norms: Numbers = _in("gradient_norms", "mean_of_norms", default=_NOTHING)
    """Mean over the sequences of the norm of each one's own gradient."""
    layer_gradients: list[Numbers] = _in("gradient_norms", "layers", default=())
    """As ``gradient``, for each layer, the lowest first."""
    samples: list[Sample]
    is_stale: bool
    """Whether ``checkpoints/best.pt`` is another file by now."""

    @model_validator(mode="after")
    def _lengths(self) -> Behaviour:
        _require_length(self.window, self.zero_state, self.carried_state)
        length = self.gradient_window or 0
        _require_length(length, self.gradient, self.gradient_mean_of_norms, *self.layer_gradients)
        return self


def read_behaviour(run: RunDirectory) -> tuple[Behaviour | None, list[str]]:
    """Return the behaviour of a run, ``None`` if it has none, and a warning for each file that cannot be used.

    If only the samples or the checkpoint cannot be read, the behaviour has no samples, or counts as up to date.
    """
    warnings: list[str] = []
    path = run.behaviour_file
    raw = tolerated(lambda: read_json(path), None, warnings)
    if raw is None:
        return None, warnings
    samples: list[Sample] = tolerated(lambda: _read_samples(run.samples_file, warnings), [], warnings)
    digest = tolerated(lambda: file_sha256(run.best_checkpoint), None, warnings)
    stale = digest not in (None, raw.get("checkpoint_sha256"))
    if stale:
        warnings.append(
            f"{path} was computed from an earlier checkpoint than checkpoints/best.pt; compute the behaviour again"
        )
    problem = f"version: expected {VERSION}, got {raw.get('version')!r}; compute the behaviour again"
    if raw.get("version") == VERSION:
        try:
            return Behaviour(**{**raw, "samples": samples, "is_stale": stale}), warnings
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place, found = ".".join(map(str, first["loc"])), first.get("ctx", {}).get("error", first["msg"])
            problem = f"{place}: {found}" if place else str(found)
    return None, [f"{path} is damaged ({problem}); the run's behaviour was left out"]


def _read_samples(path: Path, warnings: list[str]) -> list[Sample]:
    """Return the samples of a file; add a warning for each line that is cut or damaged."""
    try:
        lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    samples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                samples.append(Sample(**parse_json(line)))
            except (TypeError, ValueError):
                warnings.append(f"{path}: line {number} is cut or damaged and was left out")
    return samples
