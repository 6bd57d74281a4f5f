"""What follows the events of :mod:`seqlm.training.trainer`: a run is trained to its end, or a canary is tried."""

import statistics
from collections.abc import Mapping

import torch

from seqlm.comparisons import is_compared, settle
from seqlm.environment import CANARY, KEEP_LAST
from seqlm.errors import CheckpointError
from seqlm.models.products import onednn_fault
from seqlm.reading import timestamp
from seqlm.records.runs import CanaryResult, Result, Rung
from seqlm.rounding import changes, worker_of_checkpoint
from seqlm.rundir import RunDirectory, stopped_reason
from seqlm.search import Search, decide
from seqlm.token_losses import write_token_losses
from seqlm.training.attempt import Attempt, LeftAtRungError, StopRequested
from seqlm.training.checkpoint import Checkpoint, checkpoint_from_first
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.progress import Progress
from seqlm.training.records import require_perplexity, result_record
from seqlm.training.saving import Saving
from seqlm.training.scores import score
from seqlm.training.trainer import Diverged, EpochBegins, EpochEnded, StepsDone, Trainer

VALID_WINDOWS = 2
"""Windows of the validation text that a canary looks at: evaluating needs memory of its own."""
UNTIMED_STEPS = 4
"""Steps at the beginning whose time says nothing: memory is new, and libraries set themselves up."""


def train(trainer: Trainer, attempt: Attempt, search: Search | None = None) -> Result:
    """Train to ``train.epochs``, or end at the last checkpoint if that is further. Return the result.

    Several ranks stop after the same step, and only the first one writes files.

    Raises:
        CheckpointError: the run's own checkpoint cannot be used.
        LeftAtRungError: ``search`` or a comparison ends the training between two epochs. The state has been saved.
        DivergedError: a loss or gradient norm is not finite. Nothing of that step is saved.
        StopRequested: the attempt was asked to stop. The state has been saved.
        FileError: a file of the run cannot be written.
    """
    files = CheckpointFiles(
        attempt=attempt, fingerprint=trainer.config.fingerprint(), corpus_sha256=trainer.corpus.sha256
    )
    saving = Saving(trainer, files)
    progress = Progress(trainer, attempt)
    if trainer.rank.matmul:
        fault = onednn_fault(torch.bfloat16 if trainer.config.train.precision == "bf16" else torch.float32)
        without = f" (without oneDNN: {fault})" if fault else ""
        progress.say(f"float32 matrix products on {trainer.rank.device_name}: {trainer.rank.matmul}{without}")
    try:
        _resume(trainer, files, progress)
        if line := trainer.prepare():
            progress.say(line)
        saving.begin_trace()
        epochs = trainer.config.train.epochs
        has_comparisons = trainer.rank.from_rank(0, trainer.rank.is_first and is_compared(attempt.run, epochs))
        for event in trainer.events(
            epochs,
            asks=lambda: (attempt.stop.received, saving.is_due()),
            before_window=progress.before_window,
        ):
            if isinstance(event, EpochBegins) and trainer.step == 0 and search and trainer.epoch in search.rungs:
                _decide(trainer, attempt, search, saving)
            if isinstance(event, EpochBegins) and trainer.step == 0 and has_comparisons:
                _settle(trainer, attempt, saving)
            progress.show(event)
            if isinstance(event, StepsDone | Diverged):
                saving.trace(event)
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
        return _finish(trainer, files, progress)
    finally:
        progress.close()
        saving.close()


def _decide(trainer: Trainer, attempt: Attempt, search: Search, saving: Saving) -> None:
    """Leave at a rung unless the run is to go on. The first rank decides, once the files of its epochs are written."""
    reason = None
    if trainer.rank.is_first:
        saving.wait()
        size = len(trainer.corpus.vocabulary)
        found = decide(attempt.run, search, trainer.epoch, attempt.number, vocab_size=size, guard=attempt.guard)
        if found == "stopped":
            reason = stopped_reason(attempt.run.read_stopped() or Rung())
    _leave(trainer, reason)


def _settle(trainer: Trainer, attempt: Attempt, saving: Saving) -> None:
    """Leave if all comparisons of the run are decided. The first rank decides, and finishes its files."""
    reason = None
    if trainer.rank.is_first:
        reason = settle(attempt.run, trainer.config.train.epochs, attempt.number, guard=attempt.guard)
        if reason is not None:
            saving.wait()
    _leave(trainer, reason)


