"""What a run *is*: frozen dataclasses, a strict reader, and the fingerprint that identifies a run.

Only what decides the result is here: model, data, optimizer, training, seed. Where a run executes, on how many
devices and in which folder, is in :mod:`jobs.spec`. The annotations and docstrings of the fields are also read for the
JSON Schema and the key tables of manifests (:mod:`jobs.manifests.json_schema`). Imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from seqlm.errors import ConfigError, nearest

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
"""Of the operands of matrix products."""


@dataclass(frozen=True)
class Bound:
    """The range of a number, as metadata in a field's annotation. The JSON Schema of manifests has it too."""

    words: str
    """The words that follow "expected" in messages."""
    above: float | None = None
    """The number must be above this. ``None``: no such limit; likewise below."""
    least: float | None = None
    """Smallest valid number."""
    most: float | None = None
    """Largest valid number."""

    def holds(self, value: float) -> bool:
        """Whether a number is finite and within the range."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        found = {"exclusiveMinimum": self.above, "minimum": self.least, "maximum": self.most}
        return {**handler(schema), **{key: value for key, value in found.items() if value is not None}}


_Count = Annotated[int, Bound("a positive whole number", least=1)]
_Positive = Annotated[float, Bound("a positive finite number", above=0)]
Seed = Annotated[int, Bound("a whole number from 0 to 2^63 - 1", least=0, most=2**63 - 1)]
_Probability = Annotated[float, Bound("a number above 0 and at most 1", above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """A stacked RNN (tanh) or GRU."""

    arch: Literal["rnn", "gru"]
    """Architecture."""
    hidden_size: _Count
    """Units of each layer, H."""
    num_layers: _Count = 2
    """Stacked layers, L."""
    embedding_size: _Count = 200
    """Width of the token embedding."""
    keep: _Probability = 0.35
    """Probability of keeping a unit, on the embedding and on each layer's output."""
    implementation: Literal["fused", "reference"] = "fused"
    """``fused``: hand-written gradients, fast (docs/performance.md). ``reference``: the same function by plain
    autograd, to check it."""

    def __post_init__(self) -> None:
        _check("model", self)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder-only Transformer with pre-norm blocks."""

    arch: Literal["transformer"]
    """Architecture."""
    hidden_size: _Count
    """Width of the blocks and of the embedding (``n_units`` in the study)."""
    num_layers: _Count = 2
    """Blocks."""
    num_heads: _Count = 16
    """Attention heads, a divisor of ``hidden_size``."""
    mlp_size: _Count = 2048
    """Inner width of each block's MLP."""
    keep: _Probability = 0.9
    """Probability of keeping a unit, everywhere except on the attention weights."""
    attention_keep: _Probability = 0.9
    """Probability of keeping an attention weight; the published runs always used 0.9."""
    attention: Literal["own", "sdpa"] = "own"
    """``own``: the equations. ``sdpa``: ``F.scaled_dot_product_attention``, the same function, other dropout draws."""
    implementation: Literal["fused", "reference"] = "fused"
    """``fused``: hand-written gradients, fast (docs/performance.md). ``reference``: the same function by plain
    autograd, to check it."""

    def __post_init__(self) -> None:
        problems = _problems("model", self)
        if self.hidden_size == 1:
            problems.append("model.hidden_size: expected at least 2 (layer norm needs a deviation), got 1")
        if not problems and self.hidden_size % self.num_heads:
            problems.append(
                f"model.hidden_size: expected a multiple of model.num_heads = {self.num_heads}, got {self.hidden_size}"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it becomes tokens. The place of the files is not part of it."""

    corpus: Literal["ptb", "pydoc", "files"] = "pydoc"
    """``ptb``: Penn Treebank. ``pydoc``: documentation shipped inside Python, no download. ``files``: your own text."""
    level: Literal["word", "char"] = "word"
    """Tokens are words or characters."""
    vocab_size: Annotated[int, Bound("a whole number of at least 3", least=3)] | None = None
    """Keep this many most frequent tokens; the rest becomes ``<unk>``. Without it all tokens are kept, and 10,000 words
    of ``pydoc``."""
    sha256: str | None = None
    """Digest of the text of a ``files`` or ``pydoc`` corpus; filled in when the text is found."""

    def __post_init__(self) -> None:
        problems = _problems("data", self)
        if self.sha256 is not None and self.corpus == "ptb":
            problems.append('data.sha256: applies to corpus = "files" and "pydoc" only, got corpus = "ptb"')
        if problems:
            raise ConfigError(problems)
        if self.corpus == "pydoc" and self.level == "word" and self.vocab_size is None:
            object.__setattr__(self, "vocab_size", 10_000)


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam with PyTorch's default betas and epsilon (Kingma and Ba, 2015)."""

    optimizer: Literal["adam"]
    """Optimizer."""
    lr: _Positive
    """Learning rate."""

    def __post_init__(self) -> None:
        _check("optim", self)


@dataclass(frozen=True, kw_only=True)
class SgdConfig:
    """Plain stochastic gradient descent, no momentum, constant learning rate."""

    optimizer: Literal["sgd"]
    """Optimizer."""
    lr: _Positive
    """Learning rate."""

    def __post_init__(self) -> None:
        _check("optim", self)


@dataclass(frozen=True, kw_only=True)
class SgdScheduleConfig:
    """SGD whose learning rate falls by epoch."""

    optimizer: Literal["sgd_schedule"]
    """Optimizer."""
    lr: _Positive
    """Learning rate of the first epochs."""
    schedule: Literal["compounding", "per_epoch"] = "compounding"
    """``compounding`` (the published runs): in epoch e the *current* rate is multiplied by decay^-(e - flat + 1).
    ``per_epoch`` (the published text): the rate is divided by ``decay`` after each epoch."""
    decay: Annotated[float, Bound("a number greater than 1", above=1)] = 1.15
    """Divisor of the learning rate."""
    flat_epochs: _Count | None = None
    """Epochs at the given rate before it falls; without it, 15 for ``compounding`` and 1 for ``per_epoch``."""

    def __post_init__(self) -> None:
        if self.flat_epochs is None:
            object.__setattr__(self, "flat_epochs", 15 if self.schedule == "compounding" else 1)
        _check("optim", self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training protocol. The batch is the global one; a rank's share follows from the number of ranks."""

    epochs: _Count = 40
    """Passes over the training split."""
    batch_size: _Count = 20
    """Columns of the global batch, B, whatever the number of devices that share it."""
    seq_len: _Count = 35
    """Tokens of a window, T."""
    clip_norm: _Positive = 0.25
    """Largest gradient norm over all parameters."""
    precision: Precision = "fp32"
    """Precision of the operands of matrix products; the rest is fp32. ``tf32`` needs an NVIDIA GPU, ``bf16`` a GPU or
    processor that has it; other devices refuse the run. See "Precision" in docs/manifest.md."""

    def __post_init__(self) -> None:
        _check("train", self)


ModelConfig: TypeAlias = RecurrentConfig | TransformerConfig
OptimConfig: TypeAlias = AdamConfig | SgdConfig | SgdScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of one run, fully resolved."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    seed: Seed = 1111
    """Seed of the initial values and of the dropout masks."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("model", "data", "optim", "train")

    def __post_init__(self) -> None:
        _check("", self)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data; ``from_dict`` reads it back to an equal object."""
        return {**{section: dict(vars(getattr(self, section))) for section in self.SECTIONS}, "seed": self.seed}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunConfig:
        """Read plain data strictly.

        Raises:
            ConfigError: with one line for every unknown key, wrong type and impossible value.
        """
        problems: list[str] = []
        parts: dict[str, Any] = {}
        known = [*cls.SECTIONS, "seed"]
        for key in raw:
            if key not in known:
                problems.append(f'unknown key "{key}"{nearest(key, known)} (valid: {", ".join(known)})')
        for section in cls.SECTIONS:
            value = raw.get(section, {})
            if not isinstance(value, Mapping):
                problems.append(f"{section}: expected a table, got {_show(value)}")
                continue
            try:
                parts[section] = _read_section(section, value)
            except ConfigError as error:
                problems.extend(error.problems)
        if "seed" in raw:
            try:
                parts["seed"] = _convert("seed", int, raw["seed"])
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        return cls(**parts)

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the canonical JSON of the configuration: the identity of the run.

        Keys in :data:`LATER_KEYS` are left out where they have their neutral value.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Computed once: a launch asks for it seven times, of each of perhaps a thousand runs."""
        identity = self.to_dict()
        for section, key, neutral in LATER_KEYS:
            if identity[section].get(key) == neutral:
                del identity[section][key]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


LATER_KEYS: tuple[tuple[str, str, Any], ...] = (
    ("model", "implementation", "fused"),
    ("model", "attention", "own"),
    ("train", "precision", "fp32"),
)
"""Section, key and neutral value of what was added after the first runs: their fingerprints must stay as they were."""

VARIANTS: dict[str, tuple[str, tuple[type, ...]]] = {
    "model": ("arch", (RecurrentConfig, TransformerConfig)),
    "data": ("", (DataConfig,)),
    "optim": ("optimizer", (AdamConfig, SgdConfig, SgdScheduleConfig)),
    "train": ("", (TrainConfig,)),
}
"""Section -> (the key that chooses the variant, the variants)."""


def valid_keys() -> list[str]:
    """Every dotted key that a configuration may have, such as ``optim.lr``, and ``seed``."""
    keys: dict[str, None] = {}
    for section, (_, variants) in VARIANTS.items():
        for variant in variants:
            keys.update(dict.fromkeys(f"{section}.{field.name}" for field in dataclasses.fields(variant)))
    return [*keys, "seed"]


def choices_of(key: str) -> tuple[str, ...]:
    """The only values that a dotted key can have, over all variants of its section; none for any other key."""
    section, _, name = key.rpartition(".")
    hints = [_type_hints(variant).get(name) for variant in VARIANTS.get(section, ("", ()))[1]]
    return tuple(choice for hint in hints if typing.get_origin(hint) is Literal for choice in typing.get_args(hint))


def applicable_keys(section: str, values: Mapping[str, Any]) -> set[str]:
    """The keys of ``section`` that apply once its variant (architecture, optimizer) is chosen by ``values``.

    All keys of the section while no valid variant is chosen. The manifest uses it to let ``[defaults.model]``
    hold ``num_heads`` beside recurrent runs.
    """
    selector, variants = VARIANTS[section]
    chosen = [v for v in variants if selector and values.get(selector) in _choices(v, selector)] or list(variants)
    return {field.name for variant in chosen for field in dataclasses.fields(variant)}


_type_hints = functools.cache(typing.get_type_hints)  # slow, and asked for every run of a grid


def _choices(variant: type, selector: str) -> tuple[Any, ...]:
    return typing.get_args(_type_hints(variant)[selector])


def _read_section(section: str, raw: Mapping[str, Any]) -> Any:
    try:
        hash((*raw, *raw.values()))
    except TypeError:
        return _read_section_once(section, (*raw,), *raw.values())
    return _read_section_cached(section, (*raw,), *raw.values())


def _read_section_once(section: str, keys: tuple[str, ...], *values: Any) -> Any:
    raw = dict(zip(keys, values, strict=True))
    selector, variants = VARIANTS[section]
    variant = variants[0]
    if selector:
        options = [choice for v in variants for choice in _choices(v, selector)]
        found = raw.get(selector)
        if found is None:
            raise ConfigError([f"{section}.{selector}: missing, expected one of {_listing(options)}"])
        if found not in options:
            raise ConfigError(
                [
                    f"{section}.{selector}: expected one of {_listing(options)}, got {_show(found)}"
                    f"{nearest(str(found), options)}"
                ]
            )
        variant = next(v for v in variants if found in _choices(v, selector))
    return _read_dataclass(section, variant, raw, variants)


_read_section_cached = functools.lru_cache(maxsize=1024, typed=True)(_read_section_once)
"""The runs of a grid have few different sections. ``typed``, since 1, 1.0 and true are not the same."""


def _read_dataclass(section: str, kind: type, raw: Mapping[str, Any], variants: tuple[type, ...]) -> Any:
    hints = _type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in fields:
            try:
                values[key] = _convert(f"{section}.{key}", hints[key], value)
            except ConfigError as error:
                problems.extend(error.problems)
            continue
        owners = [v for v in variants if key in {field.name for field in dataclasses.fields(v)}]
        if owners:
            selector = VARIANTS[section][0]
            names = [str(choice) for v in owners for choice in _choices(v, selector)]
            problems.append(
                f"{section}.{key}: applies to {' and '.join(names)} only, got {selector} = {_show(raw[selector])}"
            )
        else:
            hint = nearest(f"{section}.{key}", valid_keys())
            valid = ", ".join(sorted(fields))
            problems.append(f'unknown key "{section}.{key}"{hint} (valid in {section}: {valid})')
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in raw:
            problems.append(f"{section}.{name}: missing, expected {_describe(hints[name])}")
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if required <= values.keys():
        try:
            built = kind(**values)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return built


def _convert(key: str, hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        if isinstance(value, str) and value in options:
            return value
        raise ConfigError(
            [f"{key}: expected one of {_listing(options)}, got {_show(value)}{nearest(str(value), options)}"]
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError([f"{key}: expected a number, got a whole number of {len(str(value))} digits"]) from None
    if type(value) is hint:
        return value
    quotes = "; remove the quotes" if isinstance(value, str) and _is_written_as(hint, value) else ""
    raise ConfigError([f"{key}: expected {_describe(hint)}, got {_show(value)}{quotes}"])


def _is_written_as(kind: type, text: str) -> bool:
    """Whether a text would be a valid number of this kind without its quotes."""
    if kind not in (int, float):
        return False
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _describe(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(hint, str(hint))


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _listing(options: Any) -> str:
    return ", ".join(f'"{option}"' for option in options)


@functools.cache
def _bounds(kind: type) -> dict[str, Bound]:
    """The bound of each field that has one."""
    return {
        name: item
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        for part in (hint, *typing.get_args(hint))  # of ``Annotated[...] | None``, the first argument has the metadata
        for item in getattr(part, "__metadata__", ())
        if isinstance(item, Bound)
    }


def _problems(section: str, config: Any) -> list[str]:
    kind: type = type(config)
    values = [(name, getattr(config, name), bound) for name, bound in _bounds(kind).items()]
    prefix = f"{section}." if section else ""
    return [
        f"{prefix}{name}: expected {bound.words}, got {value}"
        for name, value, bound in values
        if value is not None and not bound.holds(value)
    ]


def _check(section: str, config: Any) -> None:
    problems = _problems(section, config)
    if problems:
        raise ConfigError(problems)
