"""The training protocol of the study, for every architecture alike (docs/explanation/study.md has it in prose).

:meth:`Trainer.events` is the only loop over steps. It yields what has happened. Saving, progress, searches and canaries
follow its events (:mod:`seqlm.training.train`).
"""

import itertools
import math
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.batches import columns, scored_columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.layout import number_of_windows, own_columns, require_windows
from seqlm.environment import CAPTURE_RANKS
from seqlm.errors import DivergedError
from seqlm.models import build_model
from seqlm.models.language_model import FusedModel
from seqlm.models.products import use_precision
from seqlm.models.state import State, join_states, map_state, rebuilt, split_state, tensors_of
from seqlm.optimizers import build_optimizer, restore_optimizer, set_learning_rate
from seqlm.trace import StepRow
from seqlm.training.capture import Captured, CaptureError, generators, is_captured
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.distributed import Rank
from seqlm.training.records import Phases, TokenLoss, epoch_record, require_perplexity
from seqlm.training.step import GPU_STEPS, StepResults, TrainingStep


@dataclass(frozen=True)
class EpochBegins:
    """An epoch begins, or continues after a resume."""


@dataclass(frozen=True)
class StepsDone:
    """All steps so far have finite losses. All ranks get the same answers to what they have asked for."""

    rows: Sequence[StepRow]
    """Of the steps since the last such event."""
    stop: bool
    save: bool


@dataclass(frozen=True)
class Diverged:
    """The loss or gradient norm of the last of ``rows`` is not finite. The next event is ``DivergedError``."""

    rows: Sequence[StepRow]


@dataclass(frozen=True)
class EpochEnded:
    """An epoch has been trained and validated: the last one of the history."""


Event: TypeAlias = EpochBegins | StepsDone | Diverged | EpochEnded


