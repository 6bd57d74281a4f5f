"""The training protocol of the study, for every architecture alike (docs/study.md has it in prose)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.batches import columns, own_columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.layout import number_of_windows, require_windows
from seqlm.environment import CHECKPOINT_MINUTES, PROGRESS_SECONDS
from seqlm.errors import CheckpointError, DivergedError, FileError
from seqlm.files import Guard, unguarded, write_json
from seqlm.models import LanguageModel, build_model
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested, StopSignal
from seqlm.training.background import Background
from seqlm.training.capture import Captured, is_captured
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.checkpoint_files import CheckpointFiles, best_epoch
from seqlm.training.distributed import Rank
from seqlm.training.evaluate import WindowLoss, evaluate
from seqlm.training.optimizers import build_optimizer, learning_rate, restore_optimizer, set_learning_rate
from seqlm.training.perplexity import TokenLoss, perplexity
from seqlm.training.precision import use_precision
from seqlm.training.progress import Progress
from seqlm.training.progress_file import ProgressFile
from seqlm.training.results import GPU_STEPS, StepResults
from seqlm.training.snapshot import Snapshot
from seqlm.training.step import TrainingStep

LAG_SECONDS = 60.0
"""How long a rank waits to see the checkpoint that the first rank has read: network file systems tell late."""


@final
class Trainer:
    """One run's training, on one of its ranks.

    Rank r holds its own columns of the global batch and their recurrent state. The first rank alone writes files.
    Every epoch draws its dropout masks from a generator seeded by (seed, epoch, rank); a checkpoint within an epoch
    holds the state of each rank's generator. So a run that was interrupted, wherever, draws the masks that an
    uninterrupted one would have drawn, and on the same devices ends in the same parameters, bit for bit.

    Args:
        config: what is trained.
        corpus: on what.
        run: where its files are.
        rank: this process.
        attempt: its number.
        micro_batches: parts in which a step takes the rank's columns.
        stop: asked before each step. One rank on a CPU is even interrupted within a step, which is begun anew later;
            several stop after the same step.
        checkpoint_minutes: how often the state is saved within an epoch.
        progress_seconds: how often, at most, ``progress.json`` is written.
        keep_last: whether ``last.pt`` stays when the run is done.
        guard: asked before a file of the run is put in place whether it still is this process's to write.

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
            require_windows(split, tokens, train.batch_size, train.seq_len)
        self._columns = {
            split: columns(ids, train.batch_size, rank.index, rank.world_size, device=rank.device)
            for split, ids in corpus.splits.items()
        }
        self._steps = number_of_windows(corpus.tokens["train"], train.batch_size, train.seq_len)
        self._tokens_per_step = train.seq_len * train.batch_size  # of the whole global batch
        torch.manual_seed(config.seed)
        dtype = use_precision(train.precision, rank.device)
        self.model: LanguageModel = build_model(config.model, len(corpus.vocabulary), train.seq_len, dtype)
        self.model.to(rank.device)
        self.optimizer = build_optimizer(config.optim, self.model.parameters())
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
        self._begin_epoch(0)
        self.progress = Progress(
            epochs=train.epochs,
            steps=self._steps,
            enabled=rank.is_first,
            file=ProgressFile(run.progress_file(attempt), every_seconds=progress_seconds, guard=guard),
        )

    def _begin_epoch(self, epoch: int) -> None:
        """Stand before the first step of ``epoch``."""
        self._epoch = epoch
        self._step = 0
        self._total = TokenLoss()
        self._seconds = 0.0
        self._state = self._initial_state("train")
        torch.manual_seed(_mask_seed(self.config.seed, epoch, self.rank.index))

    def train(self) -> dict[str, Any]:
        """Go on from the last checkpoint, or start, and train to the end; returns what ``result.json`` holds.

        Raises:
            CheckpointError: the run's own checkpoint cannot be used.
            DivergedError: a loss or gradient norm is not finite; nothing of that step is kept.
            StopRequested: ``stop`` said so; where the training stands is saved.
            FileError: a file of the run cannot be written.
        """
        try:
            self._resume()
            while self._epoch < self.config.train.epochs:
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

        Returns the seconds of each step, from its window until the device has done it. A text that is too short is
        begun again.

        Raises:
            DivergedError, StopRequested: as :meth:`train`.
        """
        train = self.config.train
        set_learning_rate(self.optimizer, learning_rate(self.config.optim, 0))
        self._begin_epoch(0)
        self.model.train()
        state, results = self._state, StepResults(self.rank)
        texts = (windows(self._columns["train"], train.seq_len) for _ in itertools.count())
        seconds = []
        for inputs, targets in itertools.islice(itertools.chain.from_iterable(texts), steps):
            if self.rank.any(self.stop.received):
                raise StopRequested
            started = time.perf_counter()
            result = self.step(inputs, targets, state)
            state = result.state
            results.add(result)
            self._require_finite(results.read()[0])  # waits for the device
            seconds.append(time.perf_counter() - started)
        columns = self._columns["valid"][: valid_windows * train.seq_len + 1]
        state = self._initial_state("valid")
        valid = self._evaluate(columns, state)
        if not math.isfinite(valid.mean):
            raise DivergedError(f"after {steps} steps the validation loss is {valid.mean:g}; lower optim.lr")
        return seconds

    # -- one epoch ---------------------------------------------------------------------------------------------

    def _one_epoch(self) -> None:
        epoch = self._epoch
        lr = learning_rate(self.config.optim, epoch)
        set_learning_rate(self.optimizer, lr)
        self.progress.epoch_begins(epoch, lr, steps=self._step, seconds=self._seconds)
        self._train_epoch()
        train, train_seconds = self._total, self._seconds
        self.progress.validation_begins()
        started = time.perf_counter()
        valid = self.evaluate("valid")
        seconds = train_seconds + time.perf_counter() - started
        earlier = self.history[-1]["elapsed_seconds"] if self.history else 0.0
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": train.mean,
                "val_loss": valid.mean,
                "train_ppl": perplexity(train.mean),
                "val_ppl": perplexity(valid.mean),
                "lr": lr,
                "epoch_seconds": seconds,
                "elapsed_seconds": earlier + seconds,
                "train_tokens_per_second": train.tokens / train_seconds,
                "peak_memory_bytes": peak_memory_bytes(self.rank.device),
                "attempt": self.attempt,
            }
        )
        is_best = best_epoch(self.history) == epoch
        self._begin_epoch(epoch + 1)
        self._save(is_best=is_best)
        self.progress.epoch_done(perplexity(train.mean), perplexity(valid.mean), seconds, is_best=is_best)

    def _train_epoch(self) -> None:
        """The steps of the epoch that are still to do."""
        if self._step == self._steps:
            return
        self.model.train()
        results = StepResults(self.rank)
        started, before = time.perf_counter(), self._seconds
        seq_len = self.config.train.seq_len
        for inputs, targets in windows(self._columns["train"][self._step * seq_len :], seq_len):
            self._background.check()
            result = self._take_step(inputs, targets)
            self._state = result.state
            self._step += 1
            results.add(result)
            is_due = self.rank.is_first and time.monotonic() - self._saved_at >= self._save_every_seconds
            at_once = self._is_alone and (self.stop.received or is_due)  # several ranks agree when all read
            if results.are_full or self._step == self._steps or at_once:
                losses, (shall_stop, shall_save) = results.read(self.stop.received, is_due)
                self._require_finite(losses)
                for loss_nats, _ in losses:
                    self._total.add(loss_nats, self._tokens_per_step)
                self._seconds = before + time.perf_counter() - started
                self.progress.steps_done(self._step, self._total.mean, self._total.tokens)
                if shall_stop:
                    raise StopRequested
                if shall_save:
                    self._save()

    def _take_step(self, inputs: Tensor, targets: Tensor) -> Any:
        if not (self._is_alone and self.rank.device.type == "cpu"):
            return self.step(inputs, targets, self._state)
        generator = torch.get_rng_state()
        try:
            return self.step(inputs, targets, self._state, self.stop.interrupting)
        except StopRequested:
            torch.set_rng_state(generator)  # the masks of this step are drawn again
            raise

    def _require_finite(self, results: list[tuple[float, float]]) -> None:
        for loss_nats, norm in results:
            if not (math.isfinite(loss_nats) and math.isfinite(norm)):
                mean = loss_nats / self._tokens_per_step
                raise DivergedError(f"the loss of a step is {mean:g} with gradient norm {norm:g}; lower optim.lr")

    def evaluate(self, split: str) -> TokenLoss:
        """The loss on ``valid`` or ``test`` with the present parameters, dropout off, state zero at the start.

        Raises:
            StopRequested: ``stop`` said so.
        """
        columns, state = self._columns[split], self._initial_state(split)
        in_the_middle = self._is_alone and self.rank.device.type == "cpu"
        with self.stop.interrupting() if in_the_middle else contextlib.nullcontext():
            return self._evaluate(columns, state, self._before_window)

    def _evaluate(
        self, columns: Tensor, state: Tensor, before_window: Callable[[int], None] = lambda number: None
    ) -> TokenLoss:
        return evaluate(
            self.model,
            state,
            columns,
            self.config.train.seq_len,
            self.rank,
            self.micro_batches,
            before_window,
            self._window_loss,
        )

    def _before_window(self, number: int) -> None:
        self.progress.window_begins()
        every = GPU_STEPS if self.rank.device.type == "cuda" and not self._is_alone else 1
        if number % every == 0 and self.rank.any(self.stop.received):
            raise StopRequested

    def _initial_state(self, split: str) -> Tensor:
        return self.model.initial_state(self._columns[split].shape[1])

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
        """Save where the training stands, unless that is saved already: the process is about to end."""
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
            self._circumstances(),
            epoch=self._epoch,
            step=self._step,
            loss_nats=self._total.loss_nats,
            tokens=self._total.tokens,
            seconds=self._seconds,
            states=self.rank.gather(self._state) if within else [],
            generators=self.rank.gather(_generator_state(self.rank.device)) if within else [],
        )

    def _circumstances(self) -> Position:
        """The start of the training, with what decides about the last bits."""
        return Position(
            epoch=0,
            ranks=self.rank.world_size,
            device=self.rank.device.type,
            threads=torch.get_num_threads(),
            micro_batches=self.micro_batches,
        )

    # -- resuming ----------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Go on from the checkpoint that the first rank finds, if there is one."""
        checkpoint = self._agreed(self._load_last)
        if checkpoint is None:
            self._begin_epoch(0)  # whatever has drawn from the generator since this object was made
            return
        self.model.load_state_dict(checkpoint.model)
        assert checkpoint.optimizer is not None, "last.pt has the optimizer's state"
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.history = checkpoint.history
        position = checkpoint.position
        self._begin_epoch(position.epoch)
        if position.step:
            self._step = position.step
            self._total = TokenLoss(position.loss_nats, position.tokens)
            self._seconds = position.seconds
            self._take_over(position)
        if self.rank.is_first:
            # The checkpoint is the truth: a metrics file cut short or lost is written anew from it.
            self._files.write_metrics(self.history)
        steps = f" and {position.step} of {self._steps} steps" if position.step else ""
        self.progress.say(f"resumed after {position.epoch} of {self.config.train.epochs} epochs{steps}")
        if changes := _changes(position, self._circumstances()):
            self.progress.say(changes)

    def _load_last(self) -> tuple[Path, Checkpoint] | None:
        if reason := self.run.cannot_go_on(self.config.train.epochs):
            raise CheckpointError(f"this run cannot go on: {reason}")
        return self._files.load_last()

    def _take_over(self, position: Position) -> None:
        """The recurrent state and the generator within an epoch; ranks that are shared out anew draw other masks."""
        if (position.ranks, position.device) == (self.rank.world_size, self.rank.device.type):
            state = position.states[self.rank.index]
            _set_generator_state(self.rank.device, position.generators[self.rank.index])
        else:
            own = own_columns(self.config.train.batch_size, self.rank.index, self.rank.world_size)
            state = torch.cat(position.states, dim=1)[:, own.start : own.stop]
            torch.manual_seed(_mask_seed(self.config.seed, position.epoch, self.rank.index) ^ position.step)
        self._state = state.to(self.rank.device).contiguous()

    def _agreed(self, load: Callable[[], tuple[Path, Checkpoint] | None]) -> Checkpoint | None:
        """What the first rank loads, on every rank: each reads the same file, once it sees it.

        Raises:
            CheckpointError, FileError: what the first rank met; every rank raises it.
            FileError: another rank does not see what the first one has read.
        """
        found: tuple[Path, Checkpoint] | None = None
        error: CheckpointError | FileError | None = None
        if self.rank.is_first:
            try:
                found = load()
            except (CheckpointError, FileError) as caught:
                error = caught
        kind, *rest = self.rank.from_first(_summary(found, error))
        if kind == "error":
            raise error or (CheckpointError if rest[0] == "checkpoint" else FileError)(rest[1])
        if kind == "nothing" or self.rank.is_first:
            return found[1] if found else None
        path = Path(rest[0])
        deadline = time.monotonic() + LAG_SECONDS
        while True:
            with contextlib.suppress(CheckpointError):
                checkpoint = self._files.load(path)
                if _summary((path, checkpoint), None)[2:] == rest[1:]:
                    return checkpoint
            if time.monotonic() > deadline:
                raise FileError(f"{path}: rank {self.rank.index} does not see what the first rank has read there")
            time.sleep(1)

    def _finish(self) -> dict[str, Any]:
        if self.rank.is_first:
            self._background.wait()
        self.rank.wait_for_all()  # nobody reads best.pt before it is on disk
        best = self._agreed(functools.partial(self._files.load_best, self.history))
        assert best is not None, "load_best finds it or raises"
        self.model.load_state_dict(best.model)
        test = self.evaluate("test")
        record, final = self.history[best_epoch(self.history)], self.history[-1]
        result = {
            "best_epoch": record["epoch"],
            "best_train_ppl": record["train_ppl"],
            "best_val_loss": record["val_loss"],
            "best_val_ppl": record["val_ppl"],
            "final_epoch": final["epoch"],
            "final_train_ppl": final["train_ppl"],
            "final_val_ppl": final["val_ppl"],
            "test_loss": test.mean,
            "test_ppl": perplexity(test.mean),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "elapsed_seconds": final["elapsed_seconds"],
            "attempt": self.attempt,
            "micro_batches": self.micro_batches,
            "corpus_sha256": self.corpus.sha256,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self.rank.is_first:
            write_json(self.run.result_file, result, guard=self.guard)
            self._files.drop_previous()
            if not self._keep_last:
                self._files.drop_last()
        self.progress.say(
            f"done  best val ppl {record['val_ppl']:.2f} in epoch {record['epoch'] + 1}  "
            f"test ppl {result['test_ppl']:.2f}"
        )
        return result


def _summary(found: tuple[Path, Checkpoint] | None, error: CheckpointError | FileError | None) -> list[Any]:
    """What the first rank tells the others of its checkpoint: plain data, and enough to know the same one by."""
    if error is not None:
        return ["error", "checkpoint" if isinstance(error, CheckpointError) else "file", str(error)]
    if found is None:
        return ["nothing"]
    path, checkpoint = found
    position = checkpoint.position
    return ["checkpoint", str(path), len(checkpoint.history), position.epoch, position.step, position.loss_nats]


def _changes(position: Position, now: Position) -> str:
    """How this process differs from those that wrote a checkpoint, in what decides the last bits; empty: not at all."""
    counts = [
        ("rank", position.ranks, now.ranks),
        ("micro-batch", position.micro_batches, now.micro_batches),
        ("thread", position.threads if now.device == "cpu" else now.threads, now.threads),
    ]
    changes = [
        f"{after} {what}{'' if after == 1 else 'es' if what.endswith('ch') else 's'} instead of {before}"
        for what, before, after in counts
        if before not in (0, after)
    ]
    if position.device not in ("", now.device):
        changes.append(f"on {now.device} instead of {position.device}")
    masks = any(not change.partition(" ")[2].startswith("thread") for change in changes)
    equal = f"the result is equal to that of a quiet run up to rounding{' and dropout masks' if masks else ''}"
    return f"now {', '.join(changes)}: {equal}" if changes else ""


def _mask_seed(seed: int, epoch: int, rank: int) -> int:
    # Odd multipliers keep the seeds of neighbouring (epoch, rank) pairs apart; the generator scrambles the rest.
    return (seed + 0x9E3779B97F4A7C15 * (epoch + 1) + 0xC2B2AE3D27D4EB4F * rank) % 2**63


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this rank so far: allocated on the GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
