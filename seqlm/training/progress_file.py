"""``progress.json``: where a worker stands within its epoch, for whoever watches the run from outside."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from seqlm.errors import LeaseLostError
from seqlm.rundir import Guard, unguarded
from seqlm.training.perplexity import perplexity

Phase: TypeAlias = Literal["train", "valid"]

WRITE_SECONDS = 1.0
"""How often the file is written by default, at most, while steps go by."""


@final
class ProgressFile:
    """Writes the file now and then. A view of the moment: it is not flushed to disk, and no run fails because of it.

    Yet it is what tells a worker soon that it has lost its run: ``guard`` is asked before the file is put in place.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_seconds: float = WRITE_SECONDS,
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
        ppl = perplexity(train_loss)
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "steps": steps,
            "train_loss": train_loss if math.isfinite(train_loss) else None,
            "train_ppl": ppl if math.isfinite(ppl) else None,
            "train_tokens_per_second": train_tokens_per_second if math.isfinite(train_tokens_per_second) else None,
            "phase": phase,
            "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        beside = self._path.with_name(f".{self._path.name}.tmp")
        try:
            beside.write_text(json.dumps(record) + "\n", "utf-8")
            self._guard()
            beside.replace(self._path)
        except (OSError, LeaseLostError) as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            if isinstance(error, LeaseLostError):
                raise
