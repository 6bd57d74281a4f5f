"""The training protocol of the study, for every architecture alike (docs/study.md has it in prose)."""

from __future__ import annotations

import itertools
import math
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, final

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.batches import columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.layout import number_of_windows, require_windows
from seqlm.errors import DivergedError
from seqlm.models import LanguageModel, build_model
from seqlm.rundir import Guard, RunDirectory, unguarded, write_json, write_json_lines
from seqlm.training.attempt import StopRequested
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, require_text, save_checkpoint
from seqlm.training.distributed import Rank
from seqlm.training.evaluate import evaluate
from seqlm.training.optimizers import build_optimizer, learning_rate, restore_optimizer, set_learning_rate
from seqlm.training.perplexity import TokenLoss, perplexity
from seqlm.training.precision import use_precision
from seqlm.training.progress import Progress
from seqlm.training.progress_file import ProgressFile
from seqlm.training.results import StepResults
from seqlm.training.step import TrainingStep


@final
class Trainer:
    """One run's training, on one of its ranks.

    Rank r holds its own columns of the global batch and their recurrent state. The first rank alone writes files.
    Every epoch draws its dropout masks from a generator seeded by (seed, epoch, rank), so that a run resumed at an
    epoch's end draws the masks that an uninterrupted one would have drawn.

    Raises:
        DataError, UsageError: a split is too small for the batch, or there are more ranks than columns.
        CheckpointError: the run's own checkpoint cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        run: RunDirectory,
        *,
        rank: Rank,
        attempt: int,
        should_stop: Callable[[], bool] = lambda: False,
        guard: Guard = unguarded,
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.run = run
        self.rank = rank
        self.attempt = attempt
        self.should_stop = should_stop
        self.guard = guard
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
        self.step = TrainingStep(
            self.model,
            self.optimizer,
            clip_norm=train.clip_norm,
            tokens_per_step=self._tokens_per_step,
            rank=rank,
            capture=rank.device.type == "cuda" and rank.world_size == 1,
        )
        self.history: list[dict[str, Any]] = []
        self.progress = Progress(
            epochs=train.epochs,
            steps=self._steps,
            enabled=rank.is_first,
            file=ProgressFile(run.progress_file(attempt), guard=guard),
        )

    def train(self) -> dict[str, Any]:
        """Go on from the last checkpoint, or start, and train to the end; returns what ``result.json`` holds.

        Raises:
            DivergedError: a loss or gradient norm is not finite; nothing of that step is kept.
            StopRequested: ``should_stop`` said so between two steps.
            FileError: a file of the run cannot be written.
        """
        if self.run.last_checkpoint.exists():
            self._resume()
        for epoch in range(len(self.history), self.config.train.epochs):
            self._one_epoch(epoch)
        return self._finish()

    def try_steps(self, steps: int, valid_windows: int) -> list[float]:
        """Take the first ``steps`` steps of the training, then look at some windows of ``valid``; no file is written.

        Returns the seconds of each step, from its window until the device has done it. A text that is too short is
        begun again.

        Raises:
            DivergedError, StopRequested: as :meth:`train`.
        """
        train = self.config.train
        set_learning_rate(self.optimizer, learning_rate(self.config.optim, 0))
        torch.manual_seed(_mask_seed(self.config.seed, 0, self.rank.index))
        self.model.train()
        state, results = self._initial_state("train"), StepResults(self.rank)
        texts = (windows(self._columns["train"], train.seq_len) for _ in itertools.count())
        seconds = []
        for inputs, targets in itertools.islice(itertools.chain.from_iterable(texts), steps):
            if self.should_stop():
                raise StopRequested
            started = time.perf_counter()
            result = self.step(inputs, targets, state)
            state = result.state
            results.add(result)
            self._read(results)  # waits for the device
            seconds.append(time.perf_counter() - started)
        columns = self._columns["valid"][: valid_windows * train.seq_len + 1]
        valid = evaluate(self.model, self._initial_state("valid"), columns, train.seq_len, self.rank)
        if not math.isfinite(valid.mean):
            raise DivergedError(f"after {steps} steps the validation loss is {valid.mean:g}; lower optim.lr")
        return seconds

    # -- one epoch ---------------------------------------------------------------------------------------------

    def _one_epoch(self, epoch: int) -> None:
        started = time.perf_counter()
        lr = learning_rate(self.config.optim, epoch)
        set_learning_rate(self.optimizer, lr)
        torch.manual_seed(_mask_seed(self.config.seed, epoch, self.rank.index))
        self.progress.epoch_begins(epoch, lr)
        train = self._train_epoch()
        train_seconds = time.perf_counter() - started
        self.progress.validation_begins()
        valid = self.evaluate("valid")
        seconds = time.perf_counter() - started
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
        if self.rank.is_first:
            self._save(is_best=is_best)
        self.rank.wait_for_all()  # nobody goes on, and reads best.pt at the end, before the epoch is on disk
        self.progress.epoch_done(perplexity(train.mean), perplexity(valid.mean), seconds, is_best=is_best)

    def _train_epoch(self) -> TokenLoss:
        self.model.train()
        total = TokenLoss()
        state = self._initial_state("train")
        results = StepResults(self.rank)
        for step, (inputs, targets) in enumerate(windows(self._columns["train"], self.config.train.seq_len)):
            if self.should_stop():
                self.progress.close()
                raise StopRequested
            result = self.step(inputs, targets, state)
            state = result.state
            results.add(result)
            if results.are_full or step == self._steps - 1:
                for loss_nats in self._read(results):
                    total.add(loss_nats, self._tokens_per_step)
                self.progress.steps_done(step + 1, total.mean, total.tokens)
        return total

    def _read(self, results: StepResults) -> list[float]:
        """The losses of the steps since the last reading, summed over ranks; all must be finite."""
        losses = []
        for loss_nats, norm in results.read():
            if not (math.isfinite(loss_nats) and math.isfinite(norm)):
                self.progress.close()
                mean = loss_nats / self._tokens_per_step
                raise DivergedError(f"the loss of a step is {mean:g} with gradient norm {norm:g}; lower optim.lr")
            losses.append(loss_nats)
        return losses

    def evaluate(self, split: str) -> TokenLoss:
        """The loss on ``valid`` or ``test`` with the present parameters, dropout off, state zero at the start."""
        state = self._initial_state(split)
        return evaluate(self.model, state, self._columns[split], self.config.train.seq_len, self.rank)

    def _initial_state(self, split: str) -> Tensor:
        return self.model.initial_state(self._columns[split].shape[1])

    # -- files -------------------------------------------------------------------------------------------------

    def _save(self, *, is_best: bool) -> None:
        checkpoint = Checkpoint(
            fingerprint=self.config.fingerprint(),
            corpus_sha256=self.corpus.sha256,
            vocabulary=list(self.corpus.vocabulary),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
        )
        # best.pt first: a worker killed between the two repeats the epoch and writes the same best.pt again.
        if is_best:
            save_checkpoint(self.run.best_checkpoint, checkpoint, guard=self.guard)
        save_checkpoint(self.run.last_checkpoint, checkpoint, guard=self.guard)
        write_json_lines(self.run.metrics_file, self.history, guard=self.guard)

    def _resume(self) -> None:
        checkpoint = self._load(self.run.last_checkpoint)
        self.model.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.history = checkpoint.history
        if self.rank.is_first:
            # The checkpoint is the truth: a metrics file cut short or lost is written anew from it.
            write_json_lines(self.run.metrics_file, self.history, guard=self.guard)
        self.progress.say(f"resumed after {len(self.history)} of {self.config.train.epochs} epochs")

    def _load(self, path: Any) -> Checkpoint:
        checkpoint = load_checkpoint(path, self.config.fingerprint(), self.rank.device)
        require_text(path, checkpoint, self.corpus.sha256)
        return checkpoint

    def _finish(self) -> dict[str, Any]:
        self.model.load_state_dict(self._load(self.run.best_checkpoint).model)
        test = self.evaluate("test")
        best = self.history[best_epoch(self.history)]
        final = self.history[-1]
        result = {
            "best_epoch": best["epoch"],
            "best_train_ppl": best["train_ppl"],
            "best_val_loss": best["val_loss"],
            "best_val_ppl": best["val_ppl"],
            "final_epoch": final["epoch"],
            "final_train_ppl": final["train_ppl"],
            "final_val_ppl": final["val_ppl"],
            "test_loss": test.mean,
            "test_ppl": perplexity(test.mean),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "elapsed_seconds": final["elapsed_seconds"],
            "attempt": self.attempt,
            "corpus_sha256": self.corpus.sha256,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self.rank.is_first:
            write_json(self.run.result_file, result, guard=self.guard)
        self.progress.say(
            f"done  best val ppl {best['val_ppl']:.2f} in epoch {best['epoch'] + 1}  test ppl {result['test_ppl']:.2f}"
        )
        return result


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Index of the epoch with the lowest validation loss, the first of equals; NaN is never the best."""
    losses = [math.inf if math.isnan(record["val_loss"]) else record["val_loss"] for record in history]
    return losses.index(min(losses))


def _mask_seed(seed: int, epoch: int, rank: int) -> int:
    # Odd multipliers keep the seeds of neighbouring (epoch, rank) pairs apart; the generator scrambles the rest.
    return (seed + 0x9E3779B97F4A7C15 * (epoch + 1) + 0xC2B2AE3D27D4EB4F * rank) % 2**63


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this rank so far: allocated on the GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
