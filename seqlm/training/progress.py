"""What is seen of a training run: bars on a terminal, plain lines in a log, a file for who watches from outside."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO, final

from tqdm import tqdm

from seqlm.training.perplexity import perplexity
from seqlm.training.progress_file import ProgressFile

LINES_PER_EPOCH = 10
"""Lines of a log for each epoch, besides the one at its end."""


@final
class Progress:
    """The progress of one run by steps and epochs. Silent unless ``enabled`` (the first rank)."""

    def __init__(
        self,
        *,
        epochs: int,
        steps: int,
        enabled: bool,
        file: ProgressFile | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._epochs = epochs
        self._steps = steps
        self._enabled = enabled
        self._file = file if enabled else None
        self._stream = stream or sys.stdout
        self._interactive = enabled and self._stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._epoch = 0
        self._done = 0
        self._mean_loss_nats = math.nan
        self._rate = math.nan
        self._started = time.perf_counter()

    def say(self, text: str) -> None:
        """One line."""
        if self._enabled:
            print(text, file=self._stream, flush=True)

    def epoch_begins(self, epoch: int, lr: float, *, steps: int = 0, seconds: float = 0.0) -> None:
        """Epoch ``epoch``, counted from 0, starts with the learning rate ``lr``, or goes on.

        Then ``steps`` of it are done, for which earlier attempts took ``seconds``.
        """
        self._epoch = epoch
        self._done = steps
        self._started = time.perf_counter() - seconds
        if self._interactive:
            title = f"epoch {epoch + 1}/{self._epochs} lr {lr:.4g}"
            self._bar = tqdm(total=self._steps, initial=steps, desc=title, unit="step", leave=False, file=self._stream)

    def steps_done(self, steps: int, mean_loss_nats: float, tokens: int) -> None:
        """Report the number of finished steps of the epoch, with its mean loss and number of tokens so far."""
        before, self._done = self._done, steps
        self._mean_loss_nats = mean_loss_nats
        self._rate = rate = tokens / (time.perf_counter() - self._started)
        if self._file is not None:
            self._file.write(**self._state(), phase="train")
        every = math.ceil(self._steps / LINES_PER_EPOCH)
        if self._bar is not None:
            self._bar.update(steps - before)
            self._bar.set_postfix_str(f"loss {mean_loss_nats:.3f} ppl {perplexity(mean_loss_nats):.1f}", refresh=False)
        elif steps // every > before // every:
            self.say(
                f"epoch {self._epoch + 1}/{self._epochs}  step {steps}/{self._steps}  loss {mean_loss_nats:.4f}  "
                f"ppl {perplexity(mean_loss_nats):.2f}  {rate:,.0f} tokens/s"
            )

    def validation_begins(self) -> None:
        """The steps of the epoch are done. Short epochs leave no trace of it: the file is not for every instant."""
        if self._file is not None:
            is_long = time.perf_counter() - self._started >= self._file.every_seconds
            self._file.write(**self._state(), phase="valid", at_once=is_long)

    def window_begins(self) -> None:
        """One more window is looked at, of validation or of test: the run is alive."""
        if self._file is not None:
            self._file.write(**self._state(), phase="valid")

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "step": self._done,
            "steps": self._steps,
            "train_loss": self._mean_loss_nats,
            "train_tokens_per_second": self._rate,
        }

    def epoch_done(self, train_ppl: float, val_ppl: float, seconds: float, *, is_best: bool) -> None:
        """The epoch's perplexities are known. Its checkpoint may still be being written."""
        self.close()
        self.say(
            f"epoch {self._epoch + 1}/{self._epochs} done  train ppl {train_ppl:.2f}  val ppl {val_ppl:.2f}"
            f"{'  (best)' if is_best else ''}  {seconds:.1f} s"
        )

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
