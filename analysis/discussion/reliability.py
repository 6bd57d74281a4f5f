"""Which architecture is the most reliable across settings, and which the least.

An architecture is reliable if a large share of its settings come near the study's lowest perplexity. The spread stands
beside the share: alone it would call an architecture reliable whose settings are all equally bad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import scope, times
from analysis.plots.scatter import spread_chart
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import Setting, best_of
from analysis.study.study import Study
from analysis.study.values import rows_of

ENOUGH = 3
"""Settings, finished or diverged, that an architecture needs to be ranked."""

NEAR, FAIR = 1.2, 1.5
"""Multiples of the study's lowest perplexity within which settings are counted; the first ranks, the second breaks
ties."""


def reliability_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """Return the verdict if there are enough settings, and the numbers of each architecture."""
    spreads = _spreads(study, settings)
    if spreads.empty:
        return [Prose(text="No run has finished or diverged, so nothing can be said about reliability.")]
    lowest = best_of(settings).val_ppl if settings else math.nan
    blocks: list[Block] = [
        Prose(text=_verdict(spreads, lowest)),
        Points(items=[_sentence(spread) for spread in rows_of(spreads)]),
        _table(spreads, scope(study)),
    ]
    if len(settings) >= ENOUGH:
        groups = [(_label(spread), spread.members) for spread in rows_of(spreads) if spread.members]
        blocks.append(spread_chart(groups, scope(study)))
    return blocks


def _spreads(study: Study, settings: Sequence[Setting]) -> pd.DataFrame:
    """Return one row for each architecture with a run that finished or diverged, in the report's order.

    A setting with a diverged run counts as tried (``settings``) and as not within any factor, even if it has finished
    with another seed. ``members`` are the finished settings, of which the perplexities are.
    """
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    failed = set(diverged["setting"])
    ended = pd.concat([finished(study.runs), diverged])["arch"]
    lowest = min((setting.val_ppl for setting in settings), default=math.nan)
    rows = []
    for key in sorted(set(ended.dropna()), key=lambda key: (units.rank(units.ARCHITECTURES, key), str(key))):
        members = [setting for setting in settings if setting.arch == key]
        values = np.array([setting.val_ppl for setting in members])
        held = [setting.val_ppl for setting in members if setting.number not in failed]
        tried = len({setting.number for setting in members} | set(diverged.loc[diverged["arch"] == key, "setting"]))
        within = {factor: sum(ppl <= factor * lowest for ppl in held) for factor in (NEAR, FAIR)}
        row = {
            "architecture": units.architecture(key),
            "settings": tried,
            "near": within[NEAR],
            "fair": within[FAIR],
            "share_within_1_2": within[NEAR] / tried,
            "share_within_1_5": within[FAIR] / tried,
            "min_val_ppl": values.min() if members else math.nan,
            "median_val_ppl": np.median(values) if members else math.nan,
            "max_val_ppl": values.max() if members else math.nan,
            "quartile_range_nats": np.subtract(*np.percentile(np.log(values), [75, 25])) if members[1:] else math.nan,
            "diverged": int((diverged["arch"] == key).sum()),
            "ended": int((ended == key).sum()),
            "members": members,
        }
        rows.append(row)
    return pd.DataFrame(rows)


# -- sentences -----------------------------------------------------------------------------------------------------


def _verdict(spreads: pd.DataFrame, lowest: float) -> str:
    """Name the most and the least reliable architecture by the share of settings near the study's lowest."""
    judged = spreads[spreads["settings"] >= ENOUGH]
    if len(judged) < 2:
        text = f"No architecture can be called the most or the least reliable: fewer than two have {ENOUGH} settings."
    elif not units.is_number(lowest):
        text = "No setting has finished, so no architecture is reliable."
    else:
        text = _order(judged, lowest)
    few = [f"{spread.architecture} ({spread.settings})" for spread in rows_of(spreads) if spread.settings < ENOUGH]
    return f"{text} Not ranked, with fewer than {ENOUGH} settings: {units.listing(few)}." if few else text


