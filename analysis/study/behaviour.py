"""What a run's ``behaviour.json`` and ``samples.jsonl`` hold. Damage becomes a warning, and the run is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from analysis.study.values import Values, clean
from seqlm.errors import FileError
from seqlm.files import file_sha256, read_json
from seqlm.reading import parse_json, read_bytes
from seqlm.rundir import RunDirectory

VERSION = 2


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A text that a model has written."""

    index: int
    """Its place in ``samples.jsonl``, from 0."""
    prompt: list[str]
    """The tokens that the model was given."""
    tokens: list[str]
    """The tokens that it drew."""
    entropy: Values
    """Of the distribution that each was drawn from, in nats."""
    log_prob: Values
    """Natural logarithm of each one's probability, at temperature 1."""
    perplexity_own: float
    perplexity_other: float
    """Under the judge; NaN without one."""
    repetition: float
    """Share of the tokens that occur among the 16 before them."""
    distinct: tuple[float, float, float]
    """Distinct n-grams divided by n-grams, for n = 1, 2 and 3."""
    unk_share: float
    copied: list[str]
    """The longest run of tokens that stands in the training text as it is."""

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """How one run's model behaves."""

    best_epoch: int
    """Epoch of the parameters, from 0."""
    judge: str | None
    """Name of the run that rates the samples."""
    temperature: float
    seed: int
    device: str
    seconds: float
    seq_len: int
    """Tokens of a window in training."""
    level: str
    """``word`` or ``char``."""
    corpus: str
    windows: int
    """Windows of each column of the validation text."""
    columns: int
    zero_state: Values
    """Mean loss in nats at each step of a window, the state zero at its start."""
    carried_state: Values
    """The same with the state that the window before has left."""
    gradient_columns: int
    """Sequences in the minibatch of training data that the gradients are of."""
    gradient: Values
    """Norm of the last step's gradient with respect to the hidden state at each step, averaged over the sequences."""
    gradient_mean_of_norms: Values
    """Mean over the sequences of the norm of each one's own gradient."""
    layer_gradients: list[Values]
    """As ``gradient``, for each layer, the lowest first."""
    samples: list[Sample]
    is_stale: bool = False
    """Whether ``checkpoints/best.pt`` is another file by now."""


def read_behaviour(run: RunDirectory) -> tuple[Behaviour | None, list[str]]:
    """The behaviour of a run, none where it has none, and a warning for everything that cannot be used."""
    path = run.path / "behaviour.json"
    try:
        raw = read_json(path)
        if raw is None:
            return None, []
        samples, warnings = _read_samples(run.path / "samples.jsonl")
        digest = file_sha256(run.best_checkpoint)
    except FileError as error:
        return None, [str(error)]
    stale = digest not in (None, raw.get("checkpoint_sha256"))
    if stale:
        warnings.append(
            f"{path} was computed from an earlier checkpoint than checkpoints/best.pt; compute the behaviour again"
        )
    try:
        return _behaviour(raw, samples, is_stale=stale), warnings
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        return None, [f"{path} is damaged ({problem}); the run's behaviour was left out"]


def _behaviour(raw: Mapping[str, Any], samples: list[Sample], *, is_stale: bool) -> Behaviour:
    if raw["version"] != VERSION:
        raise ValueError(f"version: expected {VERSION}, got {raw['version']!r}; compute the behaviour again")
    losses, norms, settings = raw["loss_per_step"], raw["gradient_norms"], raw["settings"]
    judge = raw["judge"]
    steps, window = _whole(losses["window"], least=1), _whole(norms["window"], least=1)
    return Behaviour(
        best_epoch=_whole(raw["best_epoch"]),
        judge=None if judge is None else _line(judge["name"]),
        temperature=_number(settings["temperature"]),
        seed=_whole(settings["seed"]),
        device=_line(raw["device"]),
        seconds=_number(raw["seconds"]),
        seq_len=_whole(raw["seq_len"], least=1),
        level=_text(raw["level"]),
        corpus=_text(raw["corpus"]),
        windows=_whole(losses["windows"], least=1),
        columns=_whole(losses["columns"], least=1),
        zero_state=_values(losses["zero_state"], steps),
        carried_state=_values(losses["carried_state"], steps),
        gradient_columns=_whole(norms["columns"], least=1),
        gradient=_values(norms["overall"], window),
        gradient_mean_of_norms=_values(norms["mean_of_norms"], window),
        layer_gradients=_list(norms["layers"], lambda layer: _values(layer, window)),
        samples=samples,
        is_stale=is_stale,
    )


# -- samples -------------------------------------------------------------------------------------------------------


def _read_samples(path: Path) -> tuple[list[Sample], list[str]]:
    """The samples of a file, and a warning for each line that is cut or damaged."""
    try:
        text = read_bytes(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return [], []
    samples: list[Sample] = []
    warnings = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(parse_json(line)))
        except (KeyError, TypeError, ValueError):
            warnings.append(f"{path}: line {number} is cut or damaged and was left out")
    return samples, warnings


def _sample(raw: Any) -> Sample:
    tokens, measures = _list(raw["tokens"], _text), raw["measures"]
    if not tokens:
        raise ValueError("no token")
    return Sample(
        index=_whole(raw["index"]),
        prompt=_list(raw["prompt"], _text),
        tokens=tokens,
        entropy=_values(raw["entropy"], len(tokens)),
        log_prob=_values(raw["log_prob"], len(tokens)),
        perplexity_own=_number(measures["perplexity_own"]),
        perplexity_other=_number(measures["perplexity_other"]),
        repetition=_number(measures["repetition"]),
        distinct=(
            _number(measures["distinct_1"]),
            _number(measures["distinct_2"]),
            _number(measures["distinct_3"]),
        ),
        unk_share=_number(measures["unk_share"]),
        copied=_list(measures["copied"], _text),
    )


# -- values --------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float:
    """A number; NaN for null."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"found {str(value)[:40]!r} in place of a number")
    return float(value)


def _whole(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TypeError(f"found {str(value)[:40]!r} in place of a whole number of at least {least}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"found {str(value)[:40]!r} in place of a text")
    return value


def _line(value: Any) -> str:
    """A text on one line, without characters that no table can show."""
    return clean(_text(value))


def _list(value: Any, read: Callable[[Any], T]) -> list[T]:
    if not isinstance(value, list):
        raise TypeError(f"found {str(value)[:40]!r} in place of a list")
    return [read(item) for item in value]


def _values(value: Any, length: int) -> Values:
    numbers = _list(value, _number)
    if len(numbers) != length:
        raise ValueError(f"found {len(numbers)} values in place of {length}")
    return np.array(numbers, dtype=np.float64)
