"""What was expected before the study, next to what was observed, in runs that are otherwise equal."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.sentences import sentences
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import first_few, scope
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
from analysis.study.record import Expectation
from analysis.study.settings import Setting, differ, interval, settings_of
from analysis.study.study import Study
from analysis.study.values import rows_of

METRICS = {
    "val_ppl": "validation perplexity",
    "train_ppl": "training perplexity",
    "test_ppl": "test perplexity",
    "gap": "gap between validation and training loss at the best epoch",
    "wall_seconds": "wall-clock time",
    "epoch_seconds": "time per epoch",
    "seconds_to_5pct": "time to within 5 % of a run's own best",
}
"""Columns of the runs table, in words; of each, less is better."""

SHORT = {"gap": "gap (nats)", "seconds_to_5pct": "time to 5 %"}
"""Shorter words for some of them in a table."""

TIMES = ("wall_seconds", "epoch_seconds", "seconds_to_5pct")

LOWER, HIGHER, ONE_SEED, UNCLEAR = "lower", "higher", "one seed", "no clear difference"
"""What a case shows of the side that was expected lower."""


class Reached(NamedTuple):
    """What a setting has reached of a metric."""

    setting: Setting
    values: list[float]
    """One of each seed."""

    def mean(self, metric: str) -> float:
        """The mean over seeds, of anything but a gap the geometric one."""
        return statistics.fmean(self.values) if metric == "gap" else interval(self.values).centre


@dataclass(frozen=True, kw_only=True)
class Case:
    """The lowest setting of each side among those that are otherwise equal."""

    where: str
    """What they agree in, of the keys in which the settings of the expectation differ."""
    settings: tuple[Setting, Setting]
    """The lowest one expected lower, and the lowest one expected higher."""
    values: tuple[float, float]
    shows: str
    """One of ``LOWER``, ``HIGHER``, ``ONE_SEED``, ``UNCLEAR``."""

    @property
    def is_lower(self) -> bool:
        """Whether the value expected lower is lower, clearly or not."""
        return self.values[0] < self.values[1]


def expected_blocks(study: Study) -> list[Block]:
    """A sentence for each expectation, and a row for each case of it."""
    rows, points, kinds = [], [], Counter[str]()
    for place, expectation in enumerate(study.expectations, start=1):
        metric = expectation.metric
        sides = [_reached(study, metric, ids) for ids in (expectation.lower, expectation.higher)]
        cases, also = _cases(metric, sides)
        verdict = _verdict(cases)
        kinds[verdict] += 1
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
            write=_write(metric),
        )
        rows += [
            {
                "number": place,
                "metric": SHORT.get(metric, METRICS[metric]),
                "write": _write(metric),
                "where": case.where or "all",
                "lower": case.values[0],
                "lower_run": case.settings[0].reference,
                "higher": case.values[1],
                "higher_run": case.settings[1].reference,
                "shows": f"{LOWER if case.is_lower else HIGHER}, {ONE_SEED}" if case.shows == ONE_SEED else case.shows,
            }
            for case in cases
        ]
    summary = sentences(
        "expected_summary",
        count=len(study.expectations),
        kinds=kinds,
        has_gap=any(expectation.metric == "gap" for expectation in study.expectations),
    )
    table = [_table(rows, scope(study))] if rows else []
    return [*(Prose(text=text) for text in summary), *([Points(items=points)] if points else []), *table]


# -- cases ---------------------------------------------------------------------------------------------------------


def _reached(study: Study, metric: str, ids: Sequence[str]) -> list[Reached]:
    """Return the settings of some finished runs, with the values of those that have the number."""
    runs = study.runs[study.runs["id"].isin(ids)]
    runs = runs[runs[metric].map(units.is_number) & ((runs[metric] > 0) | (metric == "gap"))]
    values = dict(zip(runs["number"], runs[metric].astype(float), strict=True))
    return [Reached(one, [values[run] for run in one.runs]) for one in settings_of(runs)]


def _cases(metric: str, sides: Sequence[Sequence[Reached]]) -> tuple[list[Case], list[str]]:
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
    return [_case(metric, named, lower, higher) for lower, higher in pairs], also if len(also) > 1 else []


def _case(metric: str, named: Sequence[str], lower: Reached, higher: Reached) -> Case:
    texts = [(key, printed(key, value_of(lower.setting, key))) for key in named]
    return Case(
        where=", ".join(text if key in (ARCHITECTURE, OPTIMIZER) else f"{key} = {text}" for key, text in texts),
        settings=(lower.setting, higher.setting),
        values=(lower.mean(metric), higher.mean(metric)),
        shows=_shows(metric, lower, higher),
    )


def _shows(metric: str, lower: Reached, higher: Reached) -> str:
    """Say which value is lower: of times, beyond the scatter of epochs; of others, by Welch's t test over seeds."""
    means = lower.mean(metric), higher.mean(metric)
    found = LOWER if means[0] < means[1] else HIGHER
    if means[0] == means[1]:
        return UNCLEAR
    if metric in TIMES:
        return found if differ(lower.setting.scatter * means[0], higher.setting.scatter * means[1], *means) else UNCLEAR
    seeds = [
        interval([math.exp(v) for v in side.values] if metric == "gap" else side.values) for side in (lower, higher)
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


def _missing(study: Study, expectation: Expectation, sides: Sequence[Sequence[Reached]]) -> str | None:
    """Name the runs of a side of which none has finished with the number; ``None`` if both sides have one."""
    empty = [ids for side, ids in zip(sides, (expectation.lower, expectation.higher), strict=True) if not side]
    runs = study.runs[study.runs["id"].isin([one for ids in empty for one in ids])].sort_values("number")
    states = [f"{run.number} {run.name}: {units.state_of(run.state, run.failure_kind)}" for run in rows_of(runs)]
    return (first_few(states, 3) if states else "no run directory") if empty else None


# -- table ---------------------------------------------------------------------------------------------------------


def _write(metric: str) -> Callable[[Any], str]:
    return units.duration if metric in TIMES else units.decimals(".3f") if metric == "gap" else units.perplexity


def _table(rows: Sequence[dict[str, Any]], of: str) -> Table:
    return Table(
        name="discussion-1-expected",
        title="Expected against observed",
        caption="The lowest setting of each side among those that agree in Where. One seed: no verdict. No clear "
        f"difference: by Welch's t test over seeds; of times, within their scatter.{of}",
        columns=[
            number("number", "No."),
            Column("metric", "Of"),
            Column("where", "Where"),
            Column("lower", "Expected lower", shown=lambda row: row["write"](row["lower"]), numeric=True),
            Column("lower_run", "Run"),
            Column("higher", "Expected higher", shown=lambda row: row["write"](row["higher"]), numeric=True),
            Column("higher_run", "Run"),
            Column("shows", "Expected side is"),
        ],
        records=rows,
    )
