"""What a manifest says for the report: published results, what is expected, and whose behaviour to look into.

Nothing of this is part of a run's configuration. It travels in ``study.json`` (:mod:`jobs.plan.record`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.manifests.filters import Filter, facts_of_spec
from jobs.manifests.problems import Problems
from jobs.manifests.reader import show
from jobs.spec import RunSpec
from seqlm.errors import UsageError, nearest

PUBLISHED_KEYS = ("published.train_ppl", "published.val_ppl", "published.replications")
EXPECT_KEYS = ("text", "metric", "lower", "higher")
REPORT_KEYS = ("report.behaviour",)
METRICS = ("val_ppl", "train_ppl", "test_ppl", "gap", "wall_seconds", "epoch_seconds", "seconds_to_5pct")
"""What an expectation may compare. ``gap`` is ``val_ppl - train_ppl``; ``seconds_to_5pct`` the time that a run took to
come within 5 % of its best validation perplexity."""
MAX_TEXT = 300

_VALID_TEXT = f"a text in one line of at most {MAX_TEXT} characters"
_VALID_PPL = "a finite number above 0"
_VALID_RANGE = "two finite numbers above 0, the lowest and the highest"
_VALID_NAMES = "a list of names of runs, at least one"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Results that somebody has published for a run."""

    train_ppl: float | None = None
    """Training perplexity in the epoch of the best validation perplexity."""
    val_ppl: float | None = None
    """Best validation perplexity."""
    replications: tuple[float, float] | None = None
    """Lowest and highest best validation perplexity of independent replications."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One ``[[expect]]`` as written."""

    number: int
    """Place among the ``[[expect]]`` of the manifest, from 1."""
    text: str
    metric: str
    lower: str
    """Filter, as after ``--only``."""
    higher: str


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A claim with the runs that it is about: the lowest value among ``lower`` is below the lowest among ``higher``."""

    text: str
    metric: str
    lower: tuple[str, ...]
    """Names of runs, at least one."""
    higher: tuple[str, ...]
    """Names of other runs, at least one."""


# -- as written ------------------------------------------------------------------------------------------------------


def read_published(values: Mapping[str, Any], where: str, problems: Problems) -> Published | None:
    """The published results of a ``[[run]]``; ``values`` has dotted keys, all of them in ``PUBLISHED_KEYS``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.rpartition(".")[2]
        is_range = name == "replications"
        if (
            is_range
            and isinstance(value, list)
            and len(value) == 2
            and all(map(_is_ppl, value))
            and sorted(value) == value
        ):
            found[name] = (value[0], value[1])
        elif not is_range and _is_ppl(value):
            found[name] = value
        else:
            problems.add(where, f"{key}: found {show(value)}, valid is {_VALID_RANGE if is_range else _VALID_PPL}")
    return Published(**found) if found else None


def _is_ppl(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def read_claim(number: int, table: Mapping[str, Any], file: str, problems: Problems) -> Claim | None:
    """One ``[[expect]]``; none where anything is wrong with it."""
    where = f"{file}: expect {number}"
    before = len(problems.lines)
    for key in table:
        if key not in EXPECT_KEYS:
            problems.unknown(where, key, EXPECT_KEYS)
    values = {"metric": METRICS[0], **table}
    text, metric = values.get("text"), values["metric"]
    if "text" not in values:
        problems.add(where, f"text: missing, valid is {_VALID_TEXT}")
    elif not (isinstance(text, str) and text.strip() and text.isprintable() and len(text) <= MAX_TEXT):
        problems.add(where, f"text: found {show(text)}, valid is {_VALID_TEXT}")
    if metric not in METRICS:
        hint = nearest(metric, METRICS) if isinstance(metric, str) else ""
        problems.add(where, f"metric: found {show(metric)}, valid is one of {', '.join(METRICS)}{hint}")
    for side in ("lower", "higher"):
        if side not in values:
            problems.add(where, f"{side}: missing, valid are conditions on runs, such as 'arch=gru lr>1'")
        elif not isinstance(values[side], str):
            problems.add(where, f"{side}: found {show(values[side])}, valid are conditions on runs, in one text")
        else:
            _parse(values[side], f"{where}: {side}", problems)
    if len(problems.lines) > before:
        return None
    return Claim(number=number, text=values["text"], metric=metric, lower=values["lower"], higher=values["higher"])


def _parse(text: str, where: str, problems: Problems) -> None:
    try:
        Filter.parse(text)
    except UsageError as error:
        problems.add(where, str(error))


def read_behaviour(table: Mapping[str, Any], file: str, problems: Problems) -> tuple[str, ...]:
    """The names in ``[report]`` of the runs whose trained models the report looks into."""
    for key in table:
        if f"report.{key}" not in REPORT_KEYS:
            problems.unknown(file, f"report.{key}", REPORT_KEYS)
    if "behaviour" not in table:
        return ()
    names = table["behaviour"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        problems.add(file, f"report.behaviour: found {show(names)}, valid is {_VALID_NAMES}")
        return ()
    for name in names:
        if names.count(name) > 1:
            problems.add(file, f"report.behaviour: found {show(name)} twice, valid is each run once")
    return tuple(dict.fromkeys(names))


# -- with the runs ---------------------------------------------------------------------------------------------------


def expectations(
    claims: Sequence[Claim], specs: Sequence[RunSpec], file: str, problems: Problems
) -> tuple[list[Expectation], list[tuple[str, str]]]:
    """The claims with their runs, and a problem for each that does not have runs of its own on both sides.

    Conditions that ask what cannot be asked go to ``problems``.
    """
    found: list[Expectation] = []
    unmatched: list[tuple[str, str]] = []
    facts = [facts_of_spec(spec) for spec in specs] if claims else []
    for claim in claims:
        where = f"{file}: expect {claim.number}"
        sides: dict[str, tuple[str, ...]] = {}
        for side, text in (("lower", claim.lower), ("higher", claim.higher)):
            condition = Filter.parse(text)
            try:
                sides[side] = tuple(known["name"] for known in facts if condition.matches(known))
            except UsageError as error:
                problems.add(where, f"{side}: {error}")
        if len(sides) < 2:
            continue
        wrong = [
            f"{side}: found {show(getattr(claim, side))}, which matches no run" for side in sides if not sides[side]
        ]
        both = [name for name in sides["lower"] if name in set(sides["higher"])]
        if both:
            wrong.append(f"found {show(both[0])} among lower and higher, valid are different runs on the two sides")
        unmatched += [(where, what) for what in wrong]
        if not wrong:
            found.append(
                Expectation(text=claim.text, metric=claim.metric, lower=sides["lower"], higher=sides["higher"])
            )
    return found, unmatched


def absent(names: Sequence[str], specs: Sequence[RunSpec], excluded: Sequence[str], file: str) -> list[tuple[str, str]]:
    """A problem for each of the ``names`` in ``[report]`` that is no run of the manifest."""
    known = {spec.name for spec in specs}
    return [
        (
            file,
            f"report.behaviour: found {show(name)}, "
            + (
                "which an [[exclude]] drops"
                if name in excluded
                else f"valid is the name of a run{nearest(name, known)}"
            ),
        )
        for name in names
        if name not in known
    ]
