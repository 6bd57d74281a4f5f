"""What was expected before the study, next to what was observed, in runs that are otherwise equal."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.blocks.section import Block, Points, paragraphs
from analysis.blocks.sentences import first_few, scope, sentences
from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.columns import TEXT_KEYS
from analysis.study.pairs import (
    ABSENT,
    ARCHITECTURE,
    FOLLOWS,
    OPTIMIZER,
    differing_keys,
    grouped_by,
    printed,
    tuned_keys,
    value_of,
)
from analysis.study.record import GAPS, METRICS, TIMES, Expectation
from analysis.study.settings import Setting, differ, interval, settings_of
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of

SHORT = {"gap": "gap (nats)", "final_gap": "final gap (nats)", "seconds_to_5pct": "time to 5 %"}
"""Shorter words for some of them in a table."""

NATS = units.decimals(".3f")

LOWER, HIGHER, ONE_SEED, UNCLEAR = "lower", "higher", "one seed", "no clear difference"
"""What a case shows of the side that was expected lower."""


class Reached(NamedTuple):
    """What a setting has reached of a metric."""

    setting: Setting
    values: list[float]
    """One of each seed."""

    def mean(self, metric: str) -> float:
        """The mean over seeds, of anything but a gap the geometric one."""
        return statistics.fmean(self.values) if metric in GAPS else interval(self.values).centre


@dataclass(frozen=True, kw_only=True)
class Case:
    """The lowest setting of each side among those that are otherwise equal."""

    number: int
    """Of the expectation, from 1."""
    metric: str
    where: str
    """What they agree in, of the keys in which the settings of the expectation differ."""
    lower: Setting
    """The lowest one expected lower."""
    higher: Setting
    values: tuple[float, float]
    shows: str
    """One of ``LOWER``, ``HIGHER``, ``ONE_SEED``, ``UNCLEAR``."""

    @property
    def is_lower(self) -> bool:
        """Whether the value expected lower is lower, clearly or not."""
        return self.values[0] < self.values[1]

    @property
    def written(self) -> tuple[str, str]:
        """The values as the report shows them."""
        write = units.duration if self.metric in TIMES else NATS if self.metric in GAPS else units.perplexity
        return write(self.values[0]), write(self.values[1])


def expected_blocks(study: StudyFiles) -> list[Block]:
    """A sentence for each expectation, and a row for each case of it."""
    points, kinds, found = [], Counter[str](), list[Case]()
    for place, expectation in enumerate(study.expectations, start=1):
        metric = expectation.metric
        sides = [_reached(study, metric, ids) for ids in (expectation.lower, expectation.higher)]
        cases, also = _cases(place, metric, sides)
        verdict = _verdict(cases)
        kinds[verdict] += 1
        found += cases
        points += sentences(
            "expected",
            expectation=expectation,
            verdict=verdict,
            cases=cases,
            lower=sum(case.is_lower for case in cases),
            missing=_missing(study, expectation, sides),
            also=also,
            metric=METRICS[metric],
            is_time=metric in TIMES,
        )
    has_gap = any(expectation.metric in GAPS for expectation in study.expectations)
    summary = sentences("expected_summary", count=len(study.expectations), kinds=kinds, has_gap=has_gap)
    table = [_table(found, scope(study))] if found else []
    return [*paragraphs(summary), *([Points(items=points)] if points else []), *table]


# -- cases ---------------------------------------------------------------------------------------------------------


def _reached(study: StudyFiles, metric: str, ids: Sequence[str]) -> list[Reached]:
    """Return the settings of some finished runs, with the values of those that have the number."""
    runs = study.runs[study.runs["id"].isin(ids)]
    runs = runs[runs[metric].map(units.is_number) & ((runs[metric] > 0) | (metric in GAPS))]
    values = dict(zip(runs["number"], runs[metric].astype(float), strict=True))
    return [Reached(one, [values[run] for run in one.runs]) for one in settings_of(runs)]


def _cases(number: int, metric: str, sides: Sequence[Sequence[Reached]]) -> tuple[list[Case], list[str]]:
    """Return the cases, and all keys that differ between the sides throughout if these are several.

    Those are what the expectation is about, or go along with it. If the architecture or the optimizer is one of them,
    each side has the keys of the optimizer at its own best, and they are not named. Times are those of one machine.
    """
    settings = [[one.setting for one in side] for side in sides]
    varying = [key for key in differing_keys([*settings[0], *settings[1]]) if key not in FOLLOWS]
    found = {key: [{value_of(one, key) for one in side} for side in settings] for key in varying}
    kept = () if metric in TIMES else TEXT_KEYS  # perplexities of different texts do not compare
    about = [key for key, (lower, higher) in found.items() if not lower & higher and key not in kept]
    free = tuned_keys() if {ARCHITECTURE, OPTIMIZER} & {*about} else []
    shared = [key for key in varying if key not in (*about, *free)]
    cells: dict[tuple[Any, ...], tuple[list[Reached], list[Reached]]] = defaultdict(lambda: ([], []))
    for place, side in enumerate(sides):
        for one in side:
            machine = one.setting.machine if metric in TIMES else None
            cells[(*(value_of(one.setting, key) for key in shared), machine)][place].append(one)
    pairs = [[min(side, key=lambda one: one.mean(metric)) for side in cell] for cell in cells.values() if all(cell)]
    kinds = grouped_by([*settings[0], *settings[1]], [ARCHITECTURE, OPTIMIZER])  # such keys follow from these
    named = [key for key in shared if key in (ARCHITECTURE, OPTIMIZER) or any(differing_keys(k, [key]) for k in kinds)]
    also = [key for key in about if key not in free and ABSENT not in found[key][0] | found[key][1]]
    cases = [
        Case(
            number=number,
            metric=metric,
            where=", ".join(_agreed(key, lower.setting) for key in named),
            lower=lower.setting,
            higher=higher.setting,
            values=(lower.mean(metric), higher.mean(metric)),
            shows=_shows(metric, lower, higher),
        )
        for lower, higher in pairs
    ]
    return cases, also if len(also) > 1 else []


def _agreed(key: str, setting: Setting) -> str:
    text = printed(key, value_of(setting, key))
    return text if key in (ARCHITECTURE, OPTIMIZER) else f"{key} = {text}"


def _shows(metric: str, lower: Reached, higher: Reached) -> str:
    """Say which value is lower: of times, beyond the scatter of epochs; of others, by Welch's t test over seeds."""
    means = lower.mean(metric), higher.mean(metric)
    found = LOWER if means[0] < means[1] else HIGHER
    if means[0] == means[1]:
        return UNCLEAR
    if metric in TIMES:
        return found if differ(lower.setting.scatter * means[0], higher.setting.scatter * means[1], *means) else UNCLEAR
    seeds = [
        interval([math.exp(v) for v in side.values] if metric in GAPS else side.values) for side in (lower, higher)
    ]
    if seeds[0].n == seeds[1].n == 1:
        return ONE_SEED
    return UNCLEAR if seeds[0].doubt_against(seeds[1]) else found


