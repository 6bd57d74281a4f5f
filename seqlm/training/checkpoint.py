"""Checkpoints: what they hold, how they are written in one step, and how they are refused.

A checkpoint is a dictionary of tensors and plain data, so that it loads with ``weights_only=True`` and no code of
the file is ever run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqlm.errors import CheckpointError, FileError
from seqlm.rundir import Guard, replacing, unguarded

FORMAT = "seqlm checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at the end of an epoch."""

    fingerprint: str
    """Identity of the run that wrote it."""
    corpus_sha256: str
    """Digest of the text that it was trained on."""
    vocabulary: list[str]
    """Token of each id."""
    model: dict[str, torch.Tensor]
    """Parameters."""
    optimizer: dict[str, Any]
    """State of the optimizer."""
    history: list[dict[str, Any]]
    """The record of every finished epoch, as ``metrics.jsonl`` has them."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, guard: Guard = unguarded) -> None:
    """Write a checkpoint beside ``path`` and put it in place in one step.

    Raises:
        FileError: it cannot be written; the checkpoint that stood there before stays.
        LeaseLostError: ``guard`` says that the run is another worker's by now; the same holds.
    """
    content = {"format": FORMAT, **vars(checkpoint)}
    with replacing(path, guard=guard) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # The archive writer of PyTorch reports a full disk as a RuntimeError without the system's reason.
            raise OSError(None, f"the disk is full or failing ({str(error).splitlines()[0][:120]})") from None


def load_checkpoint(path: Path, fingerprint: str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint of the run with ``fingerprint``.

    Raises:
        CheckpointError: truncated, not a checkpoint of ours, holding anything but tensors and plain data, or of
            another run.
        FileError: the file cannot be read.
    """
    advice = "move it away to start this run again from its first epoch"
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder where a checkpoint should be; {advice}") from None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # torch.load raises many kinds for a damaged or malicious file; none says more to a person
        raise CheckpointError(f"{path} is truncated or not a seqlm checkpoint; {advice}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f'{path} is not a seqlm checkpoint of the format "{FORMAT}"; {advice}')
    try:
        checkpoint = Checkpoint(**content)
    except TypeError:
        raise CheckpointError(f"{path} lacks parts of a seqlm checkpoint; {advice}") from None
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another run (fingerprint {checkpoint.fingerprint[:8]}, this run has "
            f"{fingerprint[:8]}); {advice}"
        )
    return checkpoint


def require_text(path: Path, checkpoint: Checkpoint, corpus_sha256: str) -> None:
    """Check that the checkpoint of ``path`` was trained on the text with that digest.

    Raises:
        CheckpointError: on another one.
    """
    if checkpoint.corpus_sha256 != corpus_sha256:
        raise CheckpointError(
            f"{path} was trained on another text (sha256 {checkpoint.corpus_sha256[:12]}, found "
            f"{corpus_sha256[:12]}); give the text that this run began with"
        )
