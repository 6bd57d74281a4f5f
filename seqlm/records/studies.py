"""The files of a study besides its runs and requests: the queue of its launcher, notes, and the code that it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seqlm.records.attempts import LauncherProcess
from seqlm.records.base import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QueueFile(Record):
    """``queue.json``: the runs that wait in the queue of a study's launcher."""

    FILE: ClassVar[str] = "queue.json"

    launcher: LauncherProcess | None = None
    """``None``: unknown, so that nobody's runs wait."""
    request: int | None = None
    """Number of the request that the launcher serves."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Run id -> why the run has not started, in queue order."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Upgrade(Record):
    """``upgrade/upgrade.json``: how far ``seqlm upgrade`` is, which deletes the folder at its end."""

    FILE: ClassVar[str] = "upgrade.json"

    format: int = 0
    """Format from which the study is converted."""
    replaced: tuple[str, ...] = ()
    """Paths in the study of the old files and folders, which make room for those in ``upgrade/new``."""
    are_moved: bool = False
    """Whether all of them have moved away."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Note(Record):
    """``notes/000001/note.json``: tags, a text, or both, about runs. Written once and never edited."""

    FILE: ClassVar[str] = "note.json"

    at: str | None = None
    runs: tuple[str, ...] = ()
    """Ids."""
    tags: tuple[str, ...] | None = None
    """``None``: the tags of the runs stay as they are. Likewise ``text``."""
    text: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CodeOrigin(Record):
    """``code-origin.json`` in the archive of a study's code: what it is, since an archive has no git repository."""

    FILE: ClassVar[str] = "code-origin.json"

    name: str = ""
    """Name of the archive without its suffix."""
    commit: str | None = None
    """Git commit. ``None``: it was no git checkout."""
    dirty: bool = False
    """Whether files differ from the commit."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path of each file -> SHA-256 of its content."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TaskFile(Record):
    """``task.json`` of a behaviour job: what it computes."""

    FILE: ClassVar[str] = "task.json"

    judge: str | None = None
    """Id of another finished run of the study, whose model rates the texts. ``None``: the texts get no rating."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that flags have set."""