@final
class Trainer:
    """One run's training on one of its ranks: its model and optimizer, and how far it is.

    Each rank holds its own columns of the global batch and their recurrent state. The dropout masks of an epoch come
    from a generator seeded by (seed, epoch, rank), whose state is part of a checkpoint. So an interrupted run ends in
    the parameters of an uninterrupted one, bit for bit on the same devices.

    ``attempt`` is the number of this attempt, for the records of epochs, and ``micro_batches`` the parts in which a
    step takes the rank's columns. ``model_dir`` has the files of the user's own model.

    Raises:
        DataError, UsageError: a split is too small for the batch, or there are more ranks than columns.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        *,
        rank: Rank,
        attempt: int = 1,
        micro_batches: int = 1,
        model_dir: Path | None = None,
    ) -> None:
        self.config, self.corpus = config, corpus
        self.rank, self.attempt, self.micro_batches = rank, attempt, micro_batches
        train = config.train
        for split, tokens in corpus.tokens.items():
            require_windows(split, tokens, *config.least_text(split))
        text = corpus.splits["train"]
        self.columns = columns(text, train.batch_size, rank.index, rank.world_size, device=rank.device)
        self._scored = {split: self._scored_columns(corpus.splits[split]) for split in ("valid", "test")}
        self._window = config.eval.seq_len or train.seq_len
        self.steps = number_of_windows(corpus.tokens["train"], train.batch_size, train.seq_len)
        self.tokens_per_step = train.seq_len * train.batch_size  # of the whole global batch
        torch.manual_seed(config.seed)
        dtype = use_precision(train.precision, rank.device)
        self.model = build_model(config.model, len(corpus.vocabulary), train.seq_len, dtype, model_dir)
        self.model.to(rank.device)
        self.optimizer = build_optimizer(config.optim, self.model.parameters())
        self.lr = config.optim.lr
        self._mask_key = torch.zeros((), dtype=torch.int64, device=rank.device)
        if isinstance(self.model, FusedModel):
            self.model.mask_key = self._mask_key
        capture = is_captured(rank)
        self.take_step = TrainingStep(
            self.model,
            self.optimizer,
            clip_norm=train.clip_norm,
            tokens_per_step=self.tokens_per_step,
            rank=rank,
            flat=CAPTURE_RANKS.read(),
            capture=capture,
            micro_batches=micro_batches,
        )
        self.window_loss: Callable[[Tensor, Tensor, State], tuple[Tensor, State]] = (
            Captured(self.model.loss, self.model) if capture else self.model.loss
        )
        self.phases = Phases()
        self.history: list[dict[str, Any]] = []
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        """Reset to the start of ``epoch``."""
        self.epoch, self.step = epoch, 0
        self.total = TokenLoss()
        self.seconds = 0.0
        self.state: State = self.model.initial_state(self.columns.shape[1])

    def prepare(self) -> str | None:
        """Prepare the steps, and capture the windows of all evaluations as CUDA graphs if steps are captured.

        Called before the first step of each attempt, so that all attempts decide in the same way. If anything cannot be
        captured, on any rank, nothing is replayed. Return a line on that for the log. ``None``: nothing has failed.

        Raises:
            torch.cuda.OutOfMemoryError, RuntimeError: the GPU has too little memory, or is broken.
        """
        problem = None
        try:
            self.model.train()
            inputs, targets = next(windows(self.columns, self.config.train.seq_len))
            self.take_step.prepare(inputs, targets, self.model.initial_state(inputs.shape[1]))
            if isinstance(self.window_loss, Captured):
                self._record_windows(self.window_loss)
        except CaptureError as error:
            problem = str(error)
        problems: list[str | None] = [self.rank.from_rank(index, problem) for index in range(self.rank.world_size)]
        problem = next(filter(None, problems), None)
        if problem is None:
            return None
        self.take_step.never_capture()
        self.window_loss = self.model.loss
        return f"no CUDA graph: each operation of a step is launched on its own, because a capture fails with {problem}"

    # -- the protocol ------------------------------------------------------------------------------------------

    def events(
        self,
        epochs: int,
        *,
        asks: Callable[[], tuple[bool, bool]] = lambda: (False, False),
        read_each: bool = False,
        before_window: Callable[[], object] = lambda: None,
    ) -> Iterator[Event]:
        """Train until ``epochs`` epochs are finished. May be left after any event, and continued by another call.

        Args:
            epochs: in all.
            asks: whether this rank wants to stop, and to save. Asked before each :class:`StepsDone`.
            read_each: yield after each step, also on a GPU, which then has to finish it.
            before_window: called before each window of a validation.

        Raises:
            DivergedError: a loss or gradient norm is not finite.
        """
        self.phases.end("start_up")
        while self.epoch < epochs:
            self.set_step(self.epoch, min(self.step, self.steps - 1))  # all of them may be done
            yield EpochBegins()
            self.phases.end("checkpoint")
            if self.step == 0:
                torch.manual_seed(mask_seed(self.config.seed, self.epoch, self.rank.index))
            yield from self._train_epoch(asks, read_each=read_each)
            started = time.perf_counter()
            valid = self.evaluate("valid", before_window)
            require_perplexity(valid, f"after epoch {self.epoch + 1}")
            self.phases.end("validation")
            self.history.append(epoch_record(self, valid, time.perf_counter() - started))
            self._begin_epoch(self.epoch + 1)
            yield EpochEnded()
            self.phases.end("checkpoint")

    def _train_epoch(self, asks: Callable[[], tuple[bool, bool]], *, read_each: bool) -> Iterator[StepsDone | Diverged]:
        """Take the steps of the epoch that are still to do."""
        self.model.train()
        results = StepResults(self.rank, most=1 if read_each or self.rank.device.type == "cpu" else GPU_STEPS)
        started, before = time.perf_counter(), self.seconds
        if self.step == self.steps:
            return  # it was stopped after the last step, before the validation
        read_at = started
        seq_len = self.config.train.seq_len
        for inputs, targets in windows(self.columns[self.step * seq_len :], seq_len):
            self.phases.end("data")
            self.set_step(self.epoch, self.step)
            result = self.take_step(inputs, targets, self.state)
            self.state = result.state
            self.step += 1
            results.add(result)
            self.phases.end("step")
            if results.are_full or self.step == self.steps:
                losses, (stop, save) = results.read(*asks())
                now = self.phases.end("waiting")
                rows = [(nats / self.tokens_per_step, norm, (now - read_at) / len(losses)) for nats, norm in losses]
                for number, (mean, norm, _) in enumerate(rows, start=1):
                    if not (math.isfinite(mean) and math.isfinite(norm)):
                        yield Diverged(rows[:number])
                        raise DivergedError(
                            f"the loss of a step is {mean:g} with gradient norm {norm:g}; lower optim.lr"
                        )
                for loss_nats, _ in losses:
                    self.total.add(loss_nats, self.tokens_per_step)
                self.seconds = before + now - started
                yield StepsDone(rows=rows, stop=stop, save=save)
                read_at = self.phases.end("checkpoint")

    def set_step(self, epoch: int, step: int) -> None:
        """Set what the number of a step decides: the learning rate, and the key of masks that a step shares over ranks.

        Both are pure functions of the configuration, so they are the same after a resume. Nothing waits for a GPU.
        """
        lr = self.config.optim.learning_rate(epoch, step, self.steps)
        if lr != self.lr:
            set_learning_rate(self.optimizer, lr)
            self.lr = lr
        self._mask_key.fill_(step_key(self.config.seed, epoch, step))

    # -- losses ------------------------------------------------------------------------------------------------

    def _scored_columns(self, ids: memoryview) -> list[Tensor]:
        """Return the columns (length, columns) in which this rank scores a split, in micro-batches."""
        rank = self.rank
        found = scored_columns(self.config, ids, rank.index, rank.world_size, device=rank.device)
        return [part for tensor in found for part in split_state(tensor, self.micro_batches, axis=1)]

    def evaluate(
        self, split: str, before_window: Callable[[], object] = lambda: None, *, most: int | None = None
    ) -> TokenLoss:
        """Return the loss on ``valid`` or ``test`` with the present parameters and without dropout, over all ranks.

        The state is zero at the start of each column and carried from window to window. ``before_window`` is called
        before each window, as often on every rank; what it raises ends the evaluation. With ``most``, only that many
        windows of each column are evaluated.
        """
        total = torch.zeros(2, dtype=torch.float64, device=self.rank.device)
        for targets, loss_nats in self._scores(self._scored[split], self.window_loss, before_window, most):
            total[0] += loss_nats
            total[1] += targets.numel()
        loss_nats, tokens = self.rank.sum(total).tolist()
        return TokenLoss(loss_nats=loss_nats, tokens=int(tokens))

    def token_losses(self, ids: memoryview, before_window: Callable[[], object] = lambda: None) -> Tensor:
        """Return the loss of each token of a text in nats, as float64 on the CPU; NaN: it is not predicted.

        The text is scored as by :meth:`evaluate`, and ``before_window`` is called as there. Every rank gets all losses.
        """
        numbers = memoryview(array("i", range(len(ids))))  # where the tokens of each column stand in the text
        losses, known = torch.zeros(2, len(ids), dtype=torch.float64, device=self.rank.device)
        scores = self._scores(self._scored_columns(ids), self.model.token_losses, before_window)
        found = (windows(part, self._window, last_shorter=True) for part in self._scored_columns(numbers))
        places = (targets.flatten() for part in found for _, targets in part if targets.numel())
        for (_, of_window), place in zip(scores, places, strict=True):
            losses[place] = of_window.flatten()
            known[place] = 1
        losses, known = self.rank.sum(torch.stack([losses, known]))
        return torch.where(known > 0, losses, math.nan).cpu()

    @torch.no_grad()
    def _scores(
        self,
        parts: Iterable[Tensor],
        loss: Callable[[Tensor, Tensor, State], tuple[Tensor, State]],
        before_window: Callable[[], object],
        most: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the targets of each window of some columns that has any, and their ``loss``, without dropout.

        The next iteration may overwrite a loss.
        """
        self.model.eval()
        for part in parts:
            state = self.model.initial_state(part.shape[1])
            for inputs, targets in itertools.islice(windows(part, self._window, last_shorter=True), most):
                before_window()
                if targets.numel():
                    found, state = loss(inputs, targets, state)
                    yield targets, found

    @torch.no_grad()
    def _record_windows(self, window_loss: Captured[Any]) -> None:
        """Capture the windows of every shape that an evaluation has."""
        self.model.eval()
        for part in itertools.chain.from_iterable(self._scored.values()):
            state = self.model.initial_state(part.shape[1])
            for inputs, targets in windows(part, self._window, last_shorter=True):
                if targets.numel():
                    window_loss.record(inputs, targets, state)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return where the training stands, between two steps, with its own tensors. Every rank gives its part."""
        within = self.step > 0
        on_cpu, on_device = generators(self.rank.device)
        gathered = [self.rank.gather(tensor) for tensor in tensors_of(self.state)] if within else []
        ranks = range(self.rank.world_size) if within else ()
        position = Position(
            epoch=self.epoch,
            step=self.step,
            loss_nats=self.total.loss_nats,
            tokens=self.total.tokens,
            seconds=self.seconds,
            states=[rebuilt(self.state, iter([tensors[index] for tensors in gathered])) for index in ranks],
            generators=self.rank.gather(on_device.get_state()) if within else [],
            cpu_generators=self.rank.gather(on_cpu.get_state()) if within else [],
            ranks=self.rank.world_size,
            device=self.rank.device.type,
        )
        return Checkpoint(
            fingerprint=self.config.fingerprint(),
            corpus_sha256=self.corpus.sha256,
            vocabulary=list(self.corpus.vocabulary),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=list(self.history),
            position=position,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint stands."""
        self.model.load_state_dict(checkpoint.model)
        assert checkpoint.optimizer is not None, "last.pt has the optimizer's state"
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.history = checkpoint.history
        position = checkpoint.position
        self._begin_epoch(position.epoch)
        if position.step:
            self.step, self.seconds = position.step, position.seconds
            self.total = TokenLoss(position.loss_nats, position.tokens)
            self._restore_within_epoch(position)

    def _restore_within_epoch(self, position: Position) -> None:
        """Restore the random generators, and the state of this rank's columns.

        With another number of ranks, another type of device, or a GPU with other multiprocessors, the masks of the rest
        of the epoch differ from those of an uninterrupted run.
        """
        rank, axis = self.rank, self.model.batch_axis
        own = own_columns(self.config.train.batch_size, rank.index, rank.world_size)
        self.state = map_state(
            lambda tensor: tensor.narrow(axis, own.start, len(own)).to(rank.device).contiguous(),
            join_states(position.states, axis),
        )
        if (position.ranks, position.device) == (rank.world_size, rank.device.type):
            on_cpu, on_device = generators(rank.device)
            on_device.set_state(position.generators[rank.index])
            if position.cpu_generators:
                on_cpu.set_state(position.cpu_generators[rank.index])
        else:
            torch.manual_seed(mask_seed(self.config.seed, position.epoch, rank.index) ^ position.step)


def mask_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of the dropout masks of one epoch on one rank."""
    # Odd multipliers keep the seeds of neighbouring (epoch, rank) pairs apart; the generator scrambles the rest.
    return (seed + 0x9E3779B97F4A7C15 * (epoch + 1) + 0xC2B2AE3D27D4EB4F * rank) % 2**63


def step_key(seed: int, epoch: int, step: int) -> int:
    """Return the key of a step's masks, from -2^63 to 2^63 - 1: SplitMix64 of one number after the other."""
    key = 0
    for number in (seed, epoch, step):
        key = (key ^ number) + 0x9E3779B97F4A7C15 & 2**64 - 1
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        key = (key ^ key >> 27) * 0x94D049BB133111EB & 2**64 - 1
        key ^= key >> 31
    return key - 2**64 if key >= 2**63 else key
