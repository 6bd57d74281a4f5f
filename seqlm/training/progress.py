"""The progress of a training: a bar on a terminal or lines in a log, and ``progress.json`` for other processes."""

import contextlib
import math
import sys
import time
from dataclasses import replace
from typing import Any, Literal, final

from tqdm import tqdm

from seqlm.environment import PROGRESS_SECONDS
from seqlm.errors import FileError
from seqlm.reading import timestamp
from seqlm.records.attempts import ProgressFile
from seqlm.training.attempt import Attempt
from seqlm.training.records import best_epoch, perplexity
from seqlm.training.trainer import EpochBegins, EpochEnded, Event, StepsDone, Trainer

LINES_PER_EPOCH = 10
"""Lines of a log for each epoch, besides the one at its end."""


@final
class Progress:
    """Shows what has happened. Silent unless the rank is the first.

    The file is written before the first step, and then at intervals. It is not flushed to disk, and no run fails
    because of it. The attempt's guard is called before, so a worker that has lost its run soon finds out.
    """

    def __init__(self, trainer: Trainer, attempt: Attempt) -> None:
        self._trainer = trainer
        self._attempt = attempt
        self._every_seconds = PROGRESS_SECONDS.read()
        self._written = -math.inf
        self._bar: tqdm[Any] | None = None
        self._update(math.nan)
        self._write("train")
        self._written = -math.inf  # the first step is shown at once

    def say(self, text: str) -> None:
        """Print a line."""
        if self._trainer.rank.is_first:
            self.close()
            print(text, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, event: Event) -> None:
        """Show an event of the training.

        Raises:
            LeaseLostError: the run is another worker's by now.
        """
        trainer = self._trainer
        match event:
            case EpochBegins():
                self._update(math.nan)
                if trainer.rank.is_first and sys.stdout.isatty():
                    self._bar = tqdm(
                        desc=self._name(trainer.epoch),
                        total=trainer.steps,
                        initial=trainer.step,
                        unit="step",
                        leave=False,
                        file=sys.stdout,
                    )
            case StepsDone():
                before, loss, rate = self._state.step or 0, trainer.total.mean, trainer.total.tokens / trainer.seconds
                self._update(rate)
                self._write("train")
                every = math.ceil(trainer.steps / LINES_PER_EPOCH)
                if self._bar is not None:
                    self._bar.update(trainer.step - before)
                    self._bar.set_postfix_str(f"loss {loss:.3f} ppl {perplexity(loss):.1f}", refresh=False)
                elif trainer.step // every > before // every:
                    self.say(
                        f"{self._name(trainer.epoch)}  step {trainer.step}/{trainer.steps}  loss {loss:.4f}  "
                        f"ppl {perplexity(loss):.2f}  {rate:,.0f} tokens/s"
                    )
            case EpochEnded():
                record = trainer.history[-1]
                best = "  (best)" if best_epoch(trainer.history) == record["epoch"] else ""
                self.say(
                    f"{self._name(record['epoch'])} done  train ppl {record['train_ppl']:.2f}  "
                    f"val ppl {record['val_ppl']:.2f}{best}  {record['epoch_seconds']:.1f} s"
                )

    def before_window(self) -> None:
        """Show that a window of a validation or test begins, so that the run is alive."""
        self._write("valid")

    def _name(self, epoch: int) -> str:
        return f"epoch {epoch + 1}/{self._trainer.config.train.epochs}"

    def _update(self, rate: float) -> None:
        trainer = self._trainer
        self._state = ProgressFile(
            epoch=trainer.epoch,
            step=trainer.step,
            steps=trainer.steps,
            train_loss=trainer.total.mean,
            train_ppl=perplexity(trainer.total.mean),
            train_tokens_per_second=rate,
        )

    def _write(self, phase: Literal["train", "valid"]) -> None:
        now = time.monotonic()
        if not self._trainer.rank.is_first or now - self._written < self._every_seconds:
            return
        self._written = now  # also if writing fails: a full disk is not tried at every step
        record = replace(self._state, phase=phase, updated_at=timestamp())
        with contextlib.suppress(FileError):
            record.write(self._attempt.run.attempt_dir(self._attempt.number), sync=False, guard=self._attempt.guard)
