"""Which architecture is the most reliable across settings, and which the least."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import SEEDS_CAPTION, median, times
from analysis.plots.scatter import spread_chart
from analysis.study import units
from analysis.study.settings import Setting, finished
from analysis.study.study import Study

ENOUGH = 3
"""Settings that an architecture needs before anything is said of its reliability."""

CLOSE = 1.1
"""Spreads that differ by less than this factor count as alike."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the settings of one architecture have ended."""

    architecture: str
    """Its name in print."""
    settings: list[Setting]
    finished: int
    """Runs."""
    diverged: int
    """Runs that failed as diverged; in none of the numbers of perplexity."""

    @property
    def enough(self) -> bool:
        return len(self.settings) >= ENOUGH

    @property
    def values(self) -> list[float]:
        return [setting.val_ppl for setting in self.settings]

    @property
    def quartile_range_nats(self) -> float:
        """Third less first quartile of the best validation losses; NaN of a single setting."""
        if len(self.settings) < 2:
            return math.nan
        low, high = np.percentile(np.log(self.values), [25, 75])
        return float(high - low)

    @property
    def ratio(self) -> float:
        """Highest by lowest perplexity."""
        return max(self.values) / min(self.values) if self.settings else math.nan

    @property
    def diverged_share(self) -> float:
        """Of the runs that finished or diverged."""
        ended = self.finished + self.diverged
        return self.diverged / ended if ended else math.nan


def reliability_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The spread of each architecture, and the verdict where there are enough settings."""
    spreads = spreads_of(study, settings)
    if not spreads:
        return [Prose(text="No run has finished or diverged, so nothing can be said of reliability.")]
    blocks: list[Block] = [
        Prose(text=verdict(spreads)),
        Points(items=[_sentence(spread) for spread in spreads]),
        _table(spreads),
    ]
    if len(settings) >= ENOUGH:
        blocks.append(spread_chart([(_label(spread), spread.settings) for spread in spreads if spread.settings]))
    return blocks


def spreads_of(study: Study, settings: Sequence[Setting]) -> list[Spread]:
    """One for each architecture with a run that finished or diverged, in the report's order."""
    groups: dict[Any, list[Setting]] = defaultdict(list)
    for setting in settings:
        groups[setting.arch].append(setting)
    done = finished(study.runs)
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    keys = {*groups, *(arch for arch in diverged["arch"] if isinstance(arch, str))}
    return [
        Spread(
            architecture=units.architecture(key),
            settings=groups.get(key, []),
            finished=int((done["arch"] == key).sum()),
            diverged=int((diverged["arch"] == key).sum()),
        )
        for key in sorted(keys, key=lambda key: (units.rank(units.ARCHITECTURES, key), str(key)))
    ]


# -- sentences -----------------------------------------------------------------------------------------------------


def verdict(spreads: Sequence[Spread]) -> str:
    """Most and least reliable by the spread and by the share of diverged runs; the two may disagree."""
    judged = [spread for spread in spreads if spread.enough]
    few = [f"{s.architecture} ({len(s.settings)})" for s in spreads if not s.enough]
    too_few = f"Too few finished settings to tell, fewer than {ENOUGH}: {units.listing(few)}." if few else ""
    caveat = "This is the spread over the settings that were tried, which need not be alike for each architecture."
    if len(judged) < 2:
        text = f"No architecture can be called the most or the least reliable: that takes two with {ENOUGH} settings."
        return " ".join(filter(None, [text, too_few]))
    ranked = sorted(judged, key=lambda s: s.quartile_range_nats)
    most, least = ranked[0], ranked[-1]
    if least.quartile_range_nats <= CLOSE * most.quartile_range_nats:
        low, high = most.quartile_range_nats, least.quartile_range_nats
        text = (
            f"By the spread of perplexities they are about alike (interquartile ranges {low:.3f} to {high:.3f} nats)."
        )
    else:
        text = (
            f"By the spread of perplexities {most.architecture} is the most reliable (interquartile range "
            f"{most.quartile_range_nats:.3f} nats) and {least.architecture} the least "
            f"({least.quartile_range_nats:.3f} nats)."
        )
    return " ".join(filter(None, [text, _divergence_sentence(judged, most, least), caveat, too_few]))


def _divergence_sentence(judged: Sequence[Spread], most: Spread, least: Spread) -> str:
    if not any(spread.diverged for spread in judged):
        return "None of their runs diverged."
    highest = max(spread.diverged_share for spread in judged)
    worst = [spread for spread in judged if spread.diverged_share == highest]
    named = units.listing([spread.architecture for spread in worst])
    share = f"{100 * highest:.0f} %"
    if worst == [least]:
        return f"{named} also has the largest share of diverged runs ({share})."
    if most in worst and len(worst) < len(judged):
        has = "has" if len(worst) == 1 else "have"
        return f"But by the share of diverged runs {named} {has} the most ({share}), so the two measures disagree."
    return f"The largest share of diverged runs: {named} ({share})."


def _sentence(spread: Spread) -> str:
    parts = []
    if len(spread.settings) > 1:
        parts.append(
            f"median {units.rounded(statistics.median(spread.values))} over {len(spread.settings)} settings, from "
            f"{units.rounded(min(spread.values))} to {units.rounded(max(spread.values))} ({times(spread.ratio)})"
        )
    elif spread.settings:
        parts.append(f"{units.rounded(spread.values[0])} in its one finished setting")
    else:
        parts.append("no finished setting")
    ended = spread.finished + spread.diverged
    parts.append(f"{spread.diverged} of {units.count(ended, 'run')} diverged" if spread.diverged else "no run diverged")
    return f"{spread.architecture}: {'; '.join(parts)}."


# -- table and figure ----------------------------------------------------------------------------------------------


def _label(spread: Spread) -> str:
    diverged = f", {spread.diverged} diverged" if spread.diverged else ""
    return f"{spread.architecture}\n{units.count(len(spread.settings), 'setting')}{diverged}"


def _table(spreads: Sequence[Spread]) -> Table:
    columns = [
        Column("architecture", "Architecture", of=lambda spread: spread.architecture),
        number("settings", "Settings", of=lambda spread: len(spread.settings)),
        number("min_val_ppl", "Lowest", units.perplexity, lambda s: min(s.values, default=math.nan)),
        number("median_val_ppl", "Median", units.perplexity, lambda s: median(s.values)),
        number("max_val_ppl", "Highest", units.perplexity, lambda s: max(s.values, default=math.nan)),
        number("ratio", "Highest / lowest", units.decimals(".2f"), lambda spread: spread.ratio),
        number("quartile_range_nats", "IQR (nats)", units.decimals(".3f"), lambda spread: spread.quartile_range_nats),
        number("diverged", "Diverged", of=lambda spread: spread.diverged),
        number("diverged_share", "Share", lambda share: f"{100 * share:.0f} %", lambda spread: spread.diverged_share),
    ]
    caption = (
        "Best validation perplexity over the finished settings of each architecture. IQR: third less first quartile of "
        "the validation losses, in nats per predicted token. Diverged: runs that failed so, which are in none of the "
        "other numbers; share: of the runs that finished or diverged (other failures say nothing of an architecture). "
        f"{SEEDS_CAPTION} {units.MISSING}: too few settings."
    )
    return Table(
        name="discussion-4-reliability",
        title="Spread over settings",
        caption=caption,
        columns=columns,
        records=spreads,
    )
