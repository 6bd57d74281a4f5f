"""Which architecture is the most reliable across settings, and which the least.

An architecture is reliable if a large share of its settings come near the study's lowest perplexity. The spread alone
would call an architecture reliable whose settings are all equally bad.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.blocks.section import Block, paragraphs
from analysis.blocks.sentences import scope, sentences
from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.settings import Setting
from analysis.study.study import StudyFiles

ENOUGH = 3
"""Settings, finished or diverged, that an architecture needs to be ranked."""

NEAR = 1.2
"""Multiple of the study's lowest perplexity within which settings are counted."""


def reliability_blocks(study: StudyFiles, settings: Sequence[Setting]) -> list[Block]:
    """Return the verdict if there are enough settings, and the numbers of each architecture."""
    lowest = min((setting.val_ppl for setting in settings), default=math.nan)
    rows = _rows(study, settings, lowest)
    ranked = sorted((row for row in rows if row["settings"] >= ENOUGH), key=_share, reverse=True)
    told = sentences("reliability", rows=rows, lowest=lowest, NEAR=NEAR, ENOUGH=ENOUGH, **_order(ranked))
    return [*paragraphs(told), *([_table(rows, scope(study))] if rows else [])]


def _rows(study: StudyFiles, settings: Sequence[Setting], lowest: float) -> list[dict[str, Any]]:
    """Return one row for each architecture with a run that finished or diverged, in the report's order.

    A setting with a diverged run counts as tried (``settings``) and as not within any factor, even if it has finished
    with another seed.
    """
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    failed = set(diverged["setting"])
    archs = {*(setting.arch for setting in settings), *diverged["arch"].dropna()} - {None}
    rows = []
    for arch in units.in_order(units.ARCHITECTURES, archs):
        members = [setting for setting in settings if setting.arch == arch]
        values = np.array([setting.val_ppl for setting in members])
        held = np.array([setting.val_ppl for setting in members if setting.number not in failed])
        tried = len({setting.number for setting in members} | set(diverged.loc[diverged["arch"] == arch, "setting"]))
        rows.append(
            {
                "architecture": units.architecture(arch),
                "settings": tried,
                "share_within_1_2": (held <= NEAR * lowest).sum() / tried,
                "min_val_ppl": values.min() if members else math.nan,
                "median_val_ppl": np.median(values) if members else math.nan,
                "max_val_ppl": values.max() if members else math.nan,
                "quartile_range_nats": np.subtract(*np.percentile(np.log(values), [75, 25]))
                if members[1:]
                else math.nan,
                "diverged": int((diverged["arch"] == arch).sum()),
            }
        )
    return rows


def _share(row: dict[str, Any]) -> float:
    return float(row["share_within_1_2"])


def _order(ranked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the most and the least reliable of the ranked architectures, and whether one setting might turn that."""
    if len(ranked) < 2:
        return {"most": [], "least": []}
    high, low = _share(ranked[0]), _share(ranked[-1])
    most, least = ([row for row in ranked if _share(row) == share] for share in (high, low))
    return {
        "most": most,
        "least": least if high > low else [],
        "fragile": any(high - 1 / row["settings"] <= low for row in most)
        or any(low + 1 / row["settings"] >= high for row in least),
    }


# -- table --------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[dict[str, Any]], of: str) -> Table:
    return Table(
        name="discussion-4-reliability",
        title="Reliability of the architectures",
        caption=f"Within {NEAR:g} ×: share of settings at most {NEAR:g} times the study's lowest perplexity; with a "
        f"diverged run never. IQR: interquartile range of the losses. Diverged: runs.{of}",
        columns=[
            Column("architecture", "Architecture"),
            number("settings", "Settings"),
            number("share_within_1_2", f"Within {NEAR:g} ×", units.percent),
            number("min_val_ppl", "Lowest", units.perplexity),
            number("median_val_ppl", "Median", units.perplexity),
            number("max_val_ppl", "Highest", units.perplexity),
            number("quartile_range_nats", "IQR (nats)", units.decimals(".3f")),
            number("diverged", "Diverged"),
        ],
        records=rows,
    )
