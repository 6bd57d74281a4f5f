"""Recognise a study whose run ids are those of an earlier version."""

from __future__ import annotations

import contextlib
from pathlib import Path

from seqlm.errors import FileError, UsageError, printable
from seqlm.run_layout import FINGERPRINT_DIGITS
from seqlm.rundir import RunDirectory


def require_identity(study_dir: Path) -> None:
    """Check that the runs of a study have the ids of this version. Reads as few runs as possible, and writes nothing.

    In versions up to 0.2, ``train.epochs`` was part of a run's fingerprint. A launch would not find those runs, and
    their checkpoints name another fingerprint.

    Raises:
        UsageError: they are those of a version up to 0.2.
    """
    for run in RunDirectory.unordered_in(study_dir):
        with contextlib.suppress(FileError):  # the launch or the status of this run says what is damaged
            config, digits = run.read_config(), run.id.rpartition("-")[2]
            if digits == config.fingerprint()[:FINGERPRINT_DIGITS]:
                return
            if digits == config.fingerprint_with_epochs()[:FINGERPRINT_DIGITS]:
                raise UsageError(
                    f"{printable(str(study_dir))}: its run ids are those of seqlm 0.2, which made another run of each "
                    "number of epochs; status, logs and report still read it; to train, launch the manifest under "
                    "another name (--set study.name=...) or move the folder away"
                )
