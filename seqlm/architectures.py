"""The architectures: their configurations, and what follows from one without a model. Standard library alone.

A new architecture touches two files: a class here, listed in :data:`BuiltInConfig` and :data:`ARCHITECTURES`, and a
module in :mod:`seqlm.models` with the class that ``MODEL`` names. docs/project/contributing.md says what both need.

Symbols: V vocabulary, T window (``seq_len``), E embedding, H hidden, M inner width of the MLP, A heads, L layers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal, TypeAlias

from seqlm.schema import Arguments, Count, Probability, Section, Valid, check_arguments, show

CLASS_SEPARATOR = ":"
"""Between file and class of a model of one's own."""


class _Model(Section):
    """What the tables of all architectures have."""

    NAME = "model"
    MODEL: ClassVar[str]
    """Module and class of the model."""
    CARRIES_STATE: ClassVar[bool] = True
    """Whether the state at the end of a window is the start of the next one."""

    arch: str

    @property
    def kind(self) -> str:
        """The architecture's key in tables and figures."""
        return self.arch


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(_Model):
    """A stacked RNN (tanh) or GRU."""

    LABELS: ClassVar[Mapping[str, str]] = {"rnn": "RNN", "gru": "GRU"}
    MODEL = "seqlm.models.recurrent:RecurrentModel"

    arch: Literal["rnn", "gru"]
    """Architecture."""
    hidden_size: Count
    """Units of each layer, H."""
    num_layers: Count = 2
    """Stacked layers, L."""
    embedding_size: Count = 200
    """Width of the token embedding."""
    keep: Probability = 0.35
    """Probability of keeping a unit, on the embedding and each layer's output."""
    embedding_keep: Probability = 1.0
    """Probability of keeping a word type in a step; all occurrences of a dropped one are zero (Gal and
    Ghahramani, 2016; Merity et al., 2018)."""
    weight_keep: Probability = 1.0
    """Probability of keeping a recurrent weight (W_h, or U_r, U_z, U_h) in a step (Wan et al., 2013; Merity et al.,
    2018)."""
    tied: bool = False
    """Whether the output layer has the embedding's matrix (Press and Wolf, 2017; Inan et al., 2017). Needs
    ``embedding_size`` = ``hidden_size``."""

    def _conditions(self) -> Iterator[str]:
        if self.tied and self.embedding_size != self.hidden_size:
            yield (
                f"model.embedding_size: expected model.hidden_size = {self.hidden_size} with tied = true, got "
                f"{self.embedding_size}"
            )

    @property
    def _gates(self) -> int:
        return {"rnn": 1, "gru": 3}[self.arch]

    @property
    def _weights(self) -> int:
        """Weights of one gate in all layers: the sum of D_l H + H^2, with D_1 = E and D_l = H above."""
        h, layers = self.hidden_size, self.num_layers
        return self.embedding_size * h + (layers - 1) * h * h + layers * h * h

    def parameter_count(self, vocab_size: int) -> int:
        """Return the exact number of trained parameters.

        With g = 1 for the RNN and 3 for the GRU, D_1 = E and D_l = H above::

            V E + sum over layers of g (D_l H + H^2 + H) + H V + V        tied: without H V
        """
        v, h = vocab_size, self.hidden_size
        output = v if self.tied else h * v + v
        return v * self.embedding_size + self._gates * (self._weights + self.num_layers * h) + output

    def multiply_adds(self, seq_len: int) -> int:
        """Return the multiply-adds of the forward pass per token, without the output layer.

        The sum over layers of g (D_l H + H^2), whatever the window.
        """
        return self._gates * self._weights

    def activations(self, tokens: int, seq_len: int) -> int:
        """Return the values that the fused operations keep for the backward pass of I = ``tokens``, with its buffers.

        The terms after the sum over layers are buffers, which hold one layer at a time::

            RNN     I (2 E + 3 L H + 4 H) + H^2
            GRU     I (2 E + 7 L H + 7 H) + 3 H^2

        Masks of a whole step add I (E + 1) with dropped words, and 2 g L H^2 with dropped weights.
        """
        e, h, layers = self.embedding_size, self.hidden_size, self.num_layers
        kept, passing = {"rnn": (3, 4), "gru": (7, 7)}[self.arch]
        words = tokens * (e + 1) if self.embedding_keep < 1 else 0
        weights = 2 * self._gates * layers * h * h if self.weight_keep < 1 else 0
        return tokens * (2 * e + kept * layers * h + passing * h) + self._gates * h * h + words + weights


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(_Model):
    """A decoder-only Transformer with pre-norm blocks."""

    LABELS: ClassVar[Mapping[str, str]] = {"transformer": "Transformer"}
    MODEL = "seqlm.models.transformer:Transformer"
    CARRIES_STATE = False

    arch: Literal["transformer"]
    """Architecture."""
    hidden_size: Count
    """Width of blocks and embedding (``n_units`` in the study)."""
    num_layers: Count = 2
    """Blocks."""
    num_heads: Count = 16
    """Attention heads, a divisor of ``hidden_size``."""
    mlp_size: Count = 2048
    """Inner width of each block's MLP."""
    keep: Probability = 0.9
    """Probability of keeping a unit, everywhere except on the attention weights."""
    attention_keep: Probability = 0.9
    """Probability of keeping an attention weight; 0.9 in all published runs."""
    embedding_keep: Probability = 1.0
    """Probability of keeping a word type in a step; all occurrences of a dropped one are zero, and positions are added
    (Gal and Ghahramani, 2016; Merity et al., 2018)."""
    tied: bool = False
    """Whether the output layer has the embedding's matrix (Press and Wolf, 2017; Inan et al., 2017)."""

    def _conditions(self) -> Iterator[str]:
        if self.hidden_size == 1:
            yield "model.hidden_size: expected at least 2 (layer norm needs a deviation), got 1"
        elif self.hidden_size > 1 and self.num_heads > 0 and self.hidden_size % self.num_heads:
            heads = self.num_heads
            yield f"model.hidden_size: expected a multiple of model.num_heads = {heads}, got {self.hidden_size}"

    def parameter_count(self, vocab_size: int) -> int:
        """Return the exact number of trained parameters.

        V H + L (4 (H^2 + H) + 2 H M + M + H + 4 H) + 2 H + H V + V, without H V if tied.
        """
        v, h, m = vocab_size, self.hidden_size, self.mlp_size
        block = 4 * (h * h + h) + 2 * h * m + m + h + 4 * h
        return v * h + self.num_layers * block + 2 * h + (v if self.tied else h * v + v)

    def multiply_adds(self, seq_len: int) -> int:
        """Return the multiply-adds of the forward pass per token, without the output layer.

        L (4 H^2 + 2 H M + 2 T H): attention scores and their weighted sum count over the full T positions, since the
        products are computed before the causal mask.
        """
        h = self.hidden_size
        return self.num_layers * (4 * h * h + 2 * h * self.mlp_size + 2 * seq_len * h)

    def activations(self, tokens: int, seq_len: int) -> int:
        """Return the values that the fused operations keep: I (4 H + L (8 H + M + 2 A T) + 3 M) for I = ``tokens``.

        I (H + 1) more with dropped words.
        """
        h, m = self.hidden_size, self.mlp_size
        values = tokens * (4 * h + self.num_layers * (8 * h + m + 2 * self.num_heads * seq_len) + 3 * m)
        return values + (tokens * (h + 1) if self.embedding_keep < 1 else 0)


