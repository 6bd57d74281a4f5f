"""Published perplexities beside the reproduced ones."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from analysis.blocks.section import Block, Prose, Section
from analysis.blocks.table import Cell, Column, Row, Table
from analysis.plots.published import DRAWN_FROM, published_chart
from analysis.study import units
from analysis.study.published import ABOVE, BELOW, NO_REPLICATIONS, WITHIN, Comparison
from analysis.study.settings import in_report_order
from analysis.study.study import Study

IN_TABLE = {WITHIN: "within", BELOW: "below", ABOVE: "above", NO_REPLICATIONS: "no replications"}
"""The verdicts where there is little room."""


def published_section(study: Study) -> Section:
    """How close the runs come to what has been published of them; no block where nothing has been."""
    rows: list[dict[Any, Any]] = in_report_order(study.runs).to_dict("records")
    compared = [
        Comparison(run=row)
        for row in rows
        if units.is_number(row["published_val_ppl"]) or units.is_number(row["published_train_ppl"])
    ]
    blocks: list[Block] = []
    if compared:
        drawn = [c for c in compared if units.is_number(c.nats)]
        blocks = [Prose(text=_summary(compared)), published_table(compared)]
        blocks += [published_chart(drawn)] if len(drawn) >= DRAWN_FROM else []
    return Section(name="published", title="Published against reproduced", short="Published", blocks=blocks)


def _summary(compared: list[Comparison]) -> str:
    count = units.count(len(compared), "run")
    done = [c for c in compared if units.is_number(c.reproduced)]
    if not done:
        return f"{count} of this study {_has(len(compared))} published numbers; none of them is done."
    verdicts = Counter(c.verdict for c in done)
    judged = len(done) - verdicts[NO_REPLICATIONS]
    sentences = [
        f"{count} of this study {_has(len(compared))} published numbers; {len(done)} of them {_is(len(done))} done."
    ]
    if judged:
        sentences.append(
            f"Where there are independent replications ({units.count(judged, 'done run')}), the validation perplexity "
            f"is within their spread in {verdicts[WITHIN]}, below it in {verdicts[BELOW]} and above it in "
            f"{verdicts[ABOVE]}."
        )
    else:
        sentences.append("Of none of the done runs have replications been published.")
    measured = [c for c in done if units.is_number(c.percent)]
    if measured:
        median = statistics.median(abs(c.percent) for c in measured)
        most = max(measured, key=lambda c: abs(c.percent))
        sentences.append(
            f"The median absolute difference in validation perplexity from the published is {median:.1f} % over "
            f"{units.count(len(measured), 'done run')}; the largest is {most.percent:+.1f} % ({most.reference})."
        )
    return " ".join(sentences)


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def published_table(compared: list[Comparison]) -> Table:
    """A row for each run that has published numbers, each seed by itself."""
    columns = [
        Column(key="number", title="No.", numeric=True),
        Column(key="name", title="Run"),
        Column(key="architecture", title="Architecture"),
        Column(key="optimizer", title="Optimizer"),
        Column(key="published_train_ppl", title="Train publ.", numeric=True),
        Column(key="train_ppl", title="Train repr.", numeric=True),
        Column(key="published_val_ppl", title="Valid. publ.", numeric=True),
        Column(key="val_ppl", title="Valid. repr.", numeric=True),
        Column(key="difference", title="Diff.", numeric=True),
        Column(key="difference_percent", title="%", numeric=True),
        Column(key="difference_nats", title="nats", numeric=True),
        Column(key="verdict", title="Verdict"),
        Column(key="replications", title="Replications", numeric=True),
    ]
    caption = (
        "Perplexities at the best validation epoch. Publ.: as published; repr.: reproduced here, of done runs. Diff.: "
        "reproduced less published validation perplexity, also in per cent of the published one and as the difference "
        "of losses in nats per predicted token. Replications: lowest and highest best validation perplexity of "
        "independent replications of the published run; the verdict says where the reproduced one lies to them, or the "
        f"state of a run that is not done. {units.MISSING}: not available."
    )
    return Table(
        name="published",
        title="Published and reproduced perplexity",
        caption=caption,
        columns=columns,
        rows=[_row(c) for c in compared],
    )


def _row(compared: Comparison) -> Row:
    run = compared.run
    spread = compared.replications
    cells = [
        Cell(text=str(run["number"]), value=run["number"]),
        Cell(text=run["name"], value=run["name"]),
        Cell(text=units.architecture(run["arch"]), value=run["arch"]),
        Cell(text=units.optimizer(run["optimizer"]), value=run["optimizer"]),
        _published_cell(run["published_train_ppl"]),
        Cell(text=units.perplexity(compared.train_reproduced), value=compared.train_reproduced),
        _published_cell(run["published_val_ppl"]),
        Cell(text=units.perplexity(compared.reproduced), value=compared.reproduced),
        _signed(compared.difference, ",.2f"),
        _signed(compared.percent, ",.1f"),
        _signed(compared.nats, ".3f"),
        Cell(text=IN_TABLE.get(compared.verdict, compared.verdict), value=compared.verdict),
        Cell(
            text=units.MISSING if spread is None else "–".join(map(units.plain_value, spread)),
            value=None if spread is None else "–".join(map(units.plain_value, spread)),
        ),
    ]
    return Row(cells=cells, run=run["number"])


def _published_cell(value: Any) -> Cell:
    """A published number with the digits that were published."""
    return Cell(text=units.plain_value(value) if units.is_number(value) else units.MISSING, value=value)


def _signed(value: float, digits: str) -> Cell:
    text = f"{value:+{digits}}" if units.is_number(value) else units.MISSING
    return Cell(text=text if text.strip("+-0.") else text.lstrip("+-"), value=value)
