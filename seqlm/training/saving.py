"""Save a training while it goes on: a copy of its tensors in memory, written by a thread of its own."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, final

import torch

from seqlm.environment import CHECKPOINT_MINUTES
from seqlm.trace import TraceWriter
from seqlm.training.checkpoint import Checkpoint
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.trainer import Diverged, StepsDone, Trainer

NICENESS = 10
"""Of the thread that writes: if a core is free it loses nothing, else the training goes first."""


@final
class Saving:
    """Saves the checkpoints of a training. All ranks call :meth:`save` after the same step, and the first one writes.

    The trace of its steps (:mod:`seqlm.trace`) is written before the checkpoint that covers them. An error of the
    thread is raised by the next call of any method but :meth:`close`.
    """

    def __init__(self, trainer: Trainer, files: CheckpointFiles) -> None:
        self._trainer = trainer
        self._files = files
        self._trace = TraceWriter(files.run, files.attempt.guard)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer", initializer=_be_nice)
        self._work: Future[None] | None = None
        self._memory: dict[tuple[Any, ...], torch.Tensor] = {}
        self._every_seconds = 60 * CHECKPOINT_MINUTES.read()
        self._saved_at = time.monotonic()

    def begin_trace(self) -> None:
        """Have the trace go on where the training stands."""
        if self._trainer.rank.is_first:
            self._trace.begin(self._trainer.epoch * self._trainer.steps + self._trainer.step)

    def trace(self, event: StepsDone | Diverged) -> None:
        """Keep the rows of steps for the next checkpoint; write them now if there will be none."""
        if self._trainer.rank.is_first:
            self._trace.add(event.rows)
            if isinstance(event, Diverged):
                self.wait()
                self._trace.take()()

    def is_due(self) -> bool:
        """Whether the time between two checkpoints within an epoch is over. Raises the last one's error."""
        if not self.is_writing:
            self.wait()
        return self._trainer.rank.is_first and time.monotonic() - self._saved_at >= self._every_seconds

    def save(self) -> None:
        """Copy the state, and write the copy in the background."""
        checkpoint = self._trainer.checkpoint()
        self._saved_at = time.monotonic()
        if self._trainer.rank.is_first:
            self.wait()  # the copies have one place
            self._work = self._thread.submit(
                self._write, self._trace.take(), copied_checkpoint(checkpoint, self._memory)
            )

    def _write(self, rows: Callable[[], None], checkpoint: Checkpoint) -> None:
        rows()
        self._files.save(checkpoint)

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._work is not None and not self._work.done()

    def wait(self) -> None:
        """Return when all is written."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """End the thread once all is written."""
        self._thread.shutdown(wait=True)
        self._trace.close()


def _be_nice() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def copied_checkpoint(checkpoint: Checkpoint, memory: dict[tuple[Any, ...], torch.Tensor]) -> Checkpoint:
    """Return a checkpoint with copies on the CPU of its parameters and of the optimizer's tensors.

    The copies are in ``memory``, and the next call writes into them: only the first one has to wait for pages.
    """
    parts = {"model": checkpoint.model, "optimizer": checkpoint.optimizer}
    return replace(checkpoint, **_copied(parts, memory))


def _copied(tree: Any, memory: dict[tuple[Any, ...], torch.Tensor]) -> Any:
    """Return ``tree``, nested tables and lists, with a copy in place of each tensor, in the same order in memory.

    Names of the same memory, as of a tied parameter, share their copy.
    """
    if isinstance(tree, torch.Tensor):
        key = (tree.device, tree.data_ptr(), tree.dtype, tree.shape, tree.stride())
        if key not in memory:
            memory[key] = torch.empty_like(tree, device="cpu", pin_memory=tree.is_cuda)
        return memory[key].copy_(tree.detach())
    if isinstance(tree, dict):
        return {name: _copied(item, memory) for name, item in tree.items()}
    return [_copied(item, memory) for item in tree] if isinstance(tree, list | tuple) else tree
