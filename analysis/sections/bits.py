"""Runs on one text with different vocabularies, compared by bits per byte: their perplexities do not compare."""

from __future__ import annotations

import pandas as pd

from analysis.blocks.section import Block, Prose
from analysis.blocks.table import Column, Table, number, run_columns
from analysis.study import units
from analysis.study.columns import SAME_TEXT
from analysis.study.comparison import finished
from analysis.study.study import Study
from analysis.study.values import rows_of

BITS = number("val_bits_per_byte", "Bits/byte", units.decimals(".3f"))


def bits_blocks(study: Study) -> list[Block]:
    """Return a ranking of the runs on each text that is predicted with several vocabularies; nothing if none is."""
    ranked = _compared(study)
    if ranked.empty:
        return []
    best = [
        f"{run.number} {run.name} ({units.decimals('.3f')(run.val_bits_per_byte)} bits per byte)"
        for run in rows_of(ranked[ranked["is_best"]])
    ]
    sentence = (
        "Runs on one text with different vocabularies are ranked by bits per byte, since their perplexities do not "
        f"compare. Lowest on validation: {units.listing(best) if best else 'not known'}."
    )
    return [Prose(text=sentence), _table(ranked)]


def _compared(study: Study) -> pd.DataFrame:
    """Return the finished runs whose text is also predicted with another vocabulary, best first on each text."""
    runs = finished(study.runs)
    several = runs.groupby(SAME_TEXT, dropna=False)["text"].transform("nunique") > 1
    ranked = runs[several].sort_values(["val_bits_per_byte", "number"], na_position="last")
    places = ranked.groupby(SAME_TEXT, dropna=False, sort=False).ngroup()
    ranked = ranked.assign(place=places).sort_values("place", kind="stable")
    exact = ranked["val_bits_per_byte"].where(ranked["lossless"].eq(True))
    lowest = exact.groupby(ranked["place"]).transform("min")
    return ranked.assign(is_best=exact.notna() & (exact == lowest))


def _table(ranked: pd.DataFrame) -> Table:
    caption = (
        "Valid., test: loss in bits per byte of the text. Exact: the tokens determine the text; runs that predict "
        "<unk> in place of words are not exact and not ranked. Bold: lowest of each text."
    )
    columns = [
        *run_columns(),
        Column("text", "Text"),
        Column("val_bits_per_byte", "Valid.", units.decimals(".3f"), numeric=True, emphasised=True),
        number("test_bits_per_byte", "Test", units.decimals(".3f")),
        Column("lossless", "Exact", lambda value: {True: "yes", False: "no"}.get(value, units.MISSING)),
        number("val_ppl", "Perplexity", units.perplexity),
    ]
    return Table(
        name="bits",
        title="Bits per byte across vocabularies",
        caption=caption,
        columns=columns,
        records=ranked,
        run=lambda run: run["number"],
        bold=lambda run: run["is_best"],
    )
