"""What was expected before the study, held against what was observed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import text_of
from analysis.blocks.words import device_sentences, distinct, first_few
from analysis.discussion.minima import expected_lowest_perplexity, expected_minimum
from analysis.study import units
from analysis.study.record import Expectation
from analysis.study.settings import Interval, best_of, finished, settings_of
from analysis.study.study import Study

METRICS = {
    "val_ppl": "validation perplexity",
    "train_ppl": "training perplexity",
    "test_ppl": "test perplexity",
    "gap": "gap between validation and training perplexity",
    "wall_seconds": "wall-clock time",
    "epoch_seconds": "time per epoch",
    "seconds_to_5pct": "time to within 5 % of a run's own best",
}
"""Columns of the runs table, in words; of each, less is better."""

SHORT = {"gap": "gap", "seconds_to_5pct": "time to 5 %"}
"""Shorter words for some of them in a table."""

AS_EXPECTED, NOT_AS_EXPECTED, INCONCLUSIVE = "as expected", "not as expected", "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Side:
    """The lowest value among the finished runs of one side."""

    value: float
    """The lowest of ``values``."""
    values: list[float]
    """One of each finished setting (of validation perplexities) or run (of anything else)."""
    reference: str
    interval: Interval | None = None
    """Over seeds; of validation perplexities alone."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One expectation with what was observed."""

    expectation: Expectation
    lower: Side | None
    """Of the runs expected to be lower; none where no finished one has the number."""
    higher: Side | None
    same_text: bool
    """Whether all finished runs of both sides predict the same text."""
    states: str
    """What has become of the runs of a side without a number."""

    @property
    def reason(self) -> str | None:
        """Why nothing can be said, if so."""
        lower, higher = self.lower, self.higher
        if lower is None and higher is None:
            return f"no finished run on either side has this number ({self.states})"
        if lower is None:
            return f"no finished run on the side expected lower has this number ({self.states})"
        if higher is None:
            return f"no finished run on the side expected higher has this number ({self.states})"
        if not self.same_text and not self.expectation.metric.endswith(("seconds", "5pct")):
            return "the runs predict different texts, whose perplexities do not compare"
        seeds = [side.interval for side in (lower, higher) if side.interval is not None]
        if len(seeds) == 2 and (doubt := seeds[0].doubt_against(seeds[1])):
            return doubt
        if lower.value == higher.value:
            return "both are equal"
        first, second = self.equal_counts
        if (lower.value < higher.value) != (first < second) and not math.isclose(first, second):
            return "the sides have unequal numbers of runs, and at equal numbers the order would be reversed"
        return None

    @property
    def equal_counts(self) -> tuple[float, float]:
        """Expected lowest values of both sides, of as many runs as the side with fewer has; both sides exist."""
        assert self.lower is not None
        assert self.higher is not None
        expected = expected_lowest_perplexity if self.expectation.metric.endswith("ppl") else expected_minimum
        fewer = min(len(self.lower.values), len(self.higher.values))
        return expected(self.lower.values, fewer), expected(self.higher.values, fewer)

    @property
    def kind(self) -> str:
        """One of the three verdicts."""
        if self.reason is not None or self.lower is None or self.higher is None:
            return INCONCLUSIVE
        return AS_EXPECTED if self.lower.value < self.higher.value else NOT_AS_EXPECTED

    @property
    def verdict(self) -> str:
        return self.kind if self.reason is None else f"{INCONCLUSIVE}: {self.reason}"


def expected_blocks(study: Study) -> list[Block]:
    """A sentence and a row for each expectation."""
    if not study.expectations:
        text = (
            "No expectations were stated. Those that stand in the study's manifest as [[expect]] tables when it is "
            "launched (docs/reference/manifest.md) are held against the results here."
        )
        return [Prose(text=text)]
    outcomes = [outcome_of(study, expectation) for expectation in study.expectations]
    sentences = [_summary(outcomes)]
    if any(outcome.expectation.metric.endswith(("seconds", "5pct")) for outcome in outcomes):
        sentences += device_sentences(study)
    return [Prose(text=" ".join(sentences)), Points(items=list(map(_sentence, outcomes))), _table(outcomes)]


def outcome_of(study: Study, expectation: Expectation) -> Outcome:
    """Look for the lowest value on each side."""
    lower, higher = (_side(study, expectation.metric, ids) for ids in (expectation.lower, expectation.higher))
    sides = ((lower, expectation.lower), (higher, expectation.higher))
    missing = [run_id for side, ids in sides if side is None for run_id in ids]
    runs = finished(study.runs[study.runs["id"].isin([*expectation.lower, *expectation.higher])])
    return Outcome(
        expectation=expectation,
        lower=lower,
        higher=higher,
        same_text=len(set(map(text_of, runs.to_dict("records")))) < 2,
        states=_states(study, missing),
    )


def _states(study: Study, ids: Sequence[str]) -> str:
    runs: list[dict[Any, Any]] = study.runs[study.runs["id"].isin(ids)].sort_values("number").to_dict("records")
    found = [f"{run['number']} {run['name']}: {units.state_of(run)}" for run in runs]
    return first_few(found, 3) if found else "no run directory"


