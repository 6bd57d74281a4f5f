"""What a launch records for its user (:mod:`seqlm.trust`), and how a user takes on what a study of others keeps."""

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from jobs.study.record import COMMANDING, KeptManifests, commanding
from seqlm.errors import FileError
from seqlm.records.studies import TaskFile
from seqlm.rundir import BEHAVIOUR_FOLDER, RunDirectory
from seqlm.trust import record_launch, table_digest

TASK_SETTINGS = "settings"
"""What the digest of a behaviour job's settings is called."""


def record(study_dir: Path, digests: Collection[str], tell: Callable[[str], None]) -> None:
    """Record what is launched. If that fails, the launch goes on, and counts later as somebody else's."""
    try:
        record_launch(study_dir, digests)
    except FileError as error:
        tell(f"warning: not recorded as launched by you, so later commands will ask for --trust: {error}")


def trust_study(study_dir: Path, tell: Callable[[str], None]) -> None:
    """Record all that a study keeps and could run: runs, settings of behaviour, tables with commands."""
    kept = KeptManifests(study_dir).file
    digests = {table_digest(name, commanding(kept, name)) for name in COMMANDING}
    for run in RunDirectory.unordered_in(study_dir):
        with contextlib.suppress(FileError):
            digests.add(run.read_config().fingerprint())
        with contextlib.suppress(FileError):
            task = TaskFile.read(study_dir / BEHAVIOUR_FOLDER / run.id)
            digests.add(table_digest(TASK_SETTINGS, None if task is None else task.settings))
    record(study_dir, digests, tell)
