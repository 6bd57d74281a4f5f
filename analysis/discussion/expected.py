"""What was expected before the study, held against what was observed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import device_sentences, distinct, first_few, interval_phrase, scope
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.record import Expectation
from analysis.study.settings import Setting, best_of, expected_lowest_perplexity, expected_minimum, settings_of
from analysis.study.study import Study
from analysis.study.values import rows_of

METRICS = {
    "val_ppl": "validation perplexity",
    "train_ppl": "training perplexity",
    "test_ppl": "test perplexity",
    "gap": "gap between validation and training perplexity at the best epoch",
    "wall_seconds": "wall-clock time",
    "epoch_seconds": "time per epoch",
    "seconds_to_5pct": "time to within 5 % of a run's own best",
}
"""Columns of the runs table, in words; of each, less is better."""

SHORT = {"gap": "gap", "seconds_to_5pct": "time to 5 %"}
"""Shorter words for some of them in a table."""

TIMES = ("wall_seconds", "epoch_seconds", "seconds_to_5pct")

AS_EXPECTED, NOT_AS_EXPECTED, INCONCLUSIVE = "as expected", "not as expected", "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Side:
    """What the finished runs of one side have reached."""

    values: list[float]
    """One of each finished setting (of validation perplexities) or run (of anything else)."""
    reference: str
    """Of the setting or run with the lowest value."""
    best: Setting | None = None
    """That setting; of validation perplexities alone."""

    @property
    def value(self) -> float:
        """The lowest value."""
        return min(self.values)


def expected_blocks(study: Study) -> list[Block]:
    """A sentence and a row for each expectation."""
    if not study.expectations:
        text = (
            "The manifest states no expectations. Those stated as [[expect]] tables before the launch "
            "(docs/reference/manifest.md) are compared with the results here."
        )
        return [Prose(text=text)]
    sentences, rows = [], []
    for place, expectation in enumerate(study.expectations, start=1):
        lower, higher = (_side(study, expectation.metric, ids) for ids in (expectation.lower, expectation.higher))
        reason = _doubt(study, expectation, lower, higher)
        if reason is not None or lower is None or higher is None:
            kind, verdict = INCONCLUSIVE, f"{INCONCLUSIVE}: {reason}"
        else:
            kind = verdict = AS_EXPECTED if lower.value < higher.value else NOT_AS_EXPECTED
        sentences.append(f"“{expectation.text}”: {verdict}.{_values_sentence(expectation.metric, lower, higher)}")
        row = {
            "number": place,
            "expectation": expectation.text,
            "metric": SHORT.get(expectation.metric, METRICS[expectation.metric]),
            "write": units.duration if expectation.metric in TIMES else units.perplexity,
            "lower": lower and lower.value,
            "lower_run": lower and lower.reference,
            "higher": higher and higher.value,
            "higher_run": higher and higher.reference,
            "verdict": verdict,
            "kind": kind,
        }
        rows.append(row)
    summary = [_summary(rows)]
    if any(expectation.metric in TIMES for expectation in study.expectations):
        summary += device_sentences(study)
    return [Prose(text=" ".join(summary)), Points(items=sentences), _table(rows, scope(study))]


def _side(study: Study, metric: str, ids: Sequence[str]) -> Side | None:
    """Return the lowest of some runs; ``None`` if no finished one has the number."""
    runs = study.runs[study.runs["id"].isin(ids)]
    if metric == "val_ppl":  # the one metric with intervals over seeds
        settings = settings_of(runs)
        if not settings:
            return None
        best = best_of(settings)
        return Side(values=[setting.val_ppl for setting in settings], reference=best.reference, best=best)
    runs = finished(runs).sort_values("number")
    runs = runs[runs[metric].map(units.is_number)]
    if runs.empty:
        return None
    lowest = min(rows_of(runs), key=lambda run: getattr(run, metric))
    return Side(values=runs[metric].to_list(), reference=f"{lowest.number} {lowest.name}")


def _doubt(study: Study, expectation: Expectation, lower: Side | None, higher: Side | None) -> str | None:
    """Return why nothing can be concluded, if so."""
    sides = {"lower": (lower, expectation.lower), "higher": (higher, expectation.higher)}
    missing = [name for name, (side, _) in sides.items() if side is None]
    if lower is None or higher is None:
        where = "either side" if len(missing) == 2 else f"the side expected {missing[0]}"
        states = _states(study.runs[study.runs["id"].isin([run for name in missing for run in sides[name][1]])])
        return f"no finished run on {where} has this number ({states})"
    runs = finished(study.runs[study.runs["id"].isin([*expectation.lower, *expectation.higher])])
    if expectation.metric not in TIMES and runs["text"].nunique() > 1:
        return "the runs predict different texts, whose perplexities do not compare"
    if lower.best and higher.best and (doubt := lower.best.interval.doubt_against(higher.best.interval)):
        return doubt
    if lower.value == higher.value:
        return "both are equal"
    first, second = _at_equal_counts(expectation.metric, lower, higher)
    if (lower.value < higher.value) != (first < second) and not math.isclose(first, second):
        return "the sides have unequal numbers of runs, and at equal numbers the order would be reversed"
    return None


def _states(runs: pd.DataFrame) -> str:
    states = [
        f"{run.number} {run.name}: {units.state_of(run.state, run.failure_kind)}"
        for run in rows_of(runs.sort_values("number"))
    ]
    return first_few(states, 3) if states else "no run directory"


def _at_equal_counts(metric: str, lower: Side, higher: Side) -> tuple[float, float]:
    """Expected lowest values of both sides, of as many runs as the side with fewer has."""
    expected = expected_lowest_perplexity if metric.endswith("ppl") else expected_minimum
    fewer = min(len(lower.values), len(higher.values))
    return expected(lower.values, fewer), expected(higher.values, fewer)


# -- sentences -----------------------------------------------------------------------------------------------------


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    count = Counter(row["kind"] for row in rows)
    parts = [
        f"{count[AS_EXPECTED]} came out as expected",
        f"{count[NOT_AS_EXPECTED]} did not",
        f"{count[INCONCLUSIVE]} {'is' if count[INCONCLUSIVE] == 1 else 'are'} inconclusive",
    ]
    stated = "was" if len(rows) == 1 else "were"
    return f"{units.count(len(rows), 'expectation')} {stated} stated before the runs: {units.listing(parts)}."


def _values_sentence(metric: str, lower: Side | None, higher: Side | None) -> str:
    """Give the lowest value of each side, and if the sides have unequal numbers of runs those at equal numbers."""
    sides = [(side, word) for side, word in ((lower, "lower"), (higher, "higher")) if side is not None]
    if not sides:
        return ""
    write = units.duration if metric in TIMES else units.rounded
    values = distinct(sides[0][0].value, sides[-1][0].value, write)
    parts = [
        f"{value} ({side.reference}{interval_phrase(side.best) if side.best else ''}) on the side expected {word}"
        for (side, word), value in zip(sides, values, strict=False)
    ]
    text = f" Lowest {METRICS[metric]}: {', '.join(parts)}."
    if lower is None or higher is None or len(lower.values) == len(higher.values):
        return text
    of = units.count(len(higher.values), "setting" if metric == "val_ppl" else "run")
    first, second = distinct(*_at_equal_counts(metric, lower, higher), write)
    fewer = min(len(lower.values), len(higher.values))
    return (
        f"{text} These are the lowest of {len(lower.values)} and of {of}; with {fewer} each, the "
        f"expected lowest are {first} and {second}."
    )


def _table(rows: Sequence[dict[str, Any]], of: str) -> Table:
    return Table(
        name="discussion-1-expected",
        title="Expected against observed",
        caption="Lowest value among the finished runs of each side, and its run. Without a difference by Welch's t "
        "test over seeds: inconclusive. Gap: validation minus training perplexity. "
        f"{units.MISSING}: no finished run.{of}",
        columns=[
            number("number", "No."),
            Column("expectation", "Expectation"),
            Column("metric", "Of"),
            Column("lower", "Expected lower", shown=lambda row: row["write"](row["lower"]), numeric=True),
            Column("lower_run", "Run", units.text),
            Column("higher", "Expected higher", shown=lambda row: row["write"](row["higher"]), numeric=True),
            Column("higher_run", "Run", units.text),
            Column("verdict", "Verdict", shown=lambda row: row["kind"]),
        ],
        records=rows,
    )
