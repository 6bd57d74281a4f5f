"""The files of a run besides its attempts: origin, result, decisions of its search, what a canary has measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from seqlm.reading import LEAST_PERPLEXITY, MOST_EPOCHS
from seqlm.records.base import Record, Tell
from seqlm.records.comparisons import ComparisonVerdict
from seqlm.resources import Resources
from seqlm.schema import Count, NotNegative, Valid

FREQUENCY_RANKS = (10, 100)
"""The last ranks of the first classes of tokens by their frequency in the training text."""
Epochs: TypeAlias = Annotated[int, Valid("a number of epochs", least=0, most=MOST_EPOCHS)]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GitState(Record):
    """The state of a git checkout."""

    commit: str | None = None
    """``None``: it was no checkout."""
    dirty: bool = False
    """Whether files of the code differed from the commit."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CodePlace(Record):
    """Where the code of a launch is."""

    path: str | None = None
    live: bool = False
    """Whether workers run from the working tree itself."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Provenance(Record):
    """``provenance.json``: who launched a run, with what code, and as which entry of a manifest. ``None``: unknown."""

    FILE: ClassVar[str] = "provenance.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        {"study", "launched_at", "host", "user", "git", "code", "name", "entry", "order", "first_seed", "label"}
    )

    study: str | None = None
    launched_at: str | None = None
    host: str | None = None
    user: str | None = None
    git: GitState | None = None
    code: CodePlace | None = None
    name: str | None = None
    """The run's name in the manifest."""
    entry: str | None = None
    """The name before ``--set``."""
    order: int | None = None
    """Place in the manifest, from 0."""
    first_seed: int | None = None
    """Of a final seed of a search: the seed of the run that it follows. ``None``: it follows none."""
    command: tuple[str, ...] = ()
    """The command line that launches this run alone."""
    resources: Resources = field(default_factory=Resources)
    data: str | None = None
    """Path of the corpus. ``None``: the default place."""
    label: str | None = None
    """What a report calls the user's own model, if it says so itself."""

    def of_launch(self, launch: "Provenance") -> Self:
        """Return this part of a run together with the part that is common to all runs of its launch."""
        common = {name: value for name, value in vars(launch).items() if getattr(self, name) is None}
        return replace(self, **common)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(Record):
    """``result.json`` of a run that is done. Losses are in nats per token; a number that is not finite is ``None``.

    A field that is ``None`` for another reason is not known. A perplexity that is no exponential of a loss above 0 is
    read as ``None``.
    """

    FILE: ClassVar[str] = "result.json"
    PERPLEXITIES: ClassVar = ("best_train_ppl", "best_val_ppl", "final_train_ppl", "final_val_ppl", "test_ppl")

    epochs: Epochs | None = None
    """Epochs that the run has gone. ``None``: it was no training."""
    best_epoch: NotNegative | None = None
    """The epoch with the lowest validation loss, from 0."""
    best_train_ppl: float | None = None
    best_val_loss: float | None = None
    best_val_ppl: float | None = None
    final_epoch: NotNegative | None = None
    final_train_ppl: float | None = None
    final_val_ppl: float | None = None
    test_loss: float | None = None
    """With the parameters of the best epoch. Likewise ``test_ppl``."""
    test_ppl: float | None = None
    val_tokens: NotNegative | None = None
    """Tokens of the validation text that were scored. Likewise ``test_tokens``."""
    test_tokens: NotNegative | None = None
    train_slice_loss: float | None = None
    """On the beginning of the training text, as long as the validation text, without dropout and with the parameters of
    the best epoch."""
    train_slice_tokens: NotNegative | None = None
    frequency_losses: tuple[float | None, ...] = ()
    """Validation loss with the parameters of the best epoch, of the tokens that are among the 10 most frequent ones of
    the training text, of the 90 next, and of all others. ``None``: there are none."""
    frequency_tokens: tuple[NotNegative, ...] = ()
    """How many tokens those are."""
    best_val_bits_per_byte: float | None = None
    test_bits_per_byte: float | None = None
    lossless: bool | None = None
    """Whether the tokens determine the texts of valid and test, white space aside."""
    parameters: NotNegative | None = None
    elapsed_seconds: float | None = None
    """Of all epochs."""
    attempt: int | None = None
    micro_batches: Count | None = None
    corpus_sha256: str | None = None
    finished_at: str | None = None

    @classmethod
    def read_file(cls, path: Path, tell: Tell | None = None) -> Self | None:
        """Return the result in a file. Arguments and errors as of :meth:`Record.read_file`."""
        result = super().read_file(path, tell)
        if result is None:
            return None
        for name in cls.PERPLEXITIES:
            perplexity = getattr(result, name)
            if perplexity is not None and perplexity < LEAST_PERPLEXITY:
                cleared: dict[str, Any] = {name: None}
                result = replace(result, **cleared)
        return result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BehaviourResult(Record):
    """``result.json`` of a behaviour job."""

    FILE: ClassVar[str] = "result.json"

    version: int | None = None
    """Of the files that the job has written (:data:`seqlm.rundir.BEHAVIOUR_VERSION`)."""
    checkpoint_sha256: str | None = None
    panel_sha256: tuple[str | None, ...] = ()
    """Digest of the checkpoint of each run of the panel. ``None``: there is no such file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    """Words of the prompt that the vocabulary lacks."""
    attempt: int | None = None
    finished_at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Finding(Record):
    """What an audit has found about one part of a run."""

    part: str = ""
    """``records``, ``scores``, ``epoch 11`` or ``epochs 1-40``."""
    verdict: str = ""
    """``equal``; ``rounding``: equal up to rounding, until a step that ``text`` may name; ``differs``; or ``unknown``:
    it could not be checked."""
    text: str = ""
    trained_on: str | None = None
    """The node of the run. ``None``: not recorded, or nothing was trained again. Likewise ``node``."""
    node: str | None = None
    """The node of the audit."""
    digest: str | None = None
    """SHA-256 of what was computed here: losses, norms and weights. ``None``: as for ``node``."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AuditResult(Record):
    """``result.json`` of the job that audits a run."""

    FILE: ClassVar[str] = "result.json"

    findings: tuple[Finding, ...] = ()
    attempt: int | None = None
    finished_at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AuditFile(Record):
    """``audits/000001/audit.json``: what an audit checks. Written once, before its jobs start."""

    FILE: ClassVar[str] = "audit.json"

    records: Mapping[str, Finding] = field(default_factory=dict)
    """What the records of each run show, by the id of the run."""
    share: float | None = None
    """Of all steps, to be trained again. ``None``: nothing is."""
    whole: bool = False
    """Whether all epochs are trained again."""
    seed: int | None = None
    """Of the draw. ``None``: nothing was drawn."""
    drawn: int = 0
    """Epochs that are to be trained again; with ``whole``, runs."""
    possible: int = 0
    """Those from which they were drawn."""
    epochs: int = 0
    """All epochs of the runs."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AuditEnd(Record):
    """``audits/000001/end.json``: its findings were shown. Without it, the same command goes on with the audit."""

    FILE: ClassVar[str] = "end.json"

    at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CanaryResult(Record):
    """``canary.json``: what a canary has measured."""

    FILE: ClassVar[str] = "canary.json"

    steps: Count | None = None
    step_seconds: float = 0.0
    """Median time of a step."""
    train_tokens_per_second: float | None = None
    peak_memory_bytes: float = 0
    """Of the rank that needs most. Likewise the memory below."""
    reserved_memory_bytes: float | None = None
    """What the process held of the GPU for tensors. ``None``: it had no GPU. Likewise the memory below."""
    graph_memory_bytes: float | None = None
    """What the steps took of the GPU besides: graphs, workspaces."""
    device: str | None = None
    device_memory_bytes: float | None = None
    """Memory of the GPU."""
    ranks: Count | None = None
    threads: Count | None = None
    attempt: int = 0
    finished_at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rung(Record):
    """``rung-3.json``: what a search has decided about a run at a rung, with the evidence."""

    FILE: ClassVar[str] = "rung.json"

    decision: str | None = None
    """``goes on`` or ``stopped``."""
    metric: str | None = None
    rung: int | None = None
    """Finished epochs."""
    value: float | None = None
    """Value of this run. ``None``: it is not finite, the worst."""
    rank: int | None = None
    """Place of the run, from 1 for the lowest value."""
    of: int | None = None
    """Number of runs that had reached the rung."""
    keep: float | None = None
    """Share that goes on."""
    goes_on: int | None = None
    """Number of places that go on."""
    cut: float | None = None
    """Highest value that goes on. ``None``: not finite."""
    min_runs: int | None = None
    guessing: float | None = None
    """Value of a model that gives each token the same probability."""
    group: Mapping[str, Any] | None = None
    """Dotted key -> value, in which the runs that were compared are equal."""
    attempt: int | None = None
    """Attempt that made the decision."""
    at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Settled(Record):
    """``settled.json``: that all comparisons of a run were decided before its end, with the evidence."""

    FILE: ClassVar[str] = "settled.json"

    reason: str = ""
    """The verdicts, in one line."""
    verdicts: tuple[ComparisonVerdict, ...] = ()
    attempt: int | None = None
    """Attempt that made the decision."""
    at: str | None = None