def _verdict(cases: Sequence[Case]) -> str:
    shown = {case.shows for case in cases}
    if not cases:
        return "not comparable"
    if clear := shown & {LOWER, HIGHER}:
        return "mixed" if len(clear) == 2 else "as expected" if clear == {LOWER} else "not as expected"
    return ONE_SEED if ONE_SEED in shown else UNCLEAR


def _missing(study: StudyFiles, expectation: Expectation, sides: Sequence[Sequence[Reached]]) -> str | None:
    """Name the runs of a side of which none has finished with the number; ``None`` if both sides have one."""
    empty = [ids for side, ids in zip(sides, (expectation.lower, expectation.higher), strict=True) if not side]
    runs = study.runs[study.runs["id"].isin([one for ids in empty for one in ids])].sort_values("number")
    states = [f"{run.number} {run.name}: {units.state_of(run.state, run.failure_kind)}" for run in rows_of(runs)]
    return (first_few(states, 3) if states else "no run directory") if empty else None


# -- table ---------------------------------------------------------------------------------------------------------


def _table(cases: Sequence[Case], of: str) -> Table:
    return Table(
        name="discussion-1-expected",
        title="Expected against observed",
        caption="The lowest setting of each side among those that agree in Where. One seed: no verdict. No clear "
        f"difference: by Welch's t test over seeds; of times, within their scatter.{of}",
        columns=[
            number("number", "No."),
            Column("metric", "Of", of=lambda case: SHORT.get(case.metric, METRICS[case.metric])),
            Column("where", "Where", of=lambda case: case.where or "all"),
            Column("lower", "Expected lower", of=lambda c: c.values[0], shown=lambda c: c.written[0], numeric=True),
            Column("lower_run", "Run", of=lambda case: case.lower.reference),
            Column("higher", "Expected higher", of=lambda c: c.values[1], shown=lambda c: c.written[1], numeric=True),
            Column("higher_run", "Run", of=lambda case: case.higher.reference),
            Column("shows", "Expected side is", of=_outcome),
        ],
        records=cases,
    )


def _outcome(case: Case) -> str:
    return f"{LOWER if case.is_lower else HIGHER}, {ONE_SEED}" if case.shows == ONE_SEED else case.shows
