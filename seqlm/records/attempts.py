"""The files of one attempt of a run, ``attempts/0001/``. What happened is written once and never edited."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from seqlm.records.base import Record
from seqlm.resources import Resources
from seqlm.schema import Count, NotNegative, Valid

Amount: TypeAlias = Annotated[float, Valid("a number, 0 or more", least=0)]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LauncherProcess(Record):
    """The process of a launcher or job, as the files of a study name it."""

    pid: int | None = None
    host: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Start(Record):
    """``start.json``: who follows an attempt, and with what it starts. An attempt that a user started has none."""

    FILE: ClassVar[str] = "start.json"

    request: int | None = None
    """Number of the request that the attempt is about. ``None``: there is none."""
    backend: str | None = None
    job_id: str | None = None
    """The job of a scheduler. ``None``: none has started the attempt."""
    node: str | None = None
    """The only node of the attempt. ``None``: it has several, or the backend does not name it."""
    memory_mb: int | None = None
    """Memory of each node of the job, in MiB. ``None``: unknown."""
    job_start: str | None = None
    """The start of that job, such as ``0-3/2``: the second one of job 3 of array 0 (:mod:`jobs.scheduled.slot`)."""
    launcher: LauncherProcess | None = None
    resources: Resources = field(default_factory=Resources)
    micro_batches: Count = 1
    """Parts into which each rank cuts the columns of a step."""
    argv: tuple[str, ...] = ()
    """Command line of a rank."""
    code: str = ""
    """Folder of the code."""
    started_at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RankEnd(Record):
    """``end.json``, ``end-1.json``, ...: how a rank of an attempt ended, in its own words."""

    FILE: ClassVar[str] = "end.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        {"progress", "kind", "message", "where", "peer_lost", "node", "micro_batches", "before_batch"}
    )

    rank: NotNegative = 0
    ended_at: str | None = None
    progress: tuple[int, int] | None = None
    """Finished epochs that were saved, then steps of the next one. ``None``: unknown."""
    outcome: str | None = None
    """``done``, ``rung``, ``interrupted`` or ``failed``."""
    kind: str | None = None
    """Kind of failure (:data:`seqlm.state.FailureKind`). ``None``: it has not failed. Likewise the fields below."""
    message: str | None = None
    where: str | None = None
    """Where in the code it failed."""
    peer_lost: bool | None = None
    """Whether the rank only lost another one."""
    node: str | None = None
    """The node that failed. ``None``: unknown."""
    micro_batches: Count | None = None
    before_batch: bool | None = None
    """Whether an allocation failed before the first batch: the model and its optimizer alone do not fit."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Exit(Record):
    """``exit.json``: how an attempt ended, as seen from outside, if that adds something to what its ranks say."""

    FILE: ClassVar[str] = "exit.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        {"progress", "where", "micro_batches", "exit_code", "node", "stands"}
    )

    ended_at: str | None = None
    progress: tuple[int, int] | None = None
    """As of :class:`RankEnd`."""
    kind: str | None = None
    """Kind of failure (:data:`seqlm.state.FailureKind`). ``None``: it has not failed."""
    message: str = ""
    where: str | None = None
    """Who found that it had ended."""
    micro_batches: Count | None = None
    exit_code: int | None = None
    """Exit code of the rank that explains the others. Negative: the signal that killed it."""
    node: str | None = None
    """The node that failed. ``None``: not recorded, or one of several."""
    stands: bool | None = None
    """Whether the launcher or job has given the run up."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GpuUsage(Record):
    """What the GPU of a rank did, looked at every few seconds. ``None``: the card or its driver does not say."""

    busy: float | None = None
    """Share of the time in which a kernel ran."""
    peak_memory_bytes: float | None = None
    joules: float | None = None
    throttled: Mapping[str, float] = field(default_factory=dict)
    """Reason for a lower clock -> share of the time."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Usage(Record):
    """What a rank has used since its start, with its children that have ended. ``None``: unknown."""

    seconds: float | None = None
    """Age of the process."""
    cpu_seconds: float | None = None
    peak_resident_bytes: float | None = None
    read_bytes: float | None = None
    written_bytes: float | None = None
    group_peak_bytes: float | None = None
    """Most memory of the control group with the lowest limit, which is ``group_limit_bytes``."""
    group_limit_bytes: float | None = None
    gpu: GpuUsage | Literal["shared"] | None = None
    """``shared``: other runs are on the GPU."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Worker(Record):
    """``worker.json``, ``worker-1.json``, ...: where a rank of an attempt runs, with what, and what it has used."""

    FILE: ClassVar[str] = "worker.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"environment", "resources"})

    host: str | None = None
    node: str | None = None
    """The node, as a cluster names it."""
    pid: int | None = None
    rank: NotNegative = 0
    ranks: Count | None = None
    device: str | None = None
    """Name of the GPU or processor."""
    instructions: str | None = None
    """Of the processor: those that PyTorch uses, and its generation; virtual machines give many processors one name.
    Empty: a GPU."""
    multiprocessors: int | None = None
    """Of the GPU. 0: a processor."""
    matmul: str | None = None
    """Library of float32 matrix products. Empty: a GPU."""
    reduction: str | None = None
    """How several ranks reduce gradients. Empty: one rank."""
    gpu: str | None = None
    """UUID or index of the GPU."""
    gpus: Amount | None = None
    """GPUs of the rank, or its share of one."""
    threads: Count | None = None
    micro_batches: Count | None = None
    code: str | None = None
    """Folder of the code."""
    python: str | None = None
    torch: str | None = None
    started_at: str | None = None
    environment: str | None = None
    """Digest of the :class:`Environment`."""
    resources: Usage | None = None
    """``None``: not yet recorded."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Environment(Record):
    """``environments/DIGEST.json`` of a study: packages, driver and variables of workers. All are equal by digest."""

    FILE: ClassVar[str] = "environment.json"

    python: str | None = None
    system: str | None = None
    driver: str | None = None
    """Version of NVIDIA's driver."""
    cuda: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProgressFile(Record):
    """``progress.json``: how far an attempt is within its epoch, written by its first rank at intervals."""

    FILE: ClassVar[str] = "progress.json"

    epoch: NotNegative | None = None
    """The running epoch, from 0."""
    step: NotNegative | None = None
    """Training steps of that epoch that are done."""
    steps: NotNegative | None = None
    """Training steps of an epoch."""
    train_loss: float | None = None
    """Mean of the epoch so far, in nats per token. ``None``: not finite. Likewise ``train_ppl``, its exponential."""
    train_ppl: float | None = None
    train_tokens_per_second: float | None = None
    phase: str | None = None
    """``train`` or ``valid``."""
    updated_at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HangFile(Record):
    """``hang-0.json``, ...: where a rank is that makes no progress."""

    FILE: ClassVar[str] = "hang-0.json"

    rank: NotNegative = 0
    at: str | None = None
    where: str | None = None
    """Innermost frame of the main thread outside PyTorch."""
    collectives: tuple[tuple[int, str, bool], ...] = ()
    """The last collective operations that the rank has come to: number, name, and whether it is over."""
    threads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each thread -> its frames, the innermost first."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Position(Record):
    """``checkpoints/position.json`` of a run: epoch and step of its last checkpoint, readable without PyTorch."""

    FILE: ClassVar[str] = "position.json"

    epoch: NotNegative = 0
    """Epoch in which training goes on, from 0."""
    step: NotNegative = 0
    """Steps of that epoch that are done."""
    attempt: Count | None = None
    """Attempt that saved the checkpoint."""
    saved_at: str | None = None