@dataclass(frozen=True, kw_only=True)
class CustomConfig(_Model):
    """Your own model: a class in a Python file. docs/guides/own-model.md says what it has to provide."""

    LABELS: ClassVar[Mapping[str, str]] = {"custom": "Own model"}

    arch: Literal["custom"]
    """Architecture."""
    source: str
    """File and class of your own model, relative to the manifest's folder: ``lstm.py:LSTM``."""
    arguments: Annotated[Arguments, Valid("a table of arguments", check=check_arguments)] = field(
        default_factory=Arguments
    )
    """Keyword arguments of the class: ``{ hidden_size = 512 }``. Lists multiply in a ``[[grid]]``. In ``--set`` and
    filters a key is ``model.arguments.hidden_size``."""
    files: Annotated[tuple[Annotated[str, Valid(least=1)], ...], Valid("a list of names")] = ()
    """Files that ``source`` imports, relative to the manifest's folder: ``["cells.py"]``."""
    sha256: str | None = None
    """Digest of the files of your own model; filled in when the manifest is read."""

    def _conditions(self) -> Iterator[str]:
        if not re.fullmatch(r"[^:\0]+\.py:[^\W\d]\w*", self.source):
            yield f'model.source: expected FILE.py:CLASS, such as "lstm.py:LSTM", got {show(self.source)}'
        elif problem := _outside(self.file):
            yield f"model.source: {problem}"
        for name in self.files:
            if problem := _outside(name):
                yield f"model.files: {problem}"

    @property
    def file(self) -> str:
        """The file of the class, relative to the manifest's folder."""
        return self.source.rpartition(CLASS_SEPARATOR)[0]

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.source.rpartition(CLASS_SEPARATOR)[2]

    @property
    def kind(self) -> str:
        """The architecture's key in tables and figures: each file and class is an architecture of its own."""
        return self.source


def _outside(name: str) -> str | None:
    """Return what is wrong with a path that has to stay below the manifest's folder; ``None``: nothing."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        return f"expected a file below the manifest's folder, got {show(name)}"
    return None


BuiltInConfig: TypeAlias = RecurrentConfig | TransformerConfig
"""Architectures that come with seqlm: their sizes follow from their configuration."""

ModelConfig: TypeAlias = BuiltInConfig | CustomConfig

ARCHITECTURES = (RecurrentConfig, TransformerConfig, CustomConfig)
"""All of them, in the order of reports."""


def carries_state(arch: str) -> bool:
    """Return whether models of an architecture carry a state from window to window. True if it is unknown."""
    return next((variant.CARRIES_STATE for variant in ARCHITECTURES if arch in variant.LABELS), True)
