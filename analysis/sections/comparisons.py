"""The comparisons of two settings over seeds: ``[[decide]]`` and ``seqlm compare``."""

import math
from collections.abc import Callable

from analysis.blocks.section import Section
from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.study import StudyFiles
from seqlm.records.comparisons import ComparisonVerdict


def comparisons_section(study: StudyFiles) -> Section:
    """Return a table of the comparisons; no block without one."""
    return Section(name="comparisons", title="Comparisons", blocks=[_table(study)] if study.comparisons else [])


def _table(study: StudyFiles) -> Table:
    nats: Callable[[float], str] = units.decimals("+.4f")

    def end(value: float | None, without: float) -> float:
        return without if value is None else value

    def alone(verdict: ComparisonVerdict) -> str:
        return "yes" if verdict.outcome == "undecided" != verdict.alone else ""

    return Table(
        name="comparisons",
        title="Comparisons over seeds",
        caption="Best validation loss of a less that of b, in nats, over runs with equal seeds. Intervals hold after "
        "every seed, for all comparisons of a study (Of). Alone: undecided among them, decided if it were alone.",
        columns=[
            Column("a", "a"),
            Column("b", "b"),
            Column("outcome", "a is", of=lambda one: one.outcome),
            number("difference", "Difference", nats, lambda one: end(one.mean, math.nan)),
            number("low", "From", nats, lambda one: end(one.low, -math.inf)),
            number("high", "To", nats, lambda one: end(one.high, math.inf)),
            number("seeds", "Seeds", units.whole, lambda one: len(one.seeds)),
            number("comparisons", "Of", units.whole),
            number("margin", "Margin", units.decimals("g")),
            number("error", "Error", units.percent),
            Column("alone", "Alone", of=alone),
            Column("left_out", "Diverged", of=lambda one: ", ".join(one.left_out)),
        ],
        records=[one.verdict for one in study.comparisons],
    )