def _side(study: Study, metric: str, ids: Sequence[str]) -> Side | None:
    runs = study.runs[study.runs["id"].isin(ids)]
    if metric == "val_ppl":  # the one metric with intervals over seeds
        settings = settings_of(runs)
        if not settings:
            return None
        best = best_of(settings)
        values = [setting.val_ppl for setting in settings]
        return Side(value=best.val_ppl, values=values, reference=best.reference, interval=best.interval)
    rows: list[dict[Any, Any]] = finished(runs).sort_values("number").to_dict("records")
    rows = [row for row in rows if units.is_number(row[metric])]
    if not rows:
        return None
    lowest = min(rows, key=lambda row: row[metric])
    values = [row[metric] for row in rows]
    return Side(value=lowest[metric], values=values, reference=f"{lowest['number']} {lowest['name']}")


def _summary(outcomes: Sequence[Outcome]) -> str:
    count = Counter(outcome.kind for outcome in outcomes)
    parts = [
        f"{count[AS_EXPECTED]} came out as expected",
        f"{count[NOT_AS_EXPECTED]} did not",
        f"{count[INCONCLUSIVE]} {'is' if count[INCONCLUSIVE] == 1 else 'are'} inconclusive",
    ]
    stated = "was" if len(outcomes) == 1 else "were"
    return f"{units.count(len(outcomes), 'expectation')} {stated} stated before the runs: {units.listing(parts)}."


def _sentence(outcome: Outcome) -> str:
    metric = outcome.expectation.metric
    opening = f"“{outcome.expectation.text}”: {outcome.verdict}."
    found = [
        (side, f"where it was expected {word}")
        for side, word in ((outcome.lower, "lower"), (outcome.higher, "higher"))
        if side is not None
    ]
    if not found:
        return opening
    values = [side.value for side, _ in found]
    texts = distinct(values[0], values[-1], writer(metric))
    parts = [
        f"{text} ({side.reference}{_seeds(side)}) {where}" for (side, where), text in zip(found, texts, strict=False)
    ]
    return f"{opening} Lowest {METRICS[metric]}: {', '.join(parts)}.{_unequal(outcome)}"


def _unequal(outcome: Outcome) -> str:
    """Say what the two minima would be at equal numbers of runs; nothing if the numbers are equal."""
    lower, higher = outcome.lower, outcome.higher
    if lower is None or higher is None or len(lower.values) == len(higher.values):
        return ""
    fewer = min(len(lower.values), len(higher.values))
    write = writer(outcome.expectation.metric)
    of = "setting" if outcome.expectation.metric == "val_ppl" else "run"
    values = distinct(*outcome.equal_counts, write)
    return (
        f" These are the lowest of {len(lower.values)} and of {units.count(len(higher.values), of)}; of {fewer} each, "
        f"expected {values[0]} and {values[1]}."
    )


def _seeds(side: Side) -> str:
    if side.interval is None or side.interval.n == 1:
        return ""
    low, high = distinct(side.interval.low, side.interval.high)
    return f", mean of {side.interval.n} seeds, 95 % interval {low} to {high}"


def writer(metric: str) -> Callable[[Any], str]:
    """How values of a metric are written in sentences."""
    return units.duration if metric.endswith(("seconds", "5pct")) else units.rounded


def _table(outcomes: Sequence[Outcome]) -> Table:
    places = {id(outcome): place for place, outcome in enumerate(outcomes, start=1)}
    columns = [
        number("number", "No.", of=lambda outcome: places[id(outcome)]),
        Column("expectation", "Expectation", of=lambda outcome: outcome.expectation.text),
        Column("metric", "Of", of=lambda outcome: _short(outcome.expectation.metric)),
        *_side_columns("lower", "Expected lower", lambda outcome: outcome.lower),
        *_side_columns("higher", "Expected higher", lambda outcome: outcome.higher),
        Column("verdict", "Verdict", of=lambda outcome: outcome.verdict, shown=lambda outcome: outcome.kind),
    ]
    caption = (
        "Lowest value among the finished runs of each side, and its run. Without a difference by Welch's t test over "
        f"seeds: inconclusive. Gap: validation minus training perplexity. {units.MISSING}: no finished run."
    )
    return Table(
        name="discussion-1-expected",
        title="Expected against observed",
        caption=caption,
        columns=columns,
        records=outcomes,
    )


def _short(metric: str) -> str:
    return SHORT.get(metric, METRICS[metric])


def _side_columns(key: str, title: str, side_of: Callable[[Outcome], Side | None]) -> list[Column]:
    """The value of a side and the run that has it; empty where no finished run has the number."""

    def value(outcome: Outcome) -> str:
        side = side_of(outcome)
        is_time = writer(outcome.expectation.metric) is units.duration
        return (units.duration if is_time else units.perplexity)(side and side.value)

    return [
        Column(key, title, of=lambda outcome: (s := side_of(outcome)) and s.value, shown=value, numeric=True),
        Column(f"{key}_run", "Run", units.text, lambda outcome: (s := side_of(outcome)) and s.reference),
    ]
