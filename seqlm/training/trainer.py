"""The training protocol of the study, for every architecture alike (docs/explanation/study.md has it in prose)."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.batches import columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.layout import number_of_windows, require_windows
from seqlm.environment import CHECKPOINT_MINUTES, PROGRESS_SECONDS
from seqlm.errors import CheckpointError
from seqlm.files import Guard, unguarded, write_json
from seqlm.models import build_model
from seqlm.models.state import State
from seqlm.rundir import RunDirectory
from seqlm.training import resume
from seqlm.training.attempt import StopRequested, StopSignal
from seqlm.training.background import Background
from seqlm.training.capture import Captured, is_captured
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.checkpoint_files import CheckpointFiles, best_epoch
from seqlm.training.distributed import Rank
from seqlm.training.evaluate import WindowLoss, evaluate, scored_columns
from seqlm.training.optimizers import StepNumber, build_optimizer, restore_optimizer
from seqlm.training.perplexity import TokenLoss
from seqlm.training.precision import use_precision
from seqlm.training.progress import Progress
from seqlm.training.progress_file import ProgressFile
from seqlm.training.records import epoch_record, result_record
from seqlm.training.results import GPU_STEPS, StepResults, require_finite, require_perplexity
from seqlm.training.rungs import BeforeEpoch, always_goes_on
from seqlm.training.snapshot import Snapshot
from seqlm.training.step import TrainingStep


@final
class Trainer:
    """One run's training, on one of its ranks.

    Each rank holds its own columns of the global batch and their recurrent state. Only the first rank writes files.
    The dropout masks of an epoch come from a generator seeded by (seed, epoch, rank), whose state is part of a
    checkpoint. So an interrupted run ends in the parameters of an uninterrupted one, bit for bit on the same devices.

    Args:
        config: the configuration of the run.
        corpus: its text.
        run: its folder.
        rank: this process.
        attempt: number of this attempt.
        micro_batches: parts in which a step takes the rank's columns.
        stop: checked after each step and before each window of an evaluation. Several ranks stop after the same step.
        checkpoint_minutes: time between two checkpoints within an epoch.
        progress_seconds: least time between two writes of ``progress.json``.
        keep_last: whether ``last.pt`` stays when the run is done.
        before_epoch: may end the training between two epochs.
        guard: called before a file of the run is put in place. Raises if this process no longer owns the run.

    Raises:
        DataError, UsageError: a split is too small for the batch, or there are more ranks than columns.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: RunDirectory,
        *,
        rank: Rank,
        attempt: int,
        micro_batches: int = 1,
        stop: StopSignal | None = None,
        checkpoint_minutes: float = CHECKPOINT_MINUTES.default,
        progress_seconds: float = PROGRESS_SECONDS.default,
        keep_last: bool = True,
        before_epoch: BeforeEpoch = always_goes_on,
        guard: Guard = unguarded,
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.run = run
        self.rank = rank
        self.attempt = attempt
        self.micro_batches = micro_batches
        self.stop = stop or StopSignal()
        train = config.train
        for split, tokens in corpus.tokens.items():
            require_windows(split, tokens, *config.least_text(split))
        self._circumstances = resume.circumstances(rank, micro_batches)
        text = corpus.splits["train"]
        self._columns = columns(text, train.batch_size, rank.index, rank.world_size, device=rank.device)
        self._scored = {split: scored_columns(corpus.splits[split], config, rank) for split in ("valid", "test")}
        self._steps = number_of_windows(corpus.tokens["train"], train.batch_size, train.seq_len)
        self._tokens_per_step = train.seq_len * train.batch_size  # of the whole global batch
        torch.manual_seed(config.seed)
        dtype = use_precision(train.precision, rank.device)
        self.model = build_model(config.model, len(corpus.vocabulary), train.seq_len, dtype, run.model_dir)
        self.model.to(rank.device)
        self.optimizer = build_optimizer(config.optim, self.model.parameters())
        self._number = StepNumber(config, self.model, self.optimizer, self._steps)
        self._is_alone = rank.world_size == 1
        capture = is_captured(rank)
        self.step = TrainingStep(
            self.model,
            self.optimizer,
            clip_norm=train.clip_norm,
            tokens_per_step=self._tokens_per_step,
            rank=rank,
            capture=capture,
            micro_batches=micro_batches,
        )
        self._resume_steps = self.step.resume
        self._window_loss: WindowLoss = Captured(self.model.loss) if capture else self.model.loss
        self.history: list[dict[str, Any]] = []
        self.guard = guard
        self._files = CheckpointFiles(
            run, fingerprint=config.fingerprint(), corpus_sha256=corpus.sha256, attempt=attempt, guard=guard
        )
        self._background = Background()
        self._snapshot = Snapshot(rank.device)
        self._save_every_seconds = 60 * checkpoint_minutes
        self._saved_at = time.monotonic()
        self._keep_last = keep_last
        self._before_epoch = before_epoch
        self._begin_epoch(0)
        self.progress = Progress(
            epochs=train.epochs,
            steps=self._steps,
            enabled=rank.is_first,
            file=ProgressFile(run.progress_file(attempt), every_seconds=progress_seconds, guard=guard),
        )

    def _begin_epoch(self, epoch: int) -> None:
        """Reset to the start of ``epoch``."""
        self._epoch, self._step = epoch, 0
        self._total = TokenLoss()
        self._seconds = 0.0
        self._state: State = self.model.initial_state(self._columns.shape[1])
        torch.manual_seed(resume.mask_seed(self.config.seed, epoch, self.rank.index))

    def train(self) -> dict[str, Any]:
        """Train to ``train.epochs``, or end at the last checkpoint if that is further. Return the result.

        Raises:
            CheckpointError: the run's own checkpoint cannot be used.
            LeftAtRungError: a search ends the training here. The state has been saved.
            DivergedError: a loss or gradient norm is not finite. Nothing of that step is saved.
            StopRequested: ``stop`` was set. The state has been saved.
            FileError: a file of the run cannot be written.
        """
        try:
            self._resume()
            while self._epoch < self.config.train.epochs:
                if self._step == 0:
                    self._before_epoch(self._epoch, self._background.wait)
                self._one_epoch()
            return self._finish()
        except StopRequested:
            self._save_at_once()
            raise
        finally:
            self.progress.close()
            self._background.close()

    def try_steps(self, steps: int, valid_windows: int) -> list[float]:
        """Take the first ``steps`` steps of the training, then look at some windows of ``valid``; no file is written.

        Return the seconds of each step until the device has done it. A text that is too short starts again.

        Raises:
            DivergedError, StopRequested: as :meth:`train`.
        """
        train = self.config.train
        self._begin_epoch(0)
        self.model.train()
        state, results = self._state, StepResults(self.rank)
        texts = (windows(self._columns, train.seq_len) for _ in itertools.count())
        seconds = []
        for number, (inputs, targets) in enumerate(itertools.islice(itertools.chain.from_iterable(texts), steps)):
            if self.rank.any(self.stop.received):
                raise StopRequested
            started = time.perf_counter()
            self._number.set(0, number)
            result = self.step(inputs, targets, state)
            state = result.state
            results.add(result)
            require_finite(results.read()[0], self._tokens_per_step)  # waits for the device
            seconds.append(time.perf_counter() - started)
        parts, seq_len = self._scored["valid"]
        valid = self._evaluate([part[: valid_windows * seq_len + 1] for part in parts], seq_len)
        require_perplexity(valid, f"after {steps} steps")
        return seconds

    # -- one epoch ---------------------------------------------------------------------------------------------

    def _one_epoch(self) -> None:
        epoch = self._epoch
        self.progress.epoch_begins(epoch, self._number.set(epoch, self._step), steps=self._step, seconds=self._seconds)
        self._train_epoch()
        self.progress.validation_begins()
        started = time.perf_counter()
        valid = self.evaluate("valid")
        require_perplexity(valid, f"after epoch {epoch + 1}")
        record = epoch_record(
            self.history,
            train=self._total,
            valid=valid,
            lr=self._number.lr,
            train_seconds=self._seconds,
            valid_seconds=time.perf_counter() - started,
            peak_memory_bytes=self.rank.peak_memory_bytes(),
            attempt=self.attempt,
            corpus=self.corpus,
        )
        self.history.append(record)
        is_best = best_epoch(self.history) == epoch
        self._begin_epoch(epoch + 1)
        self._save(is_best=is_best)
        self.progress.epoch_done(record["train_ppl"], record["val_ppl"], record["epoch_seconds"], is_best=is_best)

    def _train_epoch(self) -> None:
        """The steps of the epoch that are still to do."""
        if self._step == self._steps:
            return
        self.model.train()
        results = StepResults(self.rank)
        started, before = time.perf_counter(), self._seconds
        seq_len = self.config.train.seq_len
        for inputs, targets in windows(self._columns[self._step * seq_len :], seq_len):
            self._background.check()
            self._number.set(self._epoch, self._step)
            result = self.step(inputs, targets, self._state)
            self._state = result.state
            self._step += 1
            results.add(result)
            is_due = self.rank.is_first and time.monotonic() - self._saved_at >= self._save_every_seconds
            at_once = self._is_alone and (self.stop.received or is_due)  # several ranks agree when all read
            if results.are_full or self._step == self._steps or at_once:
                losses, (shall_stop, shall_save) = results.read(self.stop.received, is_due)
                require_finite(losses, self._tokens_per_step)
                for loss_nats, _ in losses:
                    self._total.add(loss_nats, self._tokens_per_step)
                self._seconds = before + time.perf_counter() - started
                self.progress.steps_done(self._step, self._total.mean, self._total.tokens)
                if shall_stop:
                    raise StopRequested
                if shall_save:
                    self._save()

    def evaluate(self, split: str) -> TokenLoss:
        """The loss on ``valid`` or ``test`` with the present parameters, dropout off, state zero at the start.

        Raises:
            StopRequested: ``stop`` said so.
        """
        return self._evaluate(*self._scored[split], self._before_window)

    def _evaluate(
        self, parts: list[Tensor], seq_len: int, before_window: Callable[[int], None] = lambda number: None
    ) -> TokenLoss:
        micro_batches, loss = self.micro_batches, self._window_loss
        return evaluate(self.model, parts, seq_len, self.rank, micro_batches, before_window, loss)

    def _before_window(self, number: int) -> None:
        self.progress.window_begins()
        every = GPU_STEPS if self.rank.device.type == "cuda" and not self._is_alone else 1
        if number % every == 0 and self.rank.any(self.stop.received):
            raise StopRequested

    # -- saving ------------------------------------------------------------------------------------------------

    def _save(self, *, is_best: bool = False) -> None:
        """Copy the state, and have the copy written while training goes on. All ranks come here at the same step."""
        position = self._position()
        self._saved_at = time.monotonic()
        if self.rank.is_first:
            self._background.wait()  # the copy has one place
            checkpoint = self._checkpoint(position, self._snapshot.take)
            self._background.start(functools.partial(self._files.save, checkpoint, is_best=is_best))

    def _save_at_once(self) -> None:
        """Save the state before the process exits, unless it is saved already."""
        if self._step == 0:  # the end of the epoch before is being written, or there is nothing yet
            self._background.wait()
            return
        position = self._position()
        if self.rank.is_first:
            self._background.wait()
            self._files.save(self._checkpoint(position, lambda tree: tree), read_back=False)
            self.progress.say(f"stopped and saved after {self._step} of {self._steps} steps of epoch {self._epoch + 1}")

    def _checkpoint(self, position: Position, copy: Callable[[Any], Any]) -> Checkpoint:
        tensors = copy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        return Checkpoint(
            fingerprint=self.config.fingerprint(),
            corpus_sha256=self.corpus.sha256,
            vocabulary=list(self.corpus.vocabulary),
            model=tensors["model"],
            optimizer=tensors["optimizer"],
            history=[dict(record) for record in self.history],
            position=position,
        )

    def _position(self) -> Position:
        """Where the training stands, between two steps; every rank gives its part."""
        within = self._step > 0
        return replace(
            self._circumstances,
            epoch=self._epoch,
            step=self._step,
            loss_nats=self._total.loss_nats,
            tokens=self._total.tokens,
            seconds=self._seconds,
            states=resume.gather_states(self._state, self.rank) if within else [],
            generators=self.rank.gather(resume.generator_state(self.rank.device)) if within else [],
        )

    # -- resuming ----------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Restore the checkpoint that the first rank finds, if there is one."""
        checkpoint = resume.agreed_checkpoint(self.rank, self._files, self._load_last)
        if checkpoint is None:
            self._begin_epoch(0)  # whatever has drawn from the generator since this object was made
            return
        self.model.load_state_dict(checkpoint.model)
        assert checkpoint.optimizer is not None, "last.pt has the optimizer's state"
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.history = checkpoint.history
        position = checkpoint.position
        if position.epoch or position.step:
            self._resume_steps()
        self._begin_epoch(position.epoch)
        if position.step:
            self._step = position.step
            self._total = TokenLoss(position.loss_nats, position.tokens)
            self._seconds = position.seconds
            self._state = resume.restore_within_epoch(position, self.rank, self.config, self.model.batch_axis)
        if self.rank.is_first:
            self._files.write_metrics(self.history)  # the file may have been cut or lost
        steps = f" and {position.step} of {self._steps} steps" if position.step else ""
        self.progress.say(f"resumed after {position.epoch} of {self.config.train.epochs} epochs{steps}")
        if differences := resume.changes(position, self._circumstances):
            self.progress.say(differences)

    def _load_last(self) -> tuple[Path, Checkpoint] | None:
        if reason := self.run.cannot_go_on(self.config.train.epochs):
            raise CheckpointError(f"this run cannot go on: {reason}")
        return self._files.load_last()

    def _finish(self) -> dict[str, Any]:
        self._step = 0  # steps of a further epoch stay in last.pt: below, the model gets the parameters of best.pt
        self._background.wait()
        self.rank.wait_for_all()  # nobody reads best.pt before it is on disk
        best = resume.agreed_checkpoint(self.rank, self._files, functools.partial(self._files.load_best, self.history))
        assert best is not None, "load_best finds it or raises"
        self.model.load_state_dict(best.model)
        test = self.evaluate("test")
        result = result_record(
            self.history,
            test=test,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            attempt=self.attempt,
            micro_batches=self.micro_batches,
            corpus=self.corpus,
        )
        if self.rank.is_first:
            write_json(self.run.result_file, result, guard=self.guard)
            self._files.drop_previous()
            if not self._keep_last:
                self._files.drop_last()
        reached = f"best val ppl {result['best_val_ppl']:.2f} in epoch {result['best_epoch'] + 1}"
        self.progress.say(f"done  {reached}  test ppl {result['test_ppl']:.2f}")
        return result
