"""Which architecture is the most reliable across settings, and which the least.

An architecture is reliable if a large share of its settings come near the study's lowest perplexity. The spread stands
beside the share: alone it would call an architecture reliable whose settings are all equally bad.
"""

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
from analysis.blocks.words import median, times
from analysis.plots.scatter import spread_chart
from analysis.study import units
from analysis.study.settings import Setting, best_of, finished
from analysis.study.study import Study

ENOUGH = 3
"""Settings, finished or diverged, that an architecture needs to be ranked."""

NEAR, FAIR = 1.2, 1.5
"""Multiples of the study's lowest perplexity within which settings are counted; the first ranks, the second breaks
ties."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the settings of one architecture ended."""

    architecture: str
    """Its printed name."""
    settings: list[Setting]
    """Those with a finished run."""
    diverged_settings: frozenset[int]
    """Numbers of the settings with a diverged run; a setting may also have finished with another seed."""
    finished: int
    """Runs."""
    diverged: int
    """Runs; in none of the perplexities."""
    lowest_ppl: float
    """Lowest perplexity of the study, over all architectures; NaN if no run has finished."""

    @property
    def tried(self) -> int:
        """Number of settings that finished or diverged."""
        return len(self.diverged_settings.union(setting.number for setting in self.settings))

    @property
    def enough(self) -> bool:
        return self.tried >= ENOUGH

    @property
    def values(self) -> list[float]:
        return [setting.val_ppl for setting in self.settings]

    def within(self, factor: float) -> int:
        """Return how many settings are within ``factor`` times the study's lowest; none of whose runs diverged."""
        return sum(
            setting.val_ppl <= factor * self.lowest_ppl and setting.number not in self.diverged_settings
            for setting in self.settings
        )

    def share(self, factor: float) -> float:
        """Return the share of the settings tried that :meth:`within` counts."""
        return self.within(factor) / self.tried

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts the most reliable first."""
        return -self.share(NEAR), -self.share(FAIR)

    @property
    def quartile_range_nats(self) -> float:
        """Third quartile of the best validation losses minus the first; NaN for fewer than two settings."""
        if len(self.settings) < 2:
            return math.nan
        low, high = np.percentile(np.log(self.values), [25, 75])
        return float(high - low)


def reliability_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """Return the verdict if there are enough settings, and the numbers of each architecture."""
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
    """Return one for each architecture with a run that finished or diverged, in the report's order."""
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
            diverged_settings=frozenset(diverged.loc[diverged["arch"] == key, "setting"]),
            finished=int((done["arch"] == key).sum()),
            diverged=int((diverged["arch"] == key).sum()),
            lowest_ppl=best_of(settings).val_ppl if settings else math.nan,
        )
        for key in sorted(keys, key=lambda key: (units.rank(units.ARCHITECTURES, key), str(key)))
    ]


# -- sentences -----------------------------------------------------------------------------------------------------


def verdict(spreads: Sequence[Spread]) -> str:
    """Name the most and the least reliable architecture by the share of settings near the study's lowest."""
    judged = [spread for spread in spreads if spread.enough]
    few = [f"{s.architecture} ({s.tried})" for s in spreads if not s.enough]
    too_few = f"Fewer than {ENOUGH} settings, so not ranked: {units.listing(few)}." if few else ""
    if len(judged) < 2:
        text = f"No architecture can be called the most or the least reliable: that takes two with {ENOUGH} settings."
        return " ".join(filter(None, [text, too_few]))
    if not units.is_number(judged[0].lowest_ppl):
        return " ".join(filter(None, ["No setting has finished, so no architecture is reliable.", too_few]))
    ranks = sorted({spread.rank for spread in judged})
    most = [spread for spread in judged if spread.rank == ranks[0]]
    least = [spread for spread in judged if spread.rank == ranks[-1]]
    lowest = f"the study's lowest perplexity, {units.rounded(most[0].lowest_ppl)}"
    factor = NEAR if most[0].share(NEAR) > least[0].share(NEAR) else FAIR
    if len(ranks) == 1:
        text = (
            f"The architectures are equally reliable: {_percent(most[0].share(NEAR))} of the settings of each are "
            f"within {NEAR:g} times {lowest}."
        )
    else:
        text = (
            f"{_names(most)} {'is' if len(most) == 1 else 'are'} the most reliable "
            f"({_percent(most[0].share(factor))} of settings within {factor:g} times {lowest}) and {_names(least)} "
            f"the least ({_percent(least[0].share(factor))})."
        )
        if factor == FAIR:
            text += f" Within {NEAR:g} times, their shares are equal."
        if any(_hangs_on_one(high, low, factor) for high in most for low in least):
            text += " A single setting more or fewer would change this order."
    caveat = "The settings are those that were tried, which need not be alike for each architecture."
    return " ".join(filter(None, [text, _spread_sentence(judged, most), caveat, too_few]))


