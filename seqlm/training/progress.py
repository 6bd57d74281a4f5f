"""What a person sees of a training run: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO, final

from tqdm import tqdm

from seqlm.training.perplexity import perplexity

LINES_PER_EPOCH = 10
"""Lines of a log for each epoch, besides the one at its end."""


@final
class Progress:
    """Tells of the steps and epochs of one run. Silent unless ``enabled`` (the first rank)."""

    def __init__(self, *, epochs: int, steps: int, enabled: bool, stream: TextIO | None = None) -> None:
        self._epochs = epochs
        self._steps = steps
        self._enabled = enabled
        self._stream = stream or sys.stdout
        self._interactive = enabled and self._stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._epoch = 0
        self._done = 0
        self._started = time.perf_counter()

    def say(self, text: str) -> None:
        """One line."""
        if self._enabled:
            print(text, file=self._stream, flush=True)

    def epoch_begins(self, epoch: int, lr: float) -> None:
        """Epoch ``epoch``, counted from 0, starts with the learning rate ``lr``."""
        self._epoch = epoch
        self._done = 0
        self._started = time.perf_counter()
        if self._interactive:
            title = f"epoch {epoch + 1}/{self._epochs} lr {lr:.4g}"
            self._bar = tqdm(total=self._steps, desc=title, unit="step", leave=False, file=self._stream)

    def steps_done(self, steps: int, mean_loss_nats: float, tokens: int) -> None:
        """So many steps of the epoch are done; loss and number of tokens are those of the epoch so far."""
        before, self._done = self._done, steps
        every = math.ceil(self._steps / LINES_PER_EPOCH)
        if self._bar is not None:
            self._bar.update(steps - before)
            self._bar.set_postfix_str(f"loss {mean_loss_nats:.3f} ppl {perplexity(mean_loss_nats):.1f}", refresh=False)
        elif steps // every > before // every:
            rate = tokens / (time.perf_counter() - self._started)
            self.say(
                f"epoch {self._epoch + 1}/{self._epochs}  step {steps}/{self._steps}  loss {mean_loss_nats:.4f}  "
                f"ppl {perplexity(mean_loss_nats):.2f}  {rate:,.0f} tokens/s"
            )

    def epoch_done(self, train_ppl: float, val_ppl: float, seconds: float, *, is_best: bool) -> None:
        """The epoch's perplexities are known and its checkpoint is written."""
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
