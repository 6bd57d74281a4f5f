"""Whether two ranks of a user's own model take the step of one: this process is the first, and starts the second.

``python -m seqlm.check_model.ranks CONFIG FOLDER`` is the second one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from torch import Tensor

from seqlm.architectures import CustomConfig
from seqlm.check_model.checks import COLUMNS, Subject, differing, gradients_of, require
from seqlm.data.layout import own_columns
from seqlm.environment import COLLECTIVE_MINUTES, RENDEZVOUS
from seqlm.training.distributed import Rank, process_group, run_program

RANKS = 2
MINUTES = 5
"""How long the ranks wait for each other. A cold start of the second one takes long on a busy machine."""


def check_ranks(subject: Subject) -> str:
    """A step on two ranks, each with half of the columns, is the step of one."""
    whole = gradients_of(subject)
    with tempfile.TemporaryDirectory() as folder:
        meeting = {RENDEZVOUS.name: str(Path(folder, "rendezvous.json")), COLLECTIVE_MINUTES.name: str(MINUTES)}
        arguments = [json.dumps(vars(subject.config)), str(subject.folder)]
        with (
            mock.patch.dict(os.environ, meeting),
            subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as other,
        ):
            try:
                found = _steps(subject, Rank(index=0, world_size=RANKS))
                _, errors = other.communicate(timeout=60 * MINUTES)
            finally:
                other.kill()
    lines = errors.strip().splitlines() or ["without a message"]
    require(not other.returncode, f"the second rank fails: {lines[-1]}")
    wrong, advice = ", ".join(differing(found, whole)[:1]), "the model may use statistics over the batch"
    require(not wrong, f"two ranks are not one: {wrong} differs; {advice}")
    return "two ranks take the step of one"


def _steps(subject: Subject, rank: Rank) -> dict[str, Tensor]:
    """The gradients of a step on this rank's columns, after the reduction over ranks."""
    own = own_columns(COLUMNS, rank.index, rank.world_size)
    with process_group(rank):
        found = gradients_of(subject, columns=slice(own.start, own.stop), rank=rank)
    return {what: tensor for what, tensor in found.items() if what.startswith("the gradient")}


def main() -> int:
    """Be the second rank; returns the exit code."""
    config, folder = sys.argv[1:]
    _steps(Subject(CustomConfig(**json.loads(config)), Path(folder)), Rank(index=1, world_size=RANKS))
    return 0


if __name__ == "__main__":
    run_program(main)
