"""The names of a run's files and folders. Standard library alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from seqlm.reading import is_folder, listed

CANARY_FOLDER = "canary"
"""Folder of a study with its canaries."""
BEHAVIOUR_FOLDER = "behaviour"
"""Folder of a study with its behaviour jobs."""
BEHAVIOUR_VERSION = 3
"""Of ``behaviour.json`` and ``samples.jsonl``; rises when a key of them changes its meaning."""
FINGERPRINT_DIGITS = 8
"""Digits of the fingerprint in a folder's name. No two runs of a study may have the same."""
SAME_DIGITS = (
    f"whose fingerprint begins with the same {FINGERPRINT_DIGITS} digits; take another seed, or another study "
    "(--set study.name=...)"
)
"""Why a run is refused, and what to do."""
STUDY_FORMAT = 2
"""``version`` in ``study.json``. It rises when a study's files change so that another version cannot read them."""
MAX_RUNS = 10_000
"""Most runs of a study."""


class _Below:
    """The path of a file or folder of a run."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, run: RunLayout, kind: type | None = None) -> Path:
        return run.path.joinpath(*self._names)


@dataclass(frozen=True)
class RunLayout:
    """The names of the files in one run's folder."""

    path: Path

    @property
    def id(self) -> str:
        """The run's own id: the name of its folder."""
        return self.path.name

    config_file = _Below("config.json")
    tokenizer_file = _Below("tokenizer.json")
    """The tokenizer that the run was launched with; only runs with ``data.tokenizer`` have one."""
    provenance_file = _Below("provenance.json")
    metrics_file = _Below("metrics.jsonl")
    result_file = _Below("result.json")
    model_dir = _Below("model")
    """The files of the user's own model, kept when the run was launched. Other runs have no such folder."""
    canary_file = _Below("canary.json")
    """What a canary has measured; no other run has one."""
    behaviour_file = _Below("behaviour.json")
    """How the trained model behaves, written after training by :mod:`analysis.behaviour`."""
    samples_file = _Below("samples.jsonl")
    """Texts that the trained model has written, one on each line, beside :attr:`behaviour_file`."""

    def kept_dir(self, sha256: str) -> Path:
        """What a launch keeps of the files with this digest until the run's first attempt copies them."""
        return self.path.parents[1 if self.is_canary else 0] / "kept" / sha256

    def rung_file(self, rung: int) -> Path:
        """What has been decided about the run at a rung of its study's search (:mod:`seqlm.search`)."""
        return self.path / f"rung-{rung}.json"

    last_checkpoint = _Below("checkpoints", "last.pt")
    previous_checkpoint = _Below("checkpoints", "previous.pt")
    """The checkpoint before :attr:`last_checkpoint`, for when that one turns out to be damaged."""
    position_file = _Below("checkpoints", "position.json")
    """Epoch and step of :attr:`last_checkpoint`, readable without PyTorch."""
    best_checkpoint = _Below("checkpoints", "best.pt")
    lease_dir = _Below("lease")
    """The owners of the run (:mod:`seqlm.lease`)."""
    task_file = _Below("task.json")
    """What a behaviour job has to compute. A run has no such file."""

    def attempt_dir(self, attempt: int) -> Path:
        """Folder of one attempt, counted from 1: ``attempts/0001``."""
        return self.path / "attempts" / f"{attempt:04d}"

    def stdout_log(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "stdout.log"

    def stderr_log(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "stderr.log"

    def start_file(self, attempt: int) -> Path:
        """Who follows an attempt, and with what it starts. An attempt that a user started has none."""
        return self.attempt_dir(attempt) / "start.json"

    def end_file(self, attempt: int, rank: int = 0) -> Path:
        """How a rank of an attempt ended, in its own words: ``end.json``, ``end-1.json``, ..."""
        return self.attempt_dir(attempt) / (f"end-{rank}.json" if rank else "end.json")

    def exit_file(self, attempt: int) -> Path:
        """How an attempt ended, as seen from outside, if that adds something."""
        return self.attempt_dir(attempt) / "exit.json"

    def worker_file(self, attempt: int, rank: int = 0) -> Path:
        """Host, devices and versions of a rank of an attempt: ``worker.json``, ``worker-1.json``, ..."""
        return self.attempt_dir(attempt) / (f"worker-{rank}.json" if rank else "worker.json")

    def progress_file(self, attempt: int) -> Path:
        """The progress of an attempt within its epoch, written by its first rank at intervals."""
        return self.attempt_dir(attempt) / "progress.json"

    def attempts(self) -> list[int]:
        """Numbers of the attempts made so far, ascending.

        Raises:
            FileError: a folder cannot be read.
        """
        found = [entry for entry in listed(self.path / "attempts") if re.fullmatch("[0-9]{4,9}", entry.name)]
        return sorted(int(entry.name) for entry in found if is_folder(entry))

    def last_attempt(self) -> int:
        """Number of the newest attempt, 0 before the first."""
        return (self.attempts() or [0])[-1]

    @property
    def is_canary(self) -> bool:
        """Whether this is the folder of a canary, by its place."""
        return self.path.parent.name == CANARY_FOLDER


def study_record_file(study_dir: Path) -> Path:
    """``study.json``: what the report needs of the manifest. Written by the launcher that owns the study."""
    return study_dir / "study.json"


def slugify(name: str) -> str:
    """Return a name as a folder name: lower-case letters, digits, ``_``, ``.`` and ``-`` only, at most 80 characters.

    >>> slugify("GRU / adam, lr=0.1")
    'gru-adam-lr-0.1'
    """
    slug = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")[:80].strip("-.")
    return slug or "run"
