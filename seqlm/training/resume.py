"""Resume a run: the checkpoint that all ranks agree on, and the state and random numbers within an epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.layout import own_columns
from seqlm.errors import CheckpointError, FileError, SeqlmError
from seqlm.models.state import State, join_states, map_state, rebuilt, tensors_of
from seqlm.training.checkpoint import Checkpoint, Position
from seqlm.training.checkpoint_files import CheckpointFiles
from seqlm.training.distributed import Rank

LAG_SECONDS = 60.0
"""How long a rank waits to see the checkpoint that the first rank has read: network file systems lag behind."""


def agreed_checkpoint(
    rank: Rank, files: CheckpointFiles, load: Callable[[], tuple[Path, Checkpoint] | None]
) -> Checkpoint | None:
    """Return on every rank what ``load`` returns on the first one. The other ranks read the same file.

    Raises:
        CheckpointError, FileError: what ``load`` raised on the first rank. Every rank raises it.
        FileError: another rank does not see the file that the first one has read.
    """
    found: tuple[Path, Checkpoint] | None = None
    error = ""
    kind: type[SeqlmError] = FileError
    if rank.is_first:
        try:
            found = load()
        except (CheckpointError, FileError) as caught:
            error, kind = str(caught), type(caught)
    is_checkpoint, error, path, mark = rank.from_first(
        [issubclass(kind, CheckpointError), error, str(found[0]) if found else "", _mark(found[1]) if found else []]
    )
    if error:
        raise (kind if rank.is_first else CheckpointError if is_checkpoint else FileError)(error)
    deadline = time.monotonic() + LAG_SECONDS
    while path and not rank.is_first:
        with contextlib.suppress(CheckpointError):
            checkpoint = files.load(Path(path))
            if _mark(checkpoint) == mark:
                return checkpoint
        if time.monotonic() > deadline:
            raise FileError(f"{path}: rank {rank.index} does not see what the first rank has read there")
        time.sleep(1)
    return found[1] if found else None


def _mark(checkpoint: Checkpoint) -> list[Any]:
    """Return what distinguishes a checkpoint from the others of its run, as plain data."""
    position = checkpoint.position
    return [len(checkpoint.history), position.epoch, position.step, position.loss_nats]


def restore_within_epoch(position: Position, rank: Rank, config: RunConfig, batch_axis: int) -> State:
    """Restore the random generator within an epoch, and return the state of this rank's columns.

    With another number of ranks, another type of device, or a GPU with other multiprocessors, the masks of the rest of
    the epoch differ from those of an uninterrupted run.
    """
    if (position.ranks, position.device) == (rank.world_size, rank.device.type):
        state = position.states[rank.index]
        set_generator_state(rank.device, position.generators[rank.index])
    else:
        own = own_columns(config.train.batch_size, rank.index, rank.world_size)
        whole = join_states(position.states, batch_axis)
        state = map_state(lambda tensor: tensor.narrow(batch_axis, own.start, len(own)), whole)
        torch.manual_seed(mask_seed(config.seed, position.epoch, rank.index) ^ position.step)
    return map_state(lambda tensor: tensor.to(rank.device).contiguous(), state)


def mask_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of the dropout masks of one epoch on one rank."""
    # Odd multipliers keep the seeds of neighbouring (epoch, rank) pairs apart; the generator scrambles the rest.
    return (seed + 0x9E3779B97F4A7C15 * (epoch + 1) + 0xC2B2AE3D27D4EB4F * rank) % 2**63


def gather_states(state: State, rank: Rank) -> list[State]:
    """Return the state of each rank's columns, on the CPU."""
    gathered = [rank.gather(tensor) for tensor in tensors_of(state)]
    return [rebuilt(state, iter([tensors[index] for tensors in gathered])) for index in range(rank.world_size)]


def generator_state(device: torch.device) -> Tensor:
    """Return the state of the global random generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Restore what :func:`generator_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
