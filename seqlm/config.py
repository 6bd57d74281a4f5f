"""What a run *is*: frozen dataclasses, and the fingerprint that identifies a run.

Only what decides the result is here: model, data, optimizer, training, seed. Where a run executes, on how many
devices and in which folder, is in :mod:`jobs.spec`. Imports the standard library only.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from seqlm.architectures import ARCHITECTURES, ModelConfig
from seqlm.errors import ConfigError, nearest
from seqlm.optimizers import OPTIMIZERS, OptimConfig
from seqlm.reading import MOST_EPOCHS
from seqlm.schema import Count, Positive, Section, Table, Valid, fields_of, listing, read, show, unknown_key

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
"""Of the operands of matrix products."""

LARGEST_SEED = 2**32 - 1
"""PyTorch reads the lowest 32 bits of a seed on a CPU: a larger one would draw the numbers of a smaller one."""
Seed = Annotated[int, Valid("a whole number from 0 to 2^32 - 1", least=0, most=LARGEST_SEED)]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which text, and how it becomes tokens. The place of the files is not part of it."""

    NAME = "data"

    corpus: Literal["ptb", "pydoc", "files"] = "pydoc"
    """``ptb``: Penn Treebank. ``pydoc``: documentation shipped inside Python, no download. ``files``: your own text."""
    level: Literal["word", "char", "token"] | None = None
    """Words, characters, or tokens of ``data.tokenizer``. Default: ``token`` with a tokenizer, else ``word``."""
    vocab_size: Annotated[int, Valid("a whole number of at least 3", least=3)] | None = None
    """Most frequent tokens to keep; the rest becomes ``<unk>``. Default: all, but 10,000 words of ``pydoc``. Not with a
    tokenizer, which has its own."""
    sha256: str | None = None
    """Digest of a ``files`` or ``pydoc`` corpus; filled in when the text is found."""
    column: str | None = None
    """Data set's column with the text. Default: ``text``, or the only column of texts."""
    tokenizer: str | None = None
    """``tokenizer.json`` of the ``tokenizers`` library, relative to the manifest."""
    tokenizer_sha256: str | None = None
    """Digest of the tokenizer file; filled in when the file is found."""

    def __post_init__(self) -> None:
        if self.level is None:
            object.__setattr__(self, "level", "word" if self.tokenizer is None else "token")
        if self.corpus == "pydoc" and self.level == "word" and self.vocab_size is None:
            object.__setattr__(self, "vocab_size", 10_000)
        super().__post_init__()

    def _conditions(self) -> Iterator[str]:
        if self.sha256 is not None and self.corpus == "ptb":
            yield 'data.sha256: applies to corpus = "files" and "pydoc" only, got corpus = "ptb"'
        if self.column is not None and self.corpus != "files":
            yield f'data.column: applies to corpus = "files" only, got corpus = "{self.corpus}"'
        if self.tokenizer is None:
            if self.level == "token":
                yield 'data.tokenizer: missing, expected a tokenizer file beside level = "token"'
            if self.tokenizer_sha256 is not None:
                yield "data.tokenizer_sha256: applies to runs with data.tokenizer only"
            return
        if self.level != "token":
            yield f'data.level: follows from data.tokenizer, got "{self.level}"; remove it'
        if self.vocab_size is not None:
            yield f"data.vocab_size: follows from data.tokenizer, got {self.vocab_size}; remove it"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The training protocol. The batch is the global one; a rank's share follows from the number of ranks."""

    NAME = "train"

    epochs: Annotated[int, Valid(f"a whole number from 1 to {MOST_EPOCHS:,}", least=1, most=MOST_EPOCHS)] = 40
    """Passes over the training split. Not part of the identity: a run that trained fewer trains the missing ones."""
    batch_size: Count = 20
    """Columns of the global batch, B, on any number of devices."""
    seq_len: Count = 35
    """Tokens of a window, T."""
    clip_norm: Positive = 0.25
    """Largest gradient norm over all parameters."""
    precision: Precision = "fp32"
    """Precision of the operands of matrix products; the rest is fp32. ``tf32`` needs an NVIDIA GPU, ``bf16`` a GPU or
    processor that has it; other devices refuse the run. See "Precision" in docs/reference/manifest.md."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """How validation and test text is scored.

    Without either key as in the published study: in the columns and windows of training, without the tokens at the end
    that fill none. With a key every token but the first is scored, so that runs with different batches compare.
    """

    NAME = "eval"

    batch_size: Count | None = None
    """Columns of validation and test text. Default: as in training."""
    seq_len: Count | None = None
    """Tokens of a window in validation and test. Default: as in training."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Table):
    """Everything that decides the result of one run, fully resolved."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    """With either key set, both are."""
    seed: Seed = 1111
    """Seed of initial values and dropout masks."""

    SECTIONS: ClassVar[tuple[str, ...]] = ("model", "data", "optim", "train", "eval")

    def __post_init__(self) -> None:
        if self.eval != type(self).eval:
            columns, window = self.eval.batch_size or self.train.batch_size, self.eval.seq_len or self.train.seq_len
            object.__setattr__(self, "eval", EvalConfig(batch_size=columns, seq_len=window))
        super().__post_init__()

    def _conditions(self) -> Iterator[str]:
        if (most := self.optim.decay_epochs) is not None and self.train.epochs > most:
            yield (
                f"train.epochs: expected at most optim.decay_epochs = {most}, after which the learning rate is 0, got "
                f"{self.train.epochs}"
            )

    def with_epochs(self, epochs: int) -> Self:
        """The same run, to go on to ``epochs``."""
        return self if epochs == self.train.epochs else replace(self, train=replace(self.train, epochs=epochs))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data; ``from_dict`` reads it back to an equal object."""
        return {**{section: getattr(self, section).values() for section in self.SECTIONS}, "seed": self.seed}

    def by_key(self) -> dict[str, Any]:
        """The configuration by dotted key, such as ``optim.lr``, ``model.arguments.depth``, and ``seed``."""
        return flat(self.to_dict())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Read plain data strictly.

        Raises:
            ConfigError: with one line for every unknown key, wrong type and impossible value.
        """
        problems: list[str] = []
        parts: dict[str, Any] = {}
        known = fields_of(cls)
        for key, value in {**{section: {} for section in cls.SECTIONS}, **raw}.items():
            if key not in known:
                problems.append(unknown_key(key, known))
            elif key not in cls.SECTIONS:
                problems += known[key].problems(key, value)
                parts[key] = value
            elif not isinstance(value, Mapping):
                problems.append(f"{key}: expected a table, got {show(value)}")
            else:
                if key == "model":
                    value = {name: one for name, one in value.items() if FORMER_KEYS.get(name, ...) != one}
                try:
                    parts[key] = _read_section(key, value)
                except ConfigError as error:
                    problems += error.problems
        if problems:
            raise ConfigError(problems)
        return cls(**parts)

    def least_text(self, split: str) -> tuple[int, int]:
        """Return the columns and the window that a split must fill once: with ``eval``, one token and its successor."""
        scored_whole = split != "train" and self.eval.batch_size is not None
        return (1, 1) if scored_whole else (self.train.batch_size, self.train.seq_len)

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the canonical JSON of the configuration: the identity of the run.

        ``train.epochs`` is left out: a run is a trajectory, and its epochs say how far it is to go. Keys in
        :data:`LATER_KEYS` are left out where they have their neutral value.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Computed once: a launch asks for it seven times, of each of perhaps a thousand runs."""
        identity = self.to_dict()
        del identity["train"]["epochs"]
        for section, key, neutral in LATER_KEYS:
            if key in identity[section] and identity[section][key] == neutral:
                del identity[section][key]
        if not identity["eval"]:
            del identity["eval"]
        if identity["data"].get("tokenizer_sha256"):  # a renamed file is the same tokenizer
            del identity["data"]["tokenizer"]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


