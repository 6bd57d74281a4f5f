"""What launches wrote into ``study.json``: plan, published results, groups, expectations, estimates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from analysis.study.columns import as_columns
from analysis.study.values import as_list, as_mapping, as_number, as_text, clean, read_or_warn
from seqlm.errors import ConfigError
from seqlm.files import read_json
from seqlm.rundir import FINGERPRINT_DIGITS, MAX_RUNS, study_record_file
from seqlm.schema import read
from seqlm.search import Search

Metric: TypeAlias = Literal[
    "val_ppl", "train_ppl", "test_ppl", "gap", "wall_seconds", "epoch_seconds", "seconds_to_5pct"
]
"""What an expectation compares: columns of the runs table."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """An entry of the plan: a run of a manifest, whether it has a directory or not."""

    number: int
    name: str
    digits: str
    """The first digits of its fingerprint, which end its folder's name."""
    arch: str | None
    optimizer: str | None
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value, before ``--set``; empty if it is not recorded."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Columns of the runs table; empty if nothing has been published of the run."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What was expected before the study: the lowest ``metric`` of some runs is below that of some others."""

    text: str
    metric: Metric
    lower: tuple[str, ...]
    """Fingerprints' first digits."""
    higher: tuple[str, ...]
    why: str | None = None
    """The reason for it, as stated then."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """``study.json``, keyed by the first digits of fingerprints; empty for a study that has none."""

    planned: list[PlannedRun] = field(default_factory=list)
    excluded: list[tuple[str | None, str | None]] = field(default_factory=list)
    """Architecture and optimizer of each run that the manifest leaves out on purpose."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Title -> runs that have curves and a table of their own."""
    behaviour: tuple[str, ...] = ()
    """Runs whose trained models the manifest asks about."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Part of the report and the author's text for it, in Markdown."""
    expectations: list[Expectation] = field(default_factory=list)
    search: Search | None = None
    estimated_seconds: dict[str, float] = field(default_factory=dict)
    """What ``plan`` would have said of each run when it was first launched."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read."""


def read_study_record(study_dir: Path) -> StudyRecord:
    """Return the record; of a damaged one, whatever can be read."""
    file = study_record_file(study_dir)
    warnings: list[str] = []
    raw: dict[str, Any] = read_or_warn(lambda: read_json(file), {}, warnings)

    def tables(section: str) -> list[Mapping[str, Any]]:
        return [entry for entry in as_list(raw.get(section)) if isinstance(entry, Mapping)]

    numbered = [entry for entry in tables("planned") if isinstance(entry.get("number"), int)]
    entries = [entry for entry in numbered if 1 <= entry["number"] <= MAX_RUNS]
    if len(entries) < len(numbered):
        warnings.append(f"{file}: planned: expected numbers from 1 to {MAX_RUNS:,}; others were left out")
    estimates = {
        _digits(key): as_number(as_mapping(e).get("seconds")) for key, e in as_mapping(raw.get("estimates")).items()
    }
    return StudyRecord(
        planned=[
            PlannedRun(
                number=entry["number"],
                name=str(entry.get("name", "")),
                digits=_digits(entry.get("fingerprint")),
                arch=as_text(entry.get("arch")),
                optimizer=as_text(entry.get("optimizer")),
                config=_config(entry.get("config")),
                published=_published(entry.get("published")),
            )
            for entry in entries
        ],
        excluded=[(as_text(e.get("arch")), as_text(e.get("optimizer"))) for e in tables("excluded")],
        groups={clean(str(entry.get("title", ""))): _all_digits(entry.get("runs")) for entry in tables("groups")},
        behaviour=_all_digits(raw.get("behaviour")),
        notes=[(str(entry.get("part")), _lines(entry.get("text"))) for entry in tables("notes")],
        expectations=[
            Expectation(
                text=clean(str(entry.get("text", ""))),
                metric=entry["metric"],
                lower=_all_digits(entry.get("lower")),
                higher=_all_digits(entry.get("higher")),
                why=as_text(entry.get("why")),
            )
            for entry in tables("expectations")
            if entry.get("metric") in get_args(Metric)
        ],
        search=_search(raw.get("search"), file, warnings),
        estimated_seconds={key: seconds for key, seconds in estimates.items() if math.isfinite(seconds)},
        warnings=warnings,
    )


def _config(raw: Any) -> dict[str, Any]:
    """Return a planned configuration as columns, without a name of its architecture that is no text."""
    names = ("model.arch", "model.source", "model.sha256")
    return as_columns({key: found for key, found in as_mapping(raw).items() if key not in names or as_text(found)})


def _published(raw: Any) -> dict[str, float]:
    """Return what is published of a run."""
    table = as_mapping(raw)
    if not table:
        return {}
    ends = [as_number(end) for end in as_list(table.get("replications"))]
    low, high = ends if len(ends) == 2 and all(map(math.isfinite, ends)) else (math.nan, math.nan)
    return {
        "published_epochs": as_number(table.get("epochs")),
        "published_train_ppl": as_number(table.get("train_ppl")),
        "published_val_ppl": as_number(table.get("val_ppl")),
        "replications_low": low,
        "replications_high": high,
    }


def _search(raw: Any, file: Path, warnings: list[str]) -> Search | None:
    """Return the rule of a search; ``None`` without one, and with a warning if it is damaged."""
    try:
        return read(Search, raw) if raw else None
    except ConfigError as error:
        warnings.append(f"{file}: {error.problems[0]}")
        return None


def _lines(value: Any) -> str:
    """Return a text of several lines without characters that no page can show."""
    lines = value.splitlines() if isinstance(value, str) else []
    return "\n".join("".join(c for c in line.expandtabs(4) if c.isprintable()) for line in lines)


def _digits(fingerprint: Any) -> str:
    return str(fingerprint)[:FINGERPRINT_DIGITS]


def _all_digits(fingerprints: Any) -> tuple[str, ...]:
    return tuple(map(_digits, as_list(fingerprints)))