def _names(spreads: Sequence[Spread]) -> str:
    return units.listing([spread.architecture for spread in spreads])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _hangs_on_one(most: Spread, least: Spread, factor: float) -> bool:
    """Return whether the order would be lost if one setting had ended on the other side of ``factor``."""
    fewer = (most.within(factor) - 1) / most.tried
    more = (least.within(factor) + 1) / least.tried
    return fewer <= least.share(factor) or more >= most.share(factor)


def _spread_sentence(judged: Sequence[Spread], most: Sequence[Spread]) -> str:
    """Say which architecture has the smallest spread, and that this is not reliability where it is another one."""
    several = [spread for spread in judged if len(spread.settings) > 1]
    if len(several) < 2:
        return ""
    narrow = min(several, key=lambda spread: spread.quartile_range_nats)
    text = f"{narrow.architecture} has the smallest spread (interquartile range {narrow.quartile_range_nats:.3f} nats)"
    if any(narrow is spread for spread in most):
        return f"{text}."
    return f"{text}, but around {times(median(narrow.values) / narrow.lowest_ppl)} the study's lowest perplexity."


def _sentence(spread: Spread) -> str:
    parts = []
    if spread.settings:
        parts.append(
            f"{spread.within(NEAR)} of {units.count(spread.tried, 'setting')} within {NEAR:g} times the study's "
            f"lowest, {spread.within(FAIR)} within {FAIR:g} times"
        )
    if len(spread.settings) > 1:
        ratio = max(spread.values) / min(spread.values)
        parts.append(
            f"median {units.rounded(statistics.median(spread.values))}, from {units.rounded(min(spread.values))} to "
            f"{units.rounded(max(spread.values))} ({times(ratio)})"
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
        number("settings", "Settings", of=lambda spread: spread.tried),
        number("share_within_1_2", f"Within {NEAR:g} ×", _percent, lambda spread: spread.share(NEAR)),
        number("share_within_1_5", f"Within {FAIR:g} ×", _percent, lambda spread: spread.share(FAIR)),
        number("min_val_ppl", "Lowest", units.perplexity, lambda s: min(s.values, default=math.nan)),
        number("median_val_ppl", "Median", units.perplexity, lambda s: median(s.values)),
        number("max_val_ppl", "Highest", units.perplexity, lambda s: max(s.values, default=math.nan)),
        number("quartile_range_nats", "IQR (nats)", units.decimals(".3f"), lambda spread: spread.quartile_range_nats),
        number("diverged", "Diverged", of=lambda spread: spread.diverged),
    ]
    caption = (
        f"Within {NEAR:g} ×: share of settings at most {NEAR:g} times the study's lowest validation perplexity; one "
        "with a diverged run is never within. IQR: interquartile range of the losses. Diverged: runs."
    )
    return Table(
        name="discussion-4-reliability",
        title="Reliability of the architectures",
        caption=caption,
        columns=columns,
        records=spreads,
    )