LATER_KEYS: tuple[tuple[str, str, Any], ...] = (
    ("model", "tied", False),
    ("model", "embedding_keep", 1.0),
    ("model", "weight_keep", 1.0),
    ("optim", "schedule", "constant"),
    ("optim", "warmup_steps", 0),
    ("optim", "weight_decay", 0.0),
    ("optim", "momentum", 0.0),
    ("optim", "nesterov", False),
    ("optim", "beta1", 0.9),
    ("optim", "beta2", 0.999),
    ("train", "precision", "fp32"),
    ("eval", "batch_size", None),
    ("eval", "seq_len", None),
    ("data", "column", None),
    ("data", "tokenizer", None),
    ("data", "tokenizer_sha256", None),
)
"""Section, key and neutral value of what was added after the first runs: their fingerprints must stay as they were."""

FORMER_KEYS = {"implementation": "fused", "attention": "own"}
"""Keys of ``model`` that earlier versions wrote, each with the only value that is still read."""

VARIANTS: dict[str, tuple[str, tuple[type, ...]]] = {
    "model": ("arch", ARCHITECTURES),
    "data": ("", (DataConfig,)),
    "optim": ("optimizer", OPTIMIZERS),
    "train": ("", (TrainConfig,)),
    "eval": ("", (EvalConfig,)),
}
"""Section -> (the key that chooses the variant, the variants)."""


LIST_KEYS = ("model.files",)
"""Keys whose value is a list."""

