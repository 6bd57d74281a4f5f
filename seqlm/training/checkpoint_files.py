"""The checkpoints of one run on disk: ``last.pt``, the one before it, and ``best.pt``.

    new checkpoint  ->  a file beside last.pt, read back and flushed
    last.pt         ->  previous.pt, a second name (none on a file system without hard links)
    the new file    ->  last.pt
    last.pt         ->  epoch-10.pt, a second name, if ``policy.keep_epochs`` has the epoch that has just ended
    its parameters  ->  best.pt, if the epoch that has just ended is the best one

So there is a whole checkpoint at any moment, whatever ends the process or the machine, and a last.pt that turns out to
be damaged costs what lies between it and the one before.

best.pt follows last.pt, so it never holds an epoch that the run may do again with another result. A worker that is
killed between the two leaves a best.pt that is missing or of an earlier epoch. The next one rebuilds it from last.pt,
which then stands at the end of the best epoch.
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from seqlm.environment import KEEP_EPOCHS
from seqlm.errors import CheckpointError, DamagedError, file_errors
from seqlm.files import delete, hard_link, rename, second_name, write_json_lines
from seqlm.reading import exists, timestamp
from seqlm.records.attempts import Position
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import Attempt
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, require_text, save_checkpoint, weights_digest
from seqlm.training.failure import tell
from seqlm.training.records import best_epoch


@final
@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """Reads and writes them, for the one process that owns the run."""

    attempt: Attempt
    """Of the process that owns the run."""
    fingerprint: str
    """The run's identity."""
    corpus_sha256: str
    """The digest of its text."""

    @property
    def run(self) -> RunDirectory:
        return self.attempt.run

    def load_last(self) -> Checkpoint | None:
        """Return the checkpoint to go on from. ``None``: the run has none.

        If ``last.pt`` is missing or damaged, ``previous.pt`` takes its place. A ``best.pt`` that does not belong to it
        is rebuilt if possible. If not, a warning says so: a later epoch may still be better.

        Raises:
            CheckpointError: both are damaged, or one is of another run or another text.
            FileError: one cannot be read.
        """
        last, previous = self.run.last_checkpoint, self.run.previous_checkpoint
        if not exists(last) and not exists(previous):
            return None
        try:
            checkpoint = self.load(last)
        except CheckpointError as error:
            if not (isinstance(error, DamagedError) or not exists(last)) or not exists(previous):
                raise
            checkpoint = self.load(previous)
            self.attempt.guard()
            with file_errors("write", last):
                rename(previous, last)
            tell(f"warning: {error}; going on from {previous.name}, the checkpoint before it")
        self._keep(checkpoint)  # the worker may have been killed before it had
        if checkpoint.history:
            try:
                self.load_best(checkpoint.history)
            except CheckpointError as error:
                tell(f"warning: {str(error).partition(';')[0]}; this run needs a better epoch to end well")
        return checkpoint

    def load_best(self, history: list[dict[str, Any]]) -> Checkpoint:
        """Return ``best.pt`` with the parameters at the end of the best epoch of ``history``.

        If it is missing, damaged or of another epoch, it is rebuilt from a checkpoint at the end of that epoch.

        Raises:
            CheckpointError: there is no such checkpoint, or ``best.pt`` is of another run or text.
            FileError: a file cannot be read or written.
        """
        path, epoch = self.run.best_checkpoint, best_epoch(history)
        for found in (path, self.run.last_checkpoint, self.run.previous_checkpoint):
            try:
                checkpoint = self.load(found)
            except CheckpointError as error:
                if found == path and exists(path) and not isinstance(error, DamagedError):
                    raise
                continue
            if checkpoint.history == history[: epoch + 1] and checkpoint.position.step == 0:
                if found != path:
                    self._save_best(checkpoint)
                    tell(f"warning: {path} was missing, damaged or of another epoch; rebuilt from {found.name}")
                return checkpoint
        raise CheckpointError(
            f"{path} does not hold the parameters of the best epoch, {epoch + 1}; move {path.parent} away to start "
            "this run again from its first epoch"
        )

    def load(self, path: Path) -> Checkpoint:
        """One of the run's checkpoints.

        Raises:
            CheckpointError: it cannot be used.
            FileError: it cannot be read.
        """
        checkpoint = load_checkpoint(path, self.fingerprint)
        require_text(path, checkpoint, self.corpus_sha256)
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``last.pt`` and what follows from it; ``best.pt`` too, if its epoch, just ended, is the best.

        The epochs of ``metrics.jsonl`` are the checkpoint's own history: none stands there twice, and none is missing.
        The record of an epoch that has just ended gets the digest of its weights here, since hashing takes time that
        the thread of the training does not have. Trainer and checkpoint share the record.

        Raises:
            FileError: a file cannot be written, or cannot be read back.
        """
        run = self.run
        if checkpoint.position.step == 0 and checkpoint.history:
            checkpoint.history[-1]["weights"] = weights_digest(checkpoint.model)
        save_checkpoint(run.last_checkpoint, checkpoint, guard=self._make_room)
        self._keep(checkpoint)
        position, history = checkpoint.position, checkpoint.history
        if position.step == 0:
            if best_epoch(history) == len(history) - 1:
                self._save_best(checkpoint)
            self.write_metrics(history)
        saved = Position(epoch=position.epoch, step=position.step, attempt=self.attempt.number, saved_at=timestamp())
        saved.write_file(run.position_file, guard=self.attempt.guard, sync=False)

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl`` from the history of a checkpoint, which is the truth.

        Raises:
            FileError: it cannot be written.
        """
        write_json_lines(self.run.metrics_file, history, guard=self.attempt.guard)

    def finish(self, *, keep_last: bool) -> None:
        """Delete the checkpoints that a finished run no longer needs."""
        self.attempt.guard()
        _delete(self.run.previous_checkpoint)
        if not keep_last:
            _delete(self.run.last_checkpoint)

    def _keep(self, checkpoint: Checkpoint) -> None:
        """Give ``last.pt`` a second name if it stands at the end of an epoch whose checkpoint is kept."""
        position = checkpoint.position
        if position.step > 0 or str(position.epoch) not in KEEP_EPOCHS.read().split(","):
            return
        kept = self.run.epoch_checkpoint(position.epoch)
        self.attempt.guard()
        _delete(kept)  # of an epoch that was repeated
        second_name(self.run.last_checkpoint, kept)

    def _save_best(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(self.run.best_checkpoint, replace(checkpoint, optimizer=None), guard=self.attempt.guard)

    def _make_room(self) -> None:
        """Rename the present ``last.pt``. The new checkpoint is complete, in a file of the same folder."""
        self.attempt.guard()
        _delete(self.run.previous_checkpoint)
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # a client of NFS may repeat what it has done
            hard_link(self.run.last_checkpoint, self.run.previous_checkpoint)


def _delete(path: Path) -> None:
    with file_errors("delete", path), contextlib.suppress(FileNotFoundError):
        delete(path)
