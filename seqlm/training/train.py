"""Train a run to its end: the protocol of :mod:`seqlm.training.trainer` with what follows its events."""

from __future__ import annotations

from typing import Any

from seqlm.environment import KEEP_LAST
from seqlm.errors import CheckpointError
from seqlm.files import Guard, read_json, unguarded, write_json
from seqlm.rounding import changes, worker_of_checkpoint
from seqlm.rundir import RunDirectory, stopped_reason
from seqlm.search import Search, decide
from seqlm.training.attempt import LeftAtRungError, StopRequested, StopSignal
from seqlm.training.checkpoint import Checkpoint, checkpoint_from_first
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.progress import Progress
from seqlm.training.records import result_record
from seqlm.training.saving import Saving
from seqlm.training.trainer import EpochBegins, EpochEnded, StepsDone, Trainer


def train(
    trainer: Trainer,
    run: RunDirectory,
    *,
    stop: StopSignal,
    search: Search | None = None,
    guard: Guard = unguarded,
) -> dict[str, Any]:
    """Train to ``train.epochs``, or end at the last checkpoint if that is further. Return the result.

    Args:
        trainer: of this rank.
        run: its folder. Only the first rank writes files.
        stop: asked after each step. Several ranks stop after the same step.
        search: may end the training at one of its rungs, between two epochs.
        guard: called before a file of the run is put in place. Raises if this process no longer owns the run.

    Raises:
        CheckpointError: the run's own checkpoint cannot be used.
        LeftAtRungError: a search ends the training here. The state has been saved.
        DivergedError: a loss or gradient norm is not finite. Nothing of that step is saved.
        StopRequested: ``stop`` was set. The state has been saved.
        FileError: a file of the run cannot be written.
    """
    files = CheckpointFiles(
        run=run,
        fingerprint=trainer.config.fingerprint(),
        corpus_sha256=trainer.corpus.sha256,
        attempt=trainer.attempt,
        guard=guard,
    )
    saving = Saving(trainer, files)
    progress = Progress(trainer, run.progress_file(trainer.attempt), guard=guard)
    if trainer.rank.matmul:
        progress.say(f"float32 matrix products on {trainer.rank.device_name}: {trainer.rank.matmul}")
    try:
        _resume(trainer, run, files, progress)
        for event in trainer.events(
            trainer.config.train.epochs,
            asks=lambda: (stop.received, saving.is_due()),
            before_window=progress.before_window,
        ):
            if isinstance(event, EpochBegins) and trainer.step == 0 and search and trainer.epoch in search.rungs:
                _decide(trainer, run, search, saving, guard)
            progress.show(event)
            if isinstance(event, StepsDone) and event.stop:
                saving.save()
                saving.wait()
                progress.say(
                    f"stopped and saved after {trainer.step} of {trainer.steps} steps of epoch {trainer.epoch + 1}"
                )
                raise StopRequested
            if isinstance(event, EpochEnded) or (isinstance(event, StepsDone) and event.save):
                saving.save()
        saving.wait()
        return _finish(trainer, run, files, progress, guard)
    finally:
        progress.close()
        saving.close()


def _decide(trainer: Trainer, run: RunDirectory, search: Search, saving: Saving, guard: Guard) -> None:
    """Leave at a rung unless the run is to go on. The first rank decides, once the files of its epochs are written."""
    reason = None
    if trainer.rank.is_first:
        saving.wait()
        if decide(run, search, trainer.epoch, trainer.attempt, guard=guard) == "stopped":
            reason = stopped_reason(run.read_stopped() or {})
    reason = trainer.rank.from_first(reason)
    if reason is not None:
        raise LeftAtRungError(reason)


def _resume(trainer: Trainer, run: RunDirectory, files: CheckpointFiles, progress: Progress) -> None:
    """Restore the checkpoint that the first rank finds, if there is one."""

    def load() -> Checkpoint | None:
        if reason := run.cannot_go_on(trainer.config.train.epochs):
            raise CheckpointError(f"this run cannot go on: {reason}")
        return files.load_last()

    checkpoint = checkpoint_from_first(trainer.rank, load)
    if checkpoint is None:
        return
    trainer.restore(checkpoint)
    position = checkpoint.position
    steps = f" and {position.step} of {trainer.steps} steps" if position.step else ""
    progress.say(f"resumed after {position.epoch} of {trainer.config.train.epochs} epochs{steps}")
    if trainer.rank.is_first:
        files.write_metrics(trainer.history)  # the file may have been cut or lost
        if line := changes(worker_of_checkpoint(run), read_json(run.worker_file(trainer.attempt)) or {}):
            progress.say(line)


def _finish(
    trainer: Trainer, run: RunDirectory, files: CheckpointFiles, progress: Progress, guard: Guard
) -> dict[str, Any]:
    """Measure the parameters of the best epoch on the test split, and write the result."""
    best = checkpoint_from_first(trainer.rank, lambda: files.load_best(trainer.history))
    assert best is not None, "load_best finds it or raises"
    trainer.model.load_state_dict(best.model)
    result = result_record(trainer, trainer.evaluate("test", progress.before_window))
    if trainer.rank.is_first:
        write_json(run.result_file, result, guard=guard)
        files.finish(keep_last=KEEP_LAST.read())
    reached = f"best val ppl {result['best_val_ppl']:.2f} in epoch {result['best_epoch'] + 1}"
    progress.say(f"done  {reached}  test ppl {result['test_ppl']:.2f}")
    return result
