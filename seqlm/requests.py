"""The requests of a study: who wanted which runs, when and where. Each is a file that is written once.

    <study>/launches/<number>/request.json    runs to train, to cancel, or to list no more
    <study>/launches/<number>/folders.json    what the folder of each run to train gets at its first attempt

The newest request that names a run counts. The number is claimed by making the folder. Whatever reads or writes them
raises ``FileError`` if that fails, or ``DamagedFileError``. Standard library alone.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from seqlm.errors import DamagedFileError, FileError, file_errors, printable
from seqlm.files import make_directory, make_folder
from seqlm.reading import listed, status
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted

RUN_ID = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
"""A run's id is the name of its folder (:func:`seqlm.rundir.slugify`), and leads nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request."""

    folder: Path
    record: RequestFile

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def is_cancel(self) -> bool:
        """Whether its runs are to stop."""
        return self.record.kind == "cancel"

    @property
    def is_removal(self) -> bool:
        """Whether its runs were deleted, and are listed no more."""
        return self.record.kind == "remove"

    @functools.cached_property
    def folders(self) -> Folders:
        """What the folders of its runs get."""
        return Folders.read(self.folder) or Folders()

    @property
    def runs(self) -> Mapping[str, Wanted]:
        """Run id -> what is wanted of the run."""
        return self.record.runs

    @property
    def policy(self) -> Mapping[str, Any]:
        """The policy with which its runs are tried again, as a manifest has it."""
        return self.record.policy or {}

    def planned(self, run_id: str) -> Folder | None:
        """Return what the folder of a run gets. ``None``: the request does not say."""
        return self.folders.runs.get(run_id)

    def first_attempt(self, run_id: str) -> int:
        """Return the first attempt of a run that it is about: what happened before is history."""
        return self.runs[run_id].from_attempt


@final
class Requests:
    """The requests of a study at one moment. A process reads each file once, since it never changes.

    A study of the same name in the same place, after the first was deleted, has other files.
    """

    _known: ClassVar[dict[tuple[Path, object], Request]] = {}

    def __init__(self, study_dir: Path) -> None:
        self._found: dict[Path, Request | None] = {}
        self._folders = listed(study_dir / "launches", "[0-9]*")[::-1]

    def newest_first(self) -> Iterator[Request]:
        """Every request, the newest first. Each is read when it is reached."""
        for folder in self._folders:
            if folder not in self._found:
                key = (folder.absolute(), _stamp(folder / RequestFile.FILE))
                request = self._known.get(key) or _read(folder)
                self._found[folder] = request
                if request is not None:
                    self._known[key] = request
            if (request := self._found[folder]) is not None:
                yield request

    def newest(self, run_id: str) -> Request | None:
        """Return the newest request that names a run. ``None``: there is none."""
        return next((request for request in self.newest_first() if run_id in request.runs), None)

    def to_train(self, run_id: str) -> Request | None:
        """Return the newest request to train a run. ``None``: there is none, or the run was removed since."""
        named = (request for request in self.newest_first() if not request.is_cancel and run_id in request.runs)
        found = next(named, None)
        return None if found is None or found.is_removal else found

    def by_run(self) -> dict[str, Request]:
        """Return :meth:`to_train` of each run that has one, by run id."""
        found: dict[str, Request] = {}
        for request in self.newest_first():
            found = found if request.is_cancel else {**dict.fromkeys(request.runs, request), **found}
        return {run_id: request for run_id, request in found.items() if not request.is_removal}


def _stamp(file: Path) -> object:
    """Return what tells a file from another one that has its place later. A new object: it cannot be looked at."""
    try:
        found = status(file)
    except (OSError, FileError):
        return object()
    return found.st_ino, found.st_mtime_ns


def _read(folder: Path) -> Request | None:
    """Return a request. ``None``: the process that claimed the number has not written it, or was killed first."""
    record = RequestFile.read(folder)
    if record is None or not folder.name.isdecimal():
        return None
    if strange := [name for name in record.runs if not RUN_ID.fullmatch(name)]:
        got = printable(strange[0])[:40]
        raise DamagedFileError(
            f"{folder / RequestFile.FILE} is damaged (expected ids of runs, got {got}); move it away"
        )
    return Request(folder=folder, record=record)


def numbered(study_dir: Path, number: int) -> Path:
    """Return the folder of a request of a study."""
    return study_dir / "launches" / f"{number:06d}"


def file_request(study_dir: Path, record: RequestFile, folders: Folders | None = None) -> Request:
    """Claim the next number and write a request, which counts from then on.

    ``folders`` are those of runs to train.
    """
    folder = claim_number(study_dir.absolute() / "launches")
    if folders is not None:
        folders.write(folder)
    record.write(folder)
    return Request(folder=folder, record=record)


def claim_number(place: Path) -> Path:
    """Make the folder with the next number in the folder ``place``, and return it. No other process gets the same."""
    make_directory(place)
    while True:
        numbers = (int(path.name) for path in listed(place, "[0-9]*") if path.name.isdecimal())
        folder = place / f"{max(numbers, default=0) + 1:06d}"
        with file_errors("write", folder), contextlib.suppress(FileExistsError):
            make_folder(folder)
            return folder
