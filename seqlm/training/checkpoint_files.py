"""The checkpoints of one run on disk: ``last.pt``, the one before it, and ``best.pt``.

    new checkpoint  ->  a file beside last.pt, flushed
    last.pt         ->  previous.pt, if it has been read back and found whole
    the new file    ->  last.pt

So there is a whole checkpoint at any moment, whatever ends the process or the machine, and a last.pt that turns out to
be damaged costs what lies between it and the one before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from seqlm.errors import CheckpointError, DamagedError, FileError
from seqlm.rundir import Guard, RunDirectory, unguarded, write_json, write_json_lines
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, require_text, save_checkpoint


@final
class CheckpointFiles:
    """Reads and writes them, for the one process that owns the run.

    Args:
        run: whose they are.
        fingerprint: the run's identity.
        corpus_sha256: the digest of its text.
        attempt: of the process, for the record.
        guard: called immediately before a file is put in place, to find out whether the run is still this process's.
        warn: told, in one line, of a checkpoint that was passed over.
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

        Raises:
            CheckpointError: both are damaged, or one is of another run or another text.
            FileError: one cannot be read.
        """
        last, previous = self._run.last_checkpoint, self._run.previous_checkpoint
        if not last.exists() and not previous.exists():
            return None
        try:
            checkpoint = self.load(last)
        except CheckpointError as error:
            if not (isinstance(error, DamagedError) or not last.exists()) or not previous.exists():
                raise
            checkpoint = self.load(previous)
            self._warn(f"{error}; going on from {previous.name}, the checkpoint before it")
            return previous, checkpoint
        self._is_whole = True
        return last, checkpoint

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
        # best.pt first: a worker killed between the two repeats the epoch and writes the same best.pt again.
        if is_best:
            best = Checkpoint(**{**vars(checkpoint), "optimizer": None})
            save_checkpoint(run.best_checkpoint, best, guard=self._guard)
        save_checkpoint(run.last_checkpoint, checkpoint, guard=self._make_room)
        if read_back:
            try:
                load_checkpoint(run.last_checkpoint, self._fingerprint, mmap=True)
            except CheckpointError as error:
                what = str(error).partition(";")[0]
                raise FileError(f"{what}, right after it was written; is the disk failing?") from None
            self._is_whole = True
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

    def _make_room(self) -> None:
        """The new checkpoint lies beside ``last.pt``, complete: the present one steps back."""
        self._guard()
        if self._is_whole:
            self._is_whole = False
            _also_as(self._run.last_checkpoint, self._run.previous_checkpoint)


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
