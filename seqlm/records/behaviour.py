"""How the model of a run behaves: ``behaviour.json``, and the lines of ``samples.jsonl``.

A number that is ``None`` is not finite. A part with the default ``None`` is not in files of version 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from seqlm.records.base import Record
from seqlm.schema import Count, NotNegative, Valid

Numbers: TypeAlias = tuple[float | None, ...]
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BehaviourSettings(Record):
    """How much is computed, and how the texts are drawn."""

    window: Count
    """Tokens of the windows over which the loss at each time step is averaged; default twice ``seq_len``."""
    samples: Count = 10
    """Texts of each length."""
    lengths: Annotated[tuple[Count, ...], Valid("a list of whole numbers, each at least 1", least=1)]
    """Tokens of the texts, a random first one included and a prompt not; default ``seq_len`` and twice that."""
    temperature: Annotated[float, Valid("a number above 0", above=0)] = 1.0
    """The logits are divided by it before a token is drawn; 1 is the model's own distribution."""
    prompt: str | None = None
    """The start of each text. ``None``: one random token for each."""
    gradient_columns: Count = 20
    """Sequences over which gradients are averaged: as many for every model, whatever its batch size."""
    seed: Annotated[int, Valid("a whole number from 0 to 2^32 - 1", least=0, most=_LARGEST_SEED)]
    """Decides every draw; default the seed of the run."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepLossesPart(Record):
    """Mean of -log p(target) at each step of a window, in nats, over tokens of the validation text."""

    split: Literal["valid"] = "valid"
    window: Count
    windows: Count
    """Windows of each column, over which ``carried_state`` is a mean. Of version 3, ``zero_state`` too."""
    columns: Count
    zero_state: Numbers
    """With the state zero at the start of the window. All steps predict the same tokens: a window starts at each."""
    carried_state: Numbers
    """With the state that the window before has left."""
    tokens: Count | None = None
    """Successive tokens over which each step of ``zero_state`` is a mean, from the token ``window`` of the text on."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GradientNormsPart(Record):
    """Norms at each time step of the gradient of the last step's loss, over the sequences of a minibatch."""

    split: Literal["train"] = "train"
    window: Count
    columns: Count
    overall: Numbers
    mean_of_norms: Numbers
    layers: tuple[Numbers, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PanelMember(Record):
    """A run whose model rates the samples."""

    id: str
    name: str
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LossesPart(Record):
    """What is in ``losses.f32``: little-endian float32, in nats.

    For each of ``blocks`` blocks of 100 successive tokens, the mean losses at the steps of a window, whose mean over
    all tokens is ``zero_state``.
    """

    blocks: NotNegative
    sha256: str
    """Digest of the file."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MeasuresPart(Record):
    """What can be counted in the tokens of a text."""

    perplexity_own: float | None
    """Under the model itself."""
    rating: float | None = None
    """Mean of -log p over the panel and the tokens that are not ``<unk>``, in nats. ``None``: there are none."""
    known_pairs: float | None = None
    """Share of the pairs of successive tokens that the training text has. ``None``: there are none."""
    known_triples: float | None = None
    repetition: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    unk_share: float | None
    longest_copy: NotNegative
    copied: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BehaviourFile(Record):
    """``behaviour.json``: how the model of a run behaves."""

    FILE: ClassVar[str] = "behaviour.json"

    version: int
    """Of this file and of ``samples.jsonl`` (:data:`seqlm.rundir.BEHAVIOUR_VERSION`)."""
    checkpoint_sha256: str
    best_epoch: NotNegative
    """Epoch of the parameters, from 0."""
    settings: BehaviourSettings
    device: str
    seconds: float | None
    """Time that it took."""
    seq_len: Count
    """Tokens of a window in training."""
    level: str
    """``word``, ``char`` or ``token``."""
    corpus: str
    loss_per_step: StepLossesPart
    gradient_norms: GradientNormsPart | None
    """``None``: the model shows no hidden states, so there are no gradients by them."""
    losses: LossesPart | None = None
    panel: tuple[PanelMember, ...] | None = None
    """The runs that rate the samples; may be empty."""
    held_out: tuple[MeasuresPart, ...] | None = None
    """Measures of pieces of the validation text, one as long as each sample. Empty: the text is too short."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SampleLine(Record):
    """A line of ``samples.jsonl``: a text that a model has written."""

    FILE: ClassVar[str] = "samples.jsonl"

    index: NotNegative
    """Its place, from 0."""
    length: Count
    """Tokens as asked for."""
    prompt: tuple[str, ...]
    """The tokens that the model was given."""
    tokens: Annotated[tuple[str, ...], Valid("a list of texts, at least one", least=1)]
    """The tokens that it drew."""
    entropy: Numbers
    """Of the distribution that each was drawn from, in nats."""
    log_prob: Numbers
    """Natural logarithm of each one's probability, at temperature 1."""
    panel: tuple[Numbers, ...] | None = None
    """The same under each run of the panel."""
    ends_known_triple: tuple[bool, ...] | None = None
    """Whether each token is the last of a triple of drawn tokens that the training text has."""
    measures: MeasuresPart
