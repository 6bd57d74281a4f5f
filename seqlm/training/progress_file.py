"""``progress.json``: how far a worker is within its epoch, for other processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from seqlm.environment import PROGRESS_SECONDS
from seqlm.errors import FileError
from seqlm.files import Guard, unguarded, write_json
from seqlm.training.perplexity import perplexity

Phase: TypeAlias = Literal["train", "valid"]


@final
class ProgressFile:
    """Writes the file now and then. A view of the moment: it is not flushed to disk, and no run fails because of it.

    ``guard`` is called before the file is put in place, so a worker that has lost its run soon finds out.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_seconds: float = PROGRESS_SECONDS.default,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard = unguarded,
    ) -> None:
        self._path = path
        self.every_seconds = every_seconds
        self._guard = guard
        self._clock = clock
        self._written = -math.inf

    def write(
        self,
        *,
        epoch: int,
        step: int,
        steps: int,
        train_loss: float,
        train_tokens_per_second: float,
        phase: Phase,
        at_once: bool = False,
    ) -> None:
        """Write the state of the epoch, counted from 0, unless that was done a moment ago; ``at_once``: even then.

        Raises:
            LeaseLostError: the run is another worker's by now.
        """
        now = self._clock()
        if now - self._written < self.every_seconds and not at_once:
            return
        self._written = now  # also where writing fails: a full disk is not tried at every step
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "steps": steps,
            "train_loss": train_loss,
            "train_ppl": perplexity(train_loss),
            "train_tokens_per_second": train_tokens_per_second,
            "phase": phase,
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with contextlib.suppress(FileError):
            write_json(self._path, record, sync=False, guard=self._guard)
