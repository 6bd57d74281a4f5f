"""Estimate a run's parameters, operations, memory, disk and time from its configuration and the speeds of earlier runs.

Symbols: B batch, T window (``seq_len``), V vocabulary, P parameters. All functions are pure except
:func:`earlier_throughput`, which reads run directories.
"""

import bisect
import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.manifests.policy import Policy
from jobs.plan.own_models import model_sizes
from seqlm.architectures import CustomConfig
from seqlm.config import DataConfig, RunConfig
from seqlm.data.corpus import CorpusFacts
from seqlm.data.layout import number_of_windows
from seqlm.errors import FileError
from seqlm.reading import confine, finite, is_file, is_mine, listed, one_look
from seqlm.records.runs import CanaryResult
from seqlm.rundir import CANARY_FOLDER, RunDirectory, study_record_file

FLOAT_BYTES = 4
"""Bytes of a float32. Parameters, gradients and optimizer state are all float32."""
CHUNK_TOKENS = 1024
"""Tokens whose logits the fused loss holds at once. Must equal the constant in ``seqlm.models.output_loss``, which
needs torch and is not imported here."""
CHECKPOINT_BYTES_PER_WORD = 18
"""Bytes per word of the vocabulary in a checkpoint: a word of 8 letters and the file format's overhead."""
LEAST_SPEED, MOST_SPEED = 1e-3, 1e12
"""Training tokens per second that a run can have measured."""
MOST_MEMORY = 2**50
"""Bytes of memory that a rank or node can have used."""
MOST_APART = 100
"""Highest ratio of work per time step at which the FLOP/s of one run are used for another. A toy's are far lower."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed and peak memory of earlier runs and canaries."""

    speeds: Mapping[RunConfig, float] = field(default_factory=dict)
    """Configuration -> training tokens per second."""
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Fingerprint -> peak memory of one rank of that configuration."""
    _relatives: dict[tuple[str, DataConfig, int], list[tuple[int, float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def relatives(self, arch: str, data: DataConfig, vocab_size: int) -> list[tuple[int, float]]:
        """Return (work per time step, FLOP/s) of the earlier runs of an architecture, sorted.

        Work per time step is FLOPs per token times batch. ``vocab_size`` is the vocabulary size of ``data``. The result
        is cached, since planning calls this for each run.
        """
        key = (arch, replace(data, sha256=None), vocab_size)
        if key not in self._relatives:
            found = []
            for config, speed in self.speeds.items():
                # An edited text has about as many words as before. Of another text only a configured size is known.
                vocab = vocab_size if replace(config.data, sha256=None) == key[1] else config.data.vocab_size
                if config.model.kind == arch and vocab is not None and (flops := flops_per_token(config, vocab)):
                    found.append((flops * config.train.batch_size, flops * speed))
            self._relatives[key] = sorted(found)
        return self._relatives[key]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimates that ``plan`` shows for one run."""

    parameters: int | None
    """``None``, here and below: the sizes of the user's own model have not been measured."""
    flops_per_token: int | None
    memory_bytes: int | None
    """Estimated memory of one rank."""
    measured_memory_bytes: int | None
    """Peak memory of one rank, as measured by an earlier run or canary of this configuration, else ``None``."""
    disk_bytes: int | None
    """Size of the checkpoints of a finished run."""
    flops: float
    """Floating-point operations of the remaining training. 0 if they are unknown."""
    seconds: float | None
    """Time of the remaining training. ``None`` means that no earlier run measured the speed."""


