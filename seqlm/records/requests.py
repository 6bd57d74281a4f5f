"""The files of a request, ``launches/000001/`` (:mod:`seqlm.requests`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seqlm.records.attempts import LauncherProcess
from seqlm.records.base import Record
from seqlm.records.runs import Epochs, Provenance
from seqlm.records.studies import TaskFile
from seqlm.schema import Count


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Wanted(Record):
    """What a request wants of a run."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"epochs", "after"})

    epochs: Epochs | None = None
    """How far the run is to go. ``None``: as far as its configuration says."""
    from_attempt: int = 1
    """The first attempt that the request is about: what happened before is history."""
    after: str | None = None
    """Id of the run that a final seed of a search follows. ``None``: it follows none."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RequestFile(Record):
    """``request.json``: runs to train, to cancel, or to list no more. Written once."""

    FILE: ClassVar[str] = "request.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"launcher", "backend", "policy", "max_parallel"})

    kind: str | None = None
    """``run``, ``cancel``, ``remove`` or ``limit``."""
    at: str | None = None
    launcher: LauncherProcess | None = None
    """The process that has filed the request."""
    backend: str | None = None
    policy: Mapping[str, Any] | None = None
    """The policy with which runs are tried again, as a manifest has it. ``None``: they are not."""
    max_parallel: Count | None = None
    """Of kind ``limit``: the most runs at once."""
    runs: Mapping[str, Wanted] = field(default_factory=dict)
    """Run id -> what is wanted of the run."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Folder(Record):
    """What the folder of a run gets at its first attempt."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"task"})

    config: Mapping[str, Any] | None = None
    """The configuration (:class:`seqlm.config.RunConfig`), as plain data."""
    provenance: Provenance = field(default_factory=Provenance)
    """The run's own part of it."""
    task: TaskFile | None = None
    """``None``: the run is no behaviour job."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain data, which ``config`` is: a study has thousands of them."""
        found: dict[str, Any] = {"config": self.config, "provenance": self.provenance.to_plain()}
        return found if self.task is None else {**found, "task": self.task.to_plain()}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Folders(Record):
    """``folders.json``: what the folders of the runs of a request get."""

    FILE: ClassVar[str] = "folders.json"

    provenance: Provenance = field(default_factory=Provenance)
    """The part that is common to all."""
    runs: Mapping[str, Folder] = field(default_factory=dict)
    """By run id."""

    def to_text(self) -> str:
        """Return the text of the file, in one line, which takes a fraction of the time."""
        runs = {run_id: folder.to_plain() for run_id, folder in self.runs.items()}
        plain = {"provenance": self.provenance.to_plain(), "runs": runs}
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)
