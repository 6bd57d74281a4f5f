"""Published perplexities beside the reproduced ones."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

from analysis.blocks.section import Block, Prose, Section
from analysis.blocks.table import Column, Table, number, run_columns
from analysis.blocks.words import first_few
from analysis.plots.published import (
    ABOVE,
    BELOW,
    DRAWN_FROM,
    NO_REPLICATIONS,
    WITHIN,
    Comparison,
    published_chart,
)
from analysis.study import units
from analysis.study.settings import in_report_order
from analysis.study.study import Study

IN_TABLE = {WITHIN: "within", BELOW: "below", ABOVE: "above", NO_REPLICATIONS: "no replications"}
"""The verdicts where there is little room."""

MOST_VARIANTS = 3
"""The caption names at most this many variants, and counts the others."""


def published_section(study: Study) -> Section:
    """How close the runs come to what has been published of them; no block where nothing has been."""
    runs = in_report_order(study.after(study.runs["published_epochs"]).runs)
    published = runs[["published_val_ppl", "published_train_ppl"]].map(units.is_number).any(axis=1)
    rows: list[dict[Any, Any]] = runs[published].to_dict("records")
    compared = [Comparison(run=run) for run in rows]
    blocks: list[Block] = []
    if compared:
        drawn = [c for c in compared if units.is_number(c.nats)]
        blocks = [Prose(text=_summary(compared)), published_table(compared)]
        blocks += [published_chart(drawn)] if len(drawn) >= DRAWN_FROM else []
    return Section(name="published", title="Published against reproduced", short="Published", blocks=blocks)


def _summary(compared: list[Comparison]) -> str:
    done = [c for c in compared if units.is_number(c.reproduced)]
    of = "none of them has" if not done else f"{len(done)} of them {'has' if len(done) == 1 else 'have'}"
    has = "has" if len(compared) == 1 else "have"
    runs = units.count(len(compared), "run")
    text = f"{runs} of this study {has} published numbers; {of} a result after as many epochs."
    if not done:
        return text
    verdicts = Counter(c.verdict for c in done)
    judged = len(done) - verdicts[NO_REPLICATIONS]
    if judged:
        text += (
            f" Where there are independent replications ({units.count(judged, 'run')}), the validation perplexity "
            f"is within their spread in {verdicts[WITHIN]}, below it in {verdicts[BELOW]} and above it in "
            f"{verdicts[ABOVE]}."
        )
    else:
        text += " No replications have been published for them."
    if measured := [c for c in done if units.is_number(c.percent)]:
        median = statistics.median(abs(c.percent) for c in measured)
        most = max(measured, key=lambda c: abs(c.percent))
        text += (
            f" The median absolute difference in validation perplexity from the published is {median:.1f} % over "
            f"{units.count(len(measured), 'run')}; the largest is {most.percent:+.1f} % ({most.reference})."
        )
    return text


def published_table(compared: list[Comparison]) -> Table:
    """A row for each run that has published numbers, each seed by itself."""
    columns = [
        *run_columns(lambda compared: compared.run),
        number("published_train_ppl", "Train publ.", _published, lambda c: c.run["published_train_ppl"]),
        number("train_ppl", "Train repr.", units.perplexity, lambda c: c.train_reproduced),
        number("published_epochs", "Epochs", units.whole, lambda c: c.run["published_epochs"]),
        number("published_val_ppl", "Valid. publ.", _published, lambda c: c.run["published_val_ppl"]),
        number("val_ppl", "Valid. repr.", units.perplexity, lambda c: c.reproduced),
        number("best_epoch", "Best epoch", units.whole, lambda c: c.best_epoch),
        number("difference", "Diff.", _signed(",.2f"), lambda c: c.difference),
        number("difference_percent", "%", _signed(",.1f"), lambda c: c.percent),
        number("difference_nats", "nats", _signed(".3f"), lambda c: c.nats),
        Column("verdict", "Verdict", lambda verdict: IN_TABLE.get(verdict, verdict), lambda c: c.verdict),
        number("replications", "Replications", units.text, _replications),
    ]
    variants = [f"{c.run['number']} ({c.run['variant']})" for c in compared if c.run["variant"]]
    caption = (
        "Train: perplexity after the published number of epochs. Valid.: at the best of them. Later epochs do not "
        "count. Diff.: of validation."
    )
    if variants:
        caption += f" Not run as planned: {first_few(variants, MOST_VARIANTS)}."
    return Table(
        name="published",
        title="Published and reproduced perplexity",
        caption=caption,
        columns=columns,
        records=compared,
        run=lambda compared: compared.run["number"],
    )


def _replications(compared: Comparison) -> str | None:
    spread = compared.replications
    return None if spread is None else "–".join(map(units.plain_value, spread))


def _published(value: Any) -> str:
    """A published number with the digits that were published."""
    return units.plain_value(value) if units.is_number(value) else units.MISSING


def _signed(digits: str) -> Callable[[Any], str]:
    """How to write differences; one that is rounded to 0 has no sign."""
    write = units.decimals(f"+{digits}")
    return lambda value: text if (text := write(value)).strip("+-0.") else text.lstrip("+-")