def estimate(
    config: RunConfig,
    facts: CorpusFacts,
    throughput: Throughput,
    ranks: int = 1,
    epochs_done: int = 0,
    policy: Policy = Policy(),  # noqa: B008 -- immutable
) -> Estimate:
    """Return all estimates of one run, which has trained ``epochs_done``, on the corpus described by ``facts``.

    ``policy`` is that of the study: it says which checkpoints a finished run keeps.
    """
    train, tokens, vocab_size = config.train, facts.tokens["train"], facts.vocab_size
    left = train.epochs - epochs_done
    flops = flops_per_token(config, vocab_size)
    seconds = seconds_estimate(config, vocab_size, tokens, throughput)
    kept = {epochs for epochs in policy.keep_epochs if epochs <= train.epochs}
    if policy.keep_last:
        kept.add(train.epochs)  # last.pt, of which a kept epoch is another name
    sizes = [checkpoint_bytes(config, vocab_size, to_resume=to_resume) for to_resume in (False, *[True] * len(kept))]
    return Estimate(
        parameters=parameter_count(config, vocab_size),
        flops_per_token=flops,
        memory_bytes=memory_bytes(config, vocab_size, ranks),
        measured_memory_bytes=throughput.peak_memory_bytes.get(config.fingerprint()),
        disk_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        flops=float((flops or 0) * training_tokens_per_epoch(tokens, train.batch_size, train.seq_len) * left),
        seconds=None if seconds is None else seconds * left / train.epochs,
    )


def parameter_count(config: RunConfig, vocab_size: int) -> int | None:
    """Return the exact number of trained parameters. ``None``: the user's own model has not been measured here."""
    if isinstance(config.model, CustomConfig):
        sizes = model_sizes(config, vocab_size)
        return None if sizes is None else sizes.parameters
    return config.model.parameter_count(vocab_size)


def flops_per_token(config: RunConfig, vocab_size: int) -> int | None:
    """Return the floating-point operations of training per predicted token: matrix products, forward and backward.

    A multiply-add counts as 2, the backward pass as twice the forward pass, and an embedding lookup as 0. ``None``: as
    for :func:`parameter_count`.
    """
    model = config.model
    if isinstance(model, CustomConfig):
        sizes = model_sizes(config, vocab_size)
        return None if sizes is None else sizes.flops_per_token
    return 6 * (model.multiply_adds(config.train.seq_len) + model.hidden_size * vocab_size)


def memory_bytes(config: RunConfig, vocab_size: int, ranks: int = 1) -> int | None:
    """Estimate the bytes of one rank in training. Allocator rounding and library workspaces are not included.

    Counts float32 values for the I = T ceil(B / ranks) tokens of the rank's share of a window::

        parameters, gradients       2 P
        optimizer                   its moments, P each; and P for the buckets of several ranks
        logits                      2 min(I, 1024) V
        activations                 by architecture (:mod:`seqlm.architectures`)

    Of a user's own model, logits and activations are what autograd keeps, as measured, and I V for the gradient of the
    logits. ``None``: it has not been measured here.
    """
    columns = math.ceil(config.train.batch_size / ranks)
    tokens = config.train.seq_len * columns
    if isinstance(config.model, CustomConfig):
        sizes = model_sizes(config, vocab_size)
        if sizes is None:
            return None
        kept = FLOAT_BYTES * tokens * vocab_size + sizes.saved_bytes + sizes.saved_bytes_per_column * columns
    else:
        activations = config.model.activations(tokens, config.train.seq_len)
        kept = FLOAT_BYTES * (2 * min(tokens, CHUNK_TOKENS) * vocab_size + activations)
    copies = 2 + config.optim.moments + (1 if ranks > 1 else 0)
    return FLOAT_BYTES * copies * (parameter_count(config, vocab_size) or 0) + kept


def weights_bytes(config: RunConfig, vocab_size: int) -> int | None:
    """Return the bytes of the parameters, their gradients and the optimizer's moments, which each rank has in training.

    A step needs them however few columns it takes at a time. ``None``: as for :func:`parameter_count`.
    """
    parameters = parameter_count(config, vocab_size)
    return None if parameters is None else FLOAT_BYTES * (2 + config.optim.moments) * parameters