def _leave(trainer: Trainer, reason: str | None) -> None:
    """Leave if the first rank has a reason to."""
    reason = trainer.rank.from_rank(0, reason)
    if reason is not None:
        raise LeftAtRungError(reason)


def _resume(trainer: Trainer, files: CheckpointFiles, progress: Progress) -> None:
    """Restore the checkpoint that the first rank finds, if there is one."""
    run = files.run

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
        if line := changes(worker_of_checkpoint(run), run.read_worker(trainer.attempt)):
            progress.say(line)


def _finish(trainer: Trainer, files: CheckpointFiles, progress: Progress) -> Result:
    """Score the parameters of the best epoch, and write the result."""
    best = checkpoint_from_first(trainer.rank, lambda: files.load_best(trainer.history))
    assert best is not None, "load_best finds it or raises"
    trainer.model.load_state_dict(best.model)
    scores, losses = score(trainer, progress.before_window)
    result = result_record(trainer, scores)
    if trainer.rank.is_first:
        write_token_losses(files.run, losses.tolist(), guard=files.attempt.guard)
        files.run.write_result(result, guard=files.attempt.guard)
        files.finish(keep_last=KEEP_LAST.read())
    reached = f"best val ppl {result.best_val_ppl:.2f} in epoch {(result.best_epoch or 0) + 1}"
    progress.say(f"done  {reached}  test ppl {result.test_ppl:.2f}")
    return result


# -- canaries ------------------------------------------------------------------------------------------------------


def canary_steps(run: RunDirectory, env: Mapping[str, str]) -> int | None:
    """Return how many steps this worker trains as a canary. ``None``: it trains an ordinary run.

    A canary needs both the folder of one and ``SEQLM_CANARY``, so that a variable left in a shell cuts no run short.

    Raises:
        UsageError: the variable is not a valid number of steps.
    """
    if not run.is_canary:
        return None
    expected = f"a whole number above {UNTIMED_STEPS}"
    return CANARY.read(env, is_valid=lambda steps: (steps or 0) > UNTIMED_STEPS, expected=expected)


def run_canary(trainer: Trainer, attempt: Attempt, steps: int) -> CanaryResult:
    """Train ``steps`` steps, of as many epochs as that needs, evaluate a little, and write ``canary.json``.

    Memory is that of the rank that needs most. On a GPU ``reserved_memory_bytes`` is what the process holds of it for
    tensors, a little more than their peak, and ``graph_memory_bytes`` what the steps took besides: recorded graphs and
    libraries' workspaces (too much if another process took memory meanwhile). CUDA's own context comes on top.

    Raises:
        DivergedError: a loss or gradient norm is not finite.
        StopRequested: the worker was asked to stop.
        FileError: the file cannot be written.
    """
    rank = trainer.rank
    on_gpu = rank.device.type == "cuda"
    before = _besides_tensors(rank.device) if on_gpu else 0
    if (line := trainer.prepare()) and rank.is_first:
        print(line, flush=True)
    seconds: list[float] = []
    for event in trainer.events(steps, asks=lambda: (attempt.stop.received, False), read_each=True):
        if isinstance(event, StepsDone):
            seconds += [step_seconds for _, _, step_seconds in event.rows]
            if event.stop:
                raise StopRequested
            if len(seconds) == steps:
                break
    require_perplexity(trainer.evaluate("valid", most=VALID_WINDOWS), f"after {steps} steps")
    step_seconds = statistics.median(seconds[UNTIMED_STEPS:])
    record = CanaryResult(
        steps=steps,
        step_seconds=step_seconds,
        train_tokens_per_second=trainer.tokens_per_step / step_seconds,
        peak_memory_bytes=rank.highest(rank.peak_memory_bytes()),
        reserved_memory_bytes=rank.highest(torch.cuda.max_memory_reserved(rank.device)) if on_gpu else None,
        graph_memory_bytes=rank.highest(max(0, _besides_tensors(rank.device) - before)) if on_gpu else None,
        device=rank.device_name,
        device_memory_bytes=torch.cuda.get_device_properties(rank.device).total_memory if on_gpu else None,
        ranks=rank.world_size,
        threads=torch.get_num_threads(),
        attempt=trainer.attempt,
        finished_at=timestamp(),
    )
    if rank.is_first:
        record.write(attempt.run.path, guard=attempt.guard)
        print(f"canary: {steps} steps, {step_seconds:.3g} s each; it fits and trains", flush=True)
    return record


def _besides_tensors(device: torch.device) -> int:
    """Return the memory of the GPU that is taken, by any process, less what this one holds for tensors."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)