OPEN_TABLES = ("model.arguments",)
"""Keys whose value is a table with names of the user's."""


def base_key(key: str) -> str:
    """Return the open table that a key is in, ``model.arguments`` for ``model.arguments.depth``, else the key."""
    return next((table for table in OPEN_TABLES if key.startswith(f"{table}.")), key)


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables by dotted key. An open table without a key has none."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        inner = value if isinstance(value, Mapping) else None
        for name, one in ((key, value),) if inner is None else ((f"{key}.{name}", one) for name, one in inner.items()):
            if name in OPEN_TABLES and isinstance(one, Mapping):
                found |= {f"{name}.{argument}": item for argument, item in one.items()}
            else:
                found[name] = one
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested tables: the inverse of :func:`flat`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        table, base = found, base_key(key)
        section, _, name = base.rpartition(".")
        if section:
            table = table.setdefault(section, {})
        if base != key:
            table, name = table.setdefault(name, {}), key.removeprefix(f"{base}.")
        table[name] = value
    return found


def labels(section: str) -> dict[str, str]:
    """Return the choices of a section's variant with their names in print, in the order of reports."""
    variants: tuple[type[Section], ...] = VARIANTS[section][1]
    return {choice: label for variant in variants for choice, label in variant.LABELS.items()}


def valid_keys() -> list[str]:
    """Every dotted key that a configuration may have, such as ``optim.lr``, and ``seed``."""
    keys = [
        f"{section}.{name}"
        for section, (_, variants) in VARIANTS.items()
        for variant in variants
        for name in fields_of(variant)
    ]
    return [*dict.fromkeys(keys), "seed"]


def varying_keys(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys with more than one value, given configurations by dotted key, in the order of a configuration.

    A key that only some of them have, such as ``model.num_heads``, counts if its values differ.

    >>> varying_keys([{"optim.lr": 0.1, "seed": 1}, {"optim.lr": 0.1, "seed": 2, "model.arch": "rnn"}])
    ['seed']
    """
    first: dict[str, Any] = {}
    varying = {key for config in configs for key, value in config.items() if first.setdefault(key, value) != value}
    return [key for key in dict.fromkeys([*valid_keys(), *first]) if key in varying]


def choices_of(key: str) -> tuple[str, ...]:
    """The only values that a dotted key can have, over all variants of its section; none for any other key."""
    section, _, name = key.rpartition(".")
    _, variants = VARIANTS.get(section, ("", ()))
    having = [fields_of(variant)[name] for variant in variants if name in fields_of(variant)]
    return tuple(dict.fromkeys(choice for field in having for choice in field.choices))


def applicable_keys(section: str, values: Mapping[str, Any]) -> set[str]:
    """Return the keys of ``section`` that apply to the variant (architecture, optimizer) that ``values`` choose.

    All keys of the section if they choose no valid one.
    """
    selector, variants = VARIANTS[section]
    chosen = [v for v in variants if selector and values.get(selector) in fields_of(v)[selector].choices]
    return {name for variant in chosen or variants for name in fields_of(variant)}


def _read_section(section: str, raw: Mapping[str, Any]) -> Table:
    try:
        hash(tuple(raw.values()))
    except TypeError:
        return _read_section_once(section, **raw)
    return _read_section_cached(section, **raw)


def _read_section_once(section: str, /, **raw: Any) -> Table:
    selector, variants = VARIANTS[section]
    variant = variants[0]
    if selector:
        key, found, choices = f"{section}.{selector}", raw.get(selector), choices_of(f"{section}.{selector}")
        if selector not in raw:
            raise ConfigError([f"{key}: missing, expected one of {listing(choices)}"])
        if found not in choices:
            hint = nearest(str(found), choices)
            if section == "model" and not hint:
                hint = '; for a model of your own, arch = "custom" and source = "FILE.py:CLASS" '
                hint += "(an LSTM is in examples/lstm/)"
            raise ConfigError([f"{key}: expected one of {listing(choices)}, got {show(found)}{hint}"])
        variant = next(v for v in variants if found in fields_of(v)[selector].choices)

    def unknown(key: str) -> str:
        owners = [v for v in variants if key in fields_of(v)]
        if not owners:
            return unknown_key(f"{section}.{key}", valid_keys())
        names = " and ".join(choice for owner in owners for choice in fields_of(owner)[selector].choices)
        return f"{section}.{key}: applies to {names} only, got {selector} = {show(raw[selector])}"

    return read(variant, raw, unknown=unknown)


_read_section_cached = functools.lru_cache(maxsize=1024, typed=True)(_read_section_once)
"""The runs of a grid have few different sections. ``typed``, since 1, 1.0 and true are not the same."""