def checkpoint_bytes(config: RunConfig, vocab_size: int, *, to_resume: bool) -> int | None:
    """Return the bytes of ``best.pt`` (parameters and vocabulary), or with ``to_resume`` of ``last.pt``.

    ``last.pt`` also holds the optimizer's moments. The epoch history and the archive's headers, some hundred bytes
    each, are ignored. ``None``: as for :func:`parameter_count`.
    """
    copies, parameters = 1 + (config.optim.moments if to_resume else 0), parameter_count(config, vocab_size)
    return None if parameters is None else FLOAT_BYTES * copies * parameters + CHECKPOINT_BYTES_PER_WORD * vocab_size


def training_tokens_per_epoch(tokens: int, batch_size: int, seq_len: int) -> int:
    """Return the predicted tokens of an epoch over a split of ``tokens`` tokens: whole windows of whole columns."""
    return number_of_windows(tokens, batch_size, seq_len) * seq_len * batch_size


def seconds_estimate(config: RunConfig, vocab_size: int, tokens: int, throughput: Throughput) -> float | None:
    """Estimate the seconds of training all epochs on ``tokens`` training tokens, without validation and start-up.

    Uses the FLOP/s of the earlier run of this architecture whose work per time step (FLOPs per token times batch) is
    closest, at most ``MOST_APART`` times as much or as little: of the same configuration if that has been trained.
    Returns ``None`` if there is no such run.
    """
    train, flops = config.train, flops_per_token(config, vocab_size)
    relatives = throughput.relatives(config.model.kind, config.data, vocab_size)
    if not relatives or flops is None:
        return None
    work = flops * train.batch_size
    place = bisect.bisect_left(relatives, (work, 0.0))
    apart, per_second = min(
        (abs(math.log(other / work)), per_second) for other, per_second in relatives[max(0, place - 1) : place + 1]
    )
    if apart > math.log(MOST_APART):
        return None
    per_epoch = training_tokens_per_epoch(tokens, train.batch_size, train.seq_len)
    return train.epochs * per_epoch * flops / per_second


def earlier_throughput(runs_root: Path) -> Throughput:
    """Return the median speed and the peak memory of the epochs of all runs in this user's studies below ``runs_root``.

    A canary's speed is used only if no epoch of its configuration has been measured. Unreadable folders, and numbers
    that no machine measures, are skipped. Device and number of ranks of the runs are ignored.
    """
    speeds: dict[RunConfig, list[float]] = {}
    tried: dict[RunConfig, list[float]] = {}
    peaks: dict[str, int] = {}
    for study in own_studies(runs_root):
        for folder, found in ((study, speeds), (study / CANARY_FOLDER, tried)):
            for run in map(RunDirectory, within(folder)):
                with contextlib.suppress(FileError):
                    config = run.read_config()
                    canary = run.read_canary() or CanaryResult()
                    measured = [(canary.train_tokens_per_second or 0.0, canary.peak_memory_bytes)]
                    for epoch in run.read_metrics()[0]:
                        speed = finite(epoch.get("train_tokens_per_second")) or 0.0
                        measured.append((speed, finite(epoch.get("peak_memory_bytes")) or 0.0))
                    for speed, peak in measured:
                        if LEAST_SPEED <= speed <= MOST_SPEED:
                            found.setdefault(config, []).append(speed)
                        if 1 <= peak <= MOST_MEMORY:
                            peaks[config.fingerprint()] = max(int(peak), peaks.get(config.fingerprint(), 0))
    medians = {config: statistics.median(found) for config, found in {**tried, **speeds}.items()}
    return Throughput(speeds=medians, peak_memory_bytes=peaks)


def own_studies(runs_root: Path) -> Iterator[Path]:
    """Yield the folders below ``runs_root`` that belong to this user, each for one look at it.

    What others have measured, or say that they have, decides nothing about this user's runs.
    """
    for study in within(runs_root):
        if is_mine(study):
            if is_file(study_record_file(study)):  # with --runs-dir . there are other folders, too
                confine(study)
            with one_look():
                yield study


def within(folder: Path) -> list[Path]:
    """Return what is in a folder; empty if it cannot be read."""
    with contextlib.suppress(FileError):
        return listed(folder)
    return []
