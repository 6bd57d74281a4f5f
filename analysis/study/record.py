"""What a study's folder says of its manifests, as the report needs it: the plan, groups, expectations, estimates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from analysis.study.columns import as_columns
from analysis.study.values import clean
from seqlm.errors import ConfigError
from seqlm.records.studies import Claim, Entry, ManifestNote, StudyFile
from seqlm.rundir import FINGERPRINT_DIGITS, study_record_file
from seqlm.schema import read, show
from seqlm.search import Search

METRICS = {
    "val_ppl": "validation perplexity",
    "train_ppl": "training perplexity",
    "test_ppl": "test perplexity",
    "gap": "gap between validation and training loss at the best epoch",
    "final_gap": "gap between validation and training loss after the last epoch",
    "wall_seconds": "wall-clock time",
    "epoch_seconds": "time per epoch",
    "seconds_to_common": "time to the lowest perplexity that both sides reach",
}
"""What an expectation compares, in words: columns of the runs table, and a time. Of each, less is better."""
EARLIER_METRICS = {"seconds_to_5pct": "seconds_to_common"}
"""What earlier versions compared, the time to 5 % of a run's own best, which a run with a high best reaches early."""
GAPS = ("gap", "final_gap")
"""Those that are differences of losses, which may be below 0."""
TIMES = ("wall_seconds", "epoch_seconds", "seconds_to_common")
"""Those that are times in seconds."""
TEXTS = ("model.arch", "model.source", "model.sha256")
"""Keys of a configuration that are texts, if they are there."""

PartT = TypeVar("PartT")


@dataclass(frozen=True, kw_only=True)
class PlannedEntry:
    """An entry of the plan: a run of a manifest, whether it has a directory or not."""

    number: int
    name: str = ""
    digits: str = ""
    """The first digits of its fingerprint, which end the name of a run's folder. Likewise in all of this module."""
    arch: str | None = None
    optimizer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Columns of the runs table, before ``--set``; empty if it is not recorded."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the runs table; empty if nothing has been published of the run."""
    after: str | None = None
    """Of a final seed of a search: the run that it follows."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What was expected before the study: the lowest ``metric`` of some runs is below that of some others."""

    text: str
    metric: str
    lower: tuple[str, ...]
    higher: tuple[str, ...]
    why: str | None = None
    """The reason for it, as stated then. The report prints it only if it came out as expected."""
    otherwise: str | None = None
    """What it would mean if the opposite came out, as stated then. The report prints it only then."""


@dataclass(frozen=True, kw_only=True)
class WrittenNote:
    """What a manifest says itself in a part of the report."""

    part: str
    text: str
    """In Markdown, with references to results (:mod:`seqlm.references`)."""
    manifest: str | None
    """Name of the manifest, without a suffix. ``None``: not recorded."""
    runs: Mapping[str, str]
    """Name of each run that the text refers to -> its first digits; in :class:`StudyFiles` its id, if it has one."""
    study: str = ""
    """Name of the study whose results the text refers to."""


@dataclass(frozen=True, kw_only=True)
class ManifestFacts:
    """What the manifests of a study say of its runs; empty for a study that was launched without one."""

    planned: list[PlannedEntry] = field(default_factory=list)
    excluded: list[tuple[str | None, str | None]] = field(default_factory=list)
    """Architecture and optimizer of each run that the manifest leaves out on purpose."""
    groups: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Titles, each with the runs that have curves and a table of their own."""
    behaviour: tuple[str, ...] = ()
    """Runs whose trained models the manifest asks about."""
    notes: list[WrittenNote] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    search: Search | None = None
    estimates: dict[str, float | None] = field(default_factory=dict)
    """Seconds that ``plan`` would have said of each run when it was first launched."""


def read_manifest_facts(study_dir: Path, warnings: list[str]) -> ManifestFacts:
    """Return what is kept of the manifests. A part that is damaged is empty, and adds a warning."""
    path = study_record_file(study_dir)
    file = StudyFile.read_parts(path, warnings.append)

    def part(name: str, make: Callable[[], PartT], otherwise: PartT) -> PartT:
        try:
            return make()
        except ValueError as error:
            warnings.append(f"{path} is damaged ({name}: {error}); {name} is as if it were not given")
            return otherwise

    return ManifestFacts(
        planned=part("planned", lambda: [_entry(one) for one in file.planned], []),
        excluded=[(_line(one.arch), _line(one.optimizer)) for one in file.excluded],
        groups=[(clean(one.title), _digits(one.runs)) for one in file.groups],
        behaviour=_digits(file.behaviour),
        notes=[_note(one) for one in file.notes],
        expectations=part("expectations", lambda: [_expectation(one) for one in file.expectations], []),
        search=part("search", lambda: _search(file.search), None),
        estimates={print_[:FINGERPRINT_DIGITS]: one.seconds for print_, one in file.estimates.items()},
    )


def _entry(entry: Entry) -> PlannedEntry:
    for key in TEXTS:
        if not isinstance(entry.config.get(key), str | None):
            raise ValueError(f"expected a text for {key}, got {show(entry.config[key])}")
    return PlannedEntry(
        number=entry.number,
        name=clean(entry.name),
        digits=entry.fingerprint[:FINGERPRINT_DIGITS],
        arch=_line(entry.arch),
        optimizer=_line(entry.optimizer),
        config=as_columns(entry.config),
        published=_published(entry.published),
        after=None if entry.after is None else entry.after[:FINGERPRINT_DIGITS],
    )


def _published(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is published of a run as columns of the runs table."""
    ends = raw.get("replications")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    found = {f"published_{key}": raw.get(key) for key in ("epochs", "train_ppl", "val_ppl")}
    return {**found, "replications_low": low, "replications_high": high} if raw else {}


def _expectation(claim: Claim) -> Expectation:
    metric = EARLIER_METRICS.get(claim.metric, claim.metric)
    if metric not in METRICS:
        raise ValueError(f"expected one of {', '.join(METRICS)}, got {show(claim.metric)}")
    return Expectation(
        text=clean(claim.text),
        metric=metric,
        lower=_digits(claim.lower),
        higher=_digits(claim.higher),
        why=_line(claim.why),
        otherwise=_line(claim.otherwise),
    )


def _note(note: ManifestNote) -> WrittenNote:
    return WrittenNote(
        part=clean(note.part),
        text=_lines(note.text),
        manifest=None if note.manifest is None else clean(Path(note.manifest).stem),
        runs={name: print_[:FINGERPRINT_DIGITS] for name, print_ in note.runs.items()},
    )


def _search(raw: Mapping[str, Any] | None) -> Search | None:
    try:
        return read(Search, raw) if raw else None
    except ConfigError as error:
        raise ValueError(error.problems[0]) from None


def _line(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _lines(text: str) -> str:
    """Return a text without characters that no page can show."""
    return "\n".join("".join(filter(str.isprintable, line.expandtabs(4))) for line in text.splitlines())


def _digits(fingerprints: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one[:FINGERPRINT_DIGITS] for one in fingerprints)