def _order(judged: pd.DataFrame, lowest: float) -> str:
    shares = judged[["share_within_1_2", "share_within_1_5"]]
    ranked = shares.sort_values(list(shares.columns), ascending=False)
    most, least = (judged[(shares == ranked.iloc[end]).all(axis=1)] for end in (0, -1))
    near = ranked["share_within_1_2"]
    factor, count, share = (
        (NEAR, "near", "share_within_1_2") if near.iloc[0] > near.iloc[-1] else (FAIR, "fair", "share_within_1_5")
    )
    high, low = ranked[share].iloc[0], ranked[share].iloc[-1]
    limit = f"within {factor:g} times the study's lowest perplexity, {units.rounded(lowest)}"
    if len(most) == len(judged):
        text = (
            f"The architectures are equally reliable: {units.percent(near.iloc[0])} of the settings of each are within "
            f"{NEAR:g} times the study's lowest perplexity, {units.rounded(lowest)}."
        )
    else:
        text = (
            f"{units.listing(list(most['architecture']))} {'is' if len(most) == 1 else 'are'} the most reliable "
            f"({units.percent(high)} of settings {limit}) and {units.listing(list(least['architecture']))} the least "
            f"({units.percent(low)})."
        )
        if factor == FAIR:
            text += f" Within {NEAR:g} times, their shares are equal."
        one_fewer, one_more = (most[count] - 1) / most["settings"], (least[count] + 1) / least["settings"]
        if one_fewer.min() <= low or one_more.max() >= high:
            text += " A single setting more or fewer would change this order."
    several = judged.dropna(subset="quartile_range_nats")
    if len(several) > 1:
        narrow = min(rows_of(several), key=lambda spread: spread.quartile_range_nats)
        range_nats = f"interquartile range {narrow.quartile_range_nats:.3f} nats"
        text += f" {narrow.architecture} has the smallest spread ({range_nats})"
        if narrow.architecture not in set(most["architecture"]):
            text += f", but around {times(narrow.median_val_ppl / lowest)} the study's lowest perplexity"
        text += "."
    return f"{text} The settings are those that were tried, which need not be alike for each architecture."


def _sentence(spread: Any) -> str:
    parts = [
        f"{spread.near} of {units.count(spread.settings, 'setting')} within {NEAR:g} times the study's lowest, "
        f"{spread.fair} within {FAIR:g} times"
    ]
    if not spread.members:
        parts = ["no finished setting"]
    elif len(spread.members) == 1:
        parts.append(f"{units.rounded(spread.min_val_ppl)} in its one finished setting")
    else:
        parts.append(
            f"median {units.rounded(spread.median_val_ppl)}, from {units.rounded(spread.min_val_ppl)} to "
            f"{units.rounded(spread.max_val_ppl)} ({times(spread.max_val_ppl / spread.min_val_ppl)})"
        )
    diverged = f"{spread.diverged} of {units.count(spread.ended, 'run')} diverged"
    parts.append(diverged if spread.diverged else "no run diverged")
    return f"{spread.architecture}: {'; '.join(parts)}."


# -- table and figure ----------------------------------------------------------------------------------------------


def _label(spread: Any) -> str:
    diverged = f", {spread.diverged} diverged" if spread.diverged else ""
    return f"{spread.architecture}\n{units.count(len(spread.members), 'setting')}{diverged}"


def _table(spreads: pd.DataFrame, of: str) -> Table:
    return Table(
        name="discussion-4-reliability",
        title="Reliability of the architectures",
        caption=f"Within {NEAR:g} ×: share of settings at most {NEAR:g} times the study's lowest perplexity; with a "
        f"diverged run never. IQR: interquartile range of the losses. Diverged: runs.{of}",
        columns=[
            Column("architecture", "Architecture"),
            number("settings", "Settings"),
            number("share_within_1_2", f"Within {NEAR:g} ×", units.percent),
            number("share_within_1_5", f"Within {FAIR:g} ×", units.percent),
            number("min_val_ppl", "Lowest", units.perplexity),
            number("median_val_ppl", "Median", units.perplexity),
            number("max_val_ppl", "Highest", units.perplexity),
            number("quartile_range_nats", "IQR (nats)", units.decimals(".3f")),
            number("diverged", "Diverged"),
        ],
        records=spreads,
    )
