"""Ranks of a run in processes of their own that end in the middle.

Processes are forked from one that has imported torch, since importing it takes longer than the tiny runs.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from seqlm.data.corpus import load_corpus
from seqlm.errors import EXIT_STOPPED
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import Attempt, StopRequested, StopSignal
from seqlm.training.checkpoint import Position, load_checkpoint
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.distributed import Rank, process_group
from seqlm.training.saving import Saving
from seqlm.training.step import TrainingStep
from seqlm.training.train import train
from seqlm.training.trainer import Trainer
from tests.waiting import wait_for

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "torch._dynamo"])  # the first optimizer of a process imports it


@dataclass(frozen=True, kw_only=True)
class End:
    """How a rank ends before its time."""

    by: signal.Signals
    at: Literal["step", "middle", "validation", "save", "saved", "test"]
    """Before a step, in the middle of one, in the validation after an epoch, before or after a checkpoint is written,
    in the test."""
    number: int = 1
    """Which of them, counted from 1 in this process."""
    rank: int = 0


def live(
    folder: Path,
    text: Path,
    *,
    ranks: int = 1,
    end: End | None = None,
    save_every: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[int]:
    """One attempt at the run in ``folder``, which saves within its epochs after given steps; return the exit codes."""
    attempt = RunDirectory(folder).last_attempt() + 1
    RunDirectory(folder).attempt_dir(attempt).mkdir(parents=True)
    arguments = (folder, text, ranks, attempt, end, save_every, dict(variables or {}))
    sys.audit("os.fork")  # which the fork server does unseen
    processes = [CONTEXT.Process(target=_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        wait_for(
            lambda: [process.exitcode for process in processes],
            "the ranks to end",
            until=lambda codes: None not in codes,
        )
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _rank(
    index: int,
    folder: Path,
    text: Path,
    ranks: int,
    attempt: int,
    end: End | None,
    save_every: int | None,
    variables: dict[str, str],
) -> None:
    log = RunDirectory(folder).attempt_dir(attempt) / f"rank-{index}.log"
    sys.stdout = sys.stderr = log.open("w")
    os.environ.update(variables)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["SEQLM_RENDEZVOUS"] = str(RunDirectory(folder).attempt_dir(attempt) / "rendezvous")
    torch.set_num_threads(1)
    stop = StopSignal()
    stop.install()
    rank = Rank(index=index, world_size=ranks)
    run = RunDirectory(folder)
    config = run.read_config()
    with process_group(rank):
        trainer = Trainer(config, load_corpus(config.data, text), rank=rank, attempt=attempt, model_dir=run.model_dir)
        if save_every is not None:
            save_often(trainer, save_every)
        if end is not None and end.rank == index:
            arrange(trainer, end)
        try:
            train(trainer, Attempt(run=run, rank=rank, number=attempt, stop=stop))
        except StopRequested:
            sys.exit(EXIT_STOPPED)


def save_often(trainer: Trainer, every: int) -> None:
    """Make the time between two checkpoints end after a given number of steps."""
    Saving.is_due = lambda self: trainer.step % every == 0  # type: ignore[method-assign] -- of this process alone


def arrange(trainer: Trainer, end: End) -> None:
    """Make this process send itself the signal when the moment has come."""
    count = 0

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def then(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == end.number:
                signal.pthread_kill(threading.get_ident(), end.by)  # this thread does not go a step further
            return function(*arguments, **options)

        return then

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def then(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            before(lambda: None)()
            return result

        return then

    if end.at == "step":
        TrainingStep.__call__ = before(TrainingStep.__call__)  # type: ignore[method-assign] -- of this process alone
    elif end.at == "middle":
        forward = trainer.model.features

        def features(*arguments: Any) -> Any:
            result = forward(*arguments)  # the masks of the step are drawn by now
            return before(lambda: result)() if trainer.model.training else result

        trainer.model.features = features  # type: ignore[method-assign]
    elif end.at in ("validation", "test"):
        evaluate = trainer.evaluate

        def look(split: str, before_window: Callable[[], object]) -> Any:
            wanted = split == ("valid" if end.at == "validation" else "test")
            return evaluate(split, before(before_window) if wanted else before_window)

        trainer.evaluate = look  # type: ignore[assignment]
    else:
        wrap = before if end.at == "save" else after
        CheckpointFiles.save = wrap(CheckpointFiles.save)  # type: ignore[method-assign] -- of this process alone


def position_of(folder: Path) -> Position:
    """Where the checkpoint of a run stands."""
    run = RunDirectory(folder)
    return load_checkpoint(run.last_checkpoint, run.read_config().fingerprint()).position
