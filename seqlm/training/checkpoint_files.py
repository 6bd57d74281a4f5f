"""The checkpoints of one run on disk: ``last.pt``, the one before it, and ``best.pt``.

    new checkpoint  ->  a file beside last.pt, flushed
    last.pt         ->  previous.pt, if it has been read back and found whole
    the new file    ->  last.pt
    its parameters  ->  best.pt, if the epoch that has just ended is the best one

So there is a whole checkpoint at any moment, whatever ends the process or the machine, and a last.pt that turns out to
be damaged costs what lies between it and the one before.

best.pt follows last.pt, so it never holds an epoch that the run may do again with another result. A worker that is
killed between the two leaves a best.pt that is missing or of an earlier epoch. The next one rebuilds it from last.pt,
which then stands at the end of the best epoch.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from seqlm.errors import CheckpointError, DamagedError, FileError
from seqlm.files import Guard, unguarded, write_json, write_json_lines
from seqlm.reading import exists
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import Checkpoint, digest, load_checkpoint, require_text, save_checkpoint


@final
class CheckpointFiles:
    """Reads and writes them, for the one process that owns the run.

    Args:
        run: whose they are.
        fingerprint: the run's identity.
        corpus_sha256: the digest of its text.
        attempt: of the process, for the record.
        guard: called immediately before a file is put in place, to find out whether the run is still this process's.
        warn: called with one line about a checkpoint that was passed over, or a ``best.pt`` that was not as it should.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        fingerprint: str,
        corpus_sha256: str,
        attempt: int,
        guard: Guard = unguarded,
        warn: Callable[[str], None] = lambda line: print(f"warning: {line}", file=sys.stderr, flush=True),
    ) -> None:
        self._run = run
        self._fingerprint = fingerprint
        self._corpus_sha256 = corpus_sha256
        self._attempt = attempt
        self._guard = guard
        self._warn = warn
        self._is_whole = False
        """Whether ``last.pt`` has been read back since it was written."""

    def load_last(self) -> tuple[Path, Checkpoint] | None:
        """The checkpoint to go on from, or none where the run has none; a damaged ``last.pt`` gives way to the other.

        A ``best.pt`` that does not belong to it is rebuilt if possible. If not, a warning says so: a later epoch may
        still be better.

        Raises:
            CheckpointError: both are damaged, or one is of another run or another text.
            FileError: one cannot be read.
        """
        last, previous = self._run.last_checkpoint, self._run.previous_checkpoint
        if not exists(last) and not exists(previous):
            return None
        try:
            checkpoint = self.load(last)
        except CheckpointError as error:
            if not (isinstance(error, DamagedError) or not exists(last)) or not exists(previous):
                raise
            checkpoint = self.load(previous)
            self._warn(f"{error}; going on from {previous.name}, the checkpoint before it")
            found = previous
        else:
            self._is_whole, found = True, last
        if checkpoint.history:
            try:
                self.load_best(checkpoint.history)
            except CheckpointError as error:
                epoch = best_epoch(checkpoint.history) + 1
                self._warn(f"{_reason(error)}; this run needs a better epoch than epoch {epoch} to end well")
        return found, checkpoint

    def load_best(self, history: list[dict[str, Any]]) -> tuple[Path, Checkpoint]:
        """``best.pt`` with the parameters at the end of the best epoch of ``history``.

        If it is missing, damaged or of another epoch, it is rebuilt from a checkpoint at the end of that epoch.

        Raises:
            CheckpointError: there is no such checkpoint, or ``best.pt`` is of another run or text.
            FileError: a file cannot be read or written.
        """
        path, epoch = self._run.best_checkpoint, best_epoch(history)
        wanted = digest(history[: epoch + 1])
        try:
            best = self.load(path)
        except CheckpointError as error:
            if exists(path) and not isinstance(error, DamagedError):
                raise
            problem = _reason(error)
        else:
            if digest(best.history) == wanted:
                return path, best
            held = best.history[-1]["epoch"]
            problem = (
                f"{path} is of another attempt at epoch {epoch + 1}, whose parameters differ"
                if held == epoch
                else f"{path} holds epoch {held + 1}, the best of this run is epoch {epoch + 1}"
            )
        for other in (self._run.last_checkpoint, self._run.previous_checkpoint):
            with contextlib.suppress(CheckpointError):
                checkpoint = self.load(other)
                if checkpoint.position.step == 0 and digest(checkpoint.history) == wanted:
                    self._save_best(checkpoint)
                    self._warn(f"{problem}; rebuilt from {other.name}")
                    return path, checkpoint
        raise CheckpointError(f"{problem}; move {path.parent} away to start this run again from its first epoch")

    def load(self, path: Path) -> Checkpoint:
        """One of the run's checkpoints.

        Raises:
            CheckpointError: it cannot be used.
            FileError: it cannot be read.
        """
        checkpoint = load_checkpoint(path, self._fingerprint)
        require_text(path, checkpoint, self._corpus_sha256)
        return checkpoint

    def save(self, checkpoint: Checkpoint, *, is_best: bool = False, read_back: bool = True) -> None:
        """Write ``last.pt`` and what follows from it; ``best.pt`` too, if its epoch, just ended, is the best.

        The epochs of ``metrics.jsonl`` are the checkpoint's own history: none stands there twice, and none is missing.

        Args:
            checkpoint: the state to go on from.
            is_best: whether the epoch that has just ended is the best one.
            read_back: look whether the file is whole before the next one takes the place of ``previous.pt``; False
                where time is short: then ``previous.pt`` stays until somebody has read this one.

        Raises:
            FileError: a file cannot be written, or cannot be read back.
        """
        run = self._run
        save_checkpoint(run.last_checkpoint, checkpoint, guard=self._make_room)
        if read_back:
            try:
                load_checkpoint(run.last_checkpoint, self._fingerprint, mmap=True)
            except CheckpointError as error:
                raise FileError(f"{_reason(error)}, right after it was written; is the disk failing?") from None
            self._is_whole = True
        if is_best:
            self._save_best(checkpoint)
        position = checkpoint.position
        if position.step == 0:
            self.write_metrics(checkpoint.history)
        record = {
            "epoch": position.epoch,
            "step": position.step,
            "attempt": self._attempt,
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(run.position_file, record, guard=self._guard, sync=False)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl`` from the history of a checkpoint, which is the truth.

        Raises:
            FileError: it cannot be written.
        """
        write_json_lines(self._run.metrics_file, history, guard=self._guard)

    def drop_previous(self) -> None:
        """The run is done: nobody goes on from the checkpoint before the last."""
        self._guard()
        self._run.previous_checkpoint.unlink(missing_ok=True)

    def drop_last(self) -> None:
        """Delete ``last.pt`` of a run that is done; :meth:`load_best` has read ``best.pt`` before."""
        self._guard()
        self._run.last_checkpoint.unlink(missing_ok=True)

    def _save_best(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(self._run.best_checkpoint, replace(checkpoint, optimizer=None), guard=self._guard)

    def _make_room(self) -> None:
        """The new checkpoint lies beside ``last.pt``, complete: the present one steps back."""
        self._guard()
        if self._is_whole:
            self._is_whole = False
            _also_as(self._run.last_checkpoint, self._run.previous_checkpoint)


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Index of the epoch with the lowest validation loss, the first of equals; NaN is never the best."""
    losses = [math.inf if math.isnan(record["val_loss"]) else record["val_loss"] for record in history]
    return losses.index(min(losses))


def _reason(error: CheckpointError) -> str:
    """What is wrong with a checkpoint, without the advice that follows it."""
    return str(error).partition(";")[0]


def _also_as(path: Path, other: Path) -> None:
    """Let ``other`` be the file at ``path`` too; where a file has only one name, ``path`` is missing for an instant."""
    link = other.with_name(f".{other.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:
        path.replace(other)
    else:
        link.replace(other)
        link.unlink(missing_ok=True)  # it is still there if both were names of one file: then renaming does nothing
