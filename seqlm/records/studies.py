"""The files of a study besides runs and requests: what its manifests say, the queue of its launcher, notes, code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

from seqlm.records.attempts import LauncherProcess
from seqlm.records.base import Record
from seqlm.schema import Count, Valid

_NAME = "[a-z0-9_][a-z0-9_.-]*"
_Inside: TypeAlias = Annotated[str, Valid("a path in the study", pattern=f"^{_NAME}(/{_NAME})?$")]
MAX_RUNS = 10_000
"""Most runs of a study."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Entry(Record):
    """A run that a manifest plans, as written there. Likewise the records below, up to :class:`StudyFile`.

    Each has the name of the file of its manifest, so that a launch of one manifest keeps what others have planned.
    """

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"after", "manifest"})

    number: Annotated[int, Valid(f"a whole number from 1 to {MAX_RUNS:,}", least=1, most=MAX_RUNS)]
    """Place in the plan of the study, from 1."""
    name: str = ""
    fingerprint: str = ""
    arch: str | None = None
    optimizer: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key -> value, before ``--set``."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """What has been published of the run. Empty: nothing."""
    after: str | None = None
    """Fingerprint of the run that a final seed of a search follows. ``None``: it follows none."""
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Excluded(Record):
    """A run that the manifest leaves out on purpose."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"manifest"})

    name: str | None = None
    arch: str | None = None
    optimizer: str | None = None
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Claim(Record):
    """What is expected before the study: the lowest ``metric`` of some runs is below that of some others."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"otherwise", "manifest"})

    text: str
    metric: str
    lower: tuple[str, ...] = ()
    """Fingerprints. Likewise ``higher``."""
    higher: tuple[str, ...] = ()
    why: str | None = None
    """The reason. ``None``: none is given. Likewise ``otherwise``."""
    otherwise: str | None = None
    """What it would mean if the opposite came out."""
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Group(Record):
    """Runs with curves and a table of their own in the report."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"manifest"})

    title: str
    runs: tuple[str, ...] = ()
    """Fingerprints."""
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ManifestNote(Record):
    """A manifest's text for a part of the report, in Markdown."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"manifest"})

    part: str
    text: str
    """With references to results (:mod:`seqlm.references`)."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Name of each run that the text refers to -> its fingerprint."""
    manifest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate(Record):
    """What ``plan`` would have said of a run when it was first launched."""

    seconds: float | None = None
    """``None``: unknown."""
    epochs: Count | None = None
    """Epochs that take so long."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LastLaunch(Record):
    """What ``run STUDY`` repeats: the manifest of the last launch from one, and what its flags said."""

    tables: Mapping[str, Any] = field(default_factory=dict)
    """The manifest's tables as written, without values that look like secrets."""
    changes: tuple[str, ...] = ()
    """The texts of ``--set``."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Name of an argument of the command line that says where runs go -> its value."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StudyFile(Record):
    """``study.json``: what the manifests of a study say, for readers that have only its folder.

    It is read part by part (:meth:`read_parts`): a mistake in a group of the report must not hide the policy.
    """

    FILE: ClassVar[str] = "study.json"

    version: int | None = None
    """Format of the study's files (:data:`seqlm.rundir.STUDY_FORMAT`)."""
    study: str | None = None
    manifest: str | None = None
    """Name of the file of the manifest of the last launch. Likewise what follows ``samples``."""
    folder: str | None = None
    """Where that file was."""
    planned: tuple[Entry, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    expectations: tuple[Claim, ...] = ()
    groups: tuple[Group, ...] = ()
    notes: tuple[ManifestNote, ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    """The ``[[sample]]`` entries as written, each with the manifest's ``defaults``."""
    behaviour: tuple[str, ...] = ()
    """Fingerprints of the runs whose trained models the manifest asks about."""
    policy: Mapping[str, Any] | None = None
    notify: Mapping[str, Any] | None = None
    search: Mapping[str, Any] | None = None
    backend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The ``[backend.*]`` tables, without values that look like secrets."""
    launched: LastLaunch | None = None
    """``None``: launched by an earlier version."""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """By fingerprint."""


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
    replaced: tuple[_Inside, ...] = ()
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

    panel: tuple[str, ...] = ()
    """Ids of the finished runs of the study whose models rate the texts. Empty: the texts get no rating."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that flags have set."""
