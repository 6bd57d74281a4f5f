"""What launches wrote into ``study.json``: plan, published results, groups, expectations, estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, TypeAdapter, ValidationError

from analysis.study.behaviour import Line, problems_of
from analysis.study.columns import as_columns
from analysis.study.values import read_or_warn
from seqlm.errors import ConfigError
from seqlm.files import read_json
from seqlm.rundir import FINGERPRINT_DIGITS, MAX_RUNS, study_record_file
from seqlm.schema import read
from seqlm.search import Search

METRICS = {
    "val_ppl": "validation perplexity",
    "train_ppl": "training perplexity",
    "test_ppl": "test perplexity",
    "gap": "gap between validation and training loss at the best epoch",
    "wall_seconds": "wall-clock time",
    "epoch_seconds": "time per epoch",
    "seconds_to_5pct": "time to within 5 % of a run's own best",
}
"""What an expectation compares: columns of the runs table, in words. Of each, less is better."""


def _of(*keys: str) -> BeforeValidator:
    """Take the values of some keys from a table."""
    return BeforeValidator(lambda raw: tuple(raw.get(key) for key in keys) if isinstance(raw, Mapping) else raw)


def _config(raw: dict[str, Any]) -> dict[str, Any]:
    if any(not isinstance(raw.get(key), str | None) for key in ("model.arch", "model.source", "model.sha256")):
        raise ValueError("expected the name of an architecture")
    return as_columns(raw)


def _published(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of a run as columns of the runs table."""
    ends = raw.get("replications")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    found = {f"published_{key}": raw.get(key) for key in ("epochs", "train_ppl", "val_ppl")}
    return {**found, "replications_low": low, "replications_high": high} if raw else {}


def _printable(line: str) -> str:
    return "".join(filter(str.isprintable, line.expandtabs(4)))


def _search(raw: Any) -> Search | None:
    try:
        return read(Search, raw) if raw else None
    except ConfigError as error:
        raise ValueError(error.problems[0]) from None


Digits = Annotated[str, AfterValidator(lambda fingerprint: fingerprint[:FINGERPRINT_DIGITS])]
"""The first digits of a fingerprint, which end the name of a run's folder."""
Lines = Annotated[str, AfterValidator(lambda text: "\n".join(map(_printable, text.splitlines())))]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """An entry of the plan: a run of a manifest, whether it has a directory or not."""

    number: Annotated[int, Field(ge=1, le=MAX_RUNS)]
    name: Line = ""
    digits: Annotated[Digits, Field(alias="fingerprint")] = ""
    arch: Line | None = None
    optimizer: Line | None = None
    config: Annotated[dict[str, Any], AfterValidator(_config)] = field(default_factory=dict)
    """Dotted key -> value, before ``--set``; empty if it is not recorded."""
    published: Annotated[dict[str, Any], AfterValidator(_published)] = field(default_factory=dict)
    """Columns of the runs table; empty if nothing has been published of the run."""
    after: Digits | None = None
    """Of a final seed of a search: the run that it follows."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What was expected before the study: the lowest ``metric`` of some runs is below that of some others."""

    text: Line
    metric: Annotated[str, Field(pattern=f"^({'|'.join(METRICS)})$")]
    lower: tuple[Digits, ...]
    higher: tuple[Digits, ...]
    why: Line | None = None
    """The reason for it, as stated then."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """``study.json``, keyed by the first digits of fingerprints; empty for a study that has none."""

    planned: list[PlannedRun] = field(default_factory=list)
    excluded: list[Annotated[tuple[Line | None, Line | None], _of("arch", "optimizer")]] = field(default_factory=list)
    """Architecture and optimizer of each run that the manifest leaves out on purpose."""
    groups: list[Annotated[tuple[Line, tuple[Digits, ...]], _of("title", "runs")]] = field(default_factory=list)
    """Titles, each with the runs that have curves and a table of their own."""
    behaviour: tuple[Digits, ...] = ()
    """Runs whose trained models the manifest asks about."""
    notes: list[Annotated[tuple[Line, Lines], _of("part", "text")]] = field(default_factory=list)
    """Part of the report and the author's text for it, in Markdown."""
    expectations: list[Expectation] = field(default_factory=list)
    search: Annotated[InstanceOf[Search] | None, BeforeValidator(_search)] = None
    estimates: dict[Digits, dict[str, Any]] = field(default_factory=dict)
    """What ``plan`` would have said of each run when it was first launched."""


def read_study_record(study_dir: Path, warnings: list[str]) -> StudyRecord:
    """Return the record. A damaged one is empty, and adds a warning."""
    file = study_record_file(study_dir)
    raw: dict[str, Any] = read_or_warn(lambda: read_json(file), {}, warnings)
    try:
        return TypeAdapter(StudyRecord).validate_python(raw)
    except ValidationError as error:
        warnings.append(f"{file} is damaged ({problems_of(error)[0]})")
        return StudyRecord()
