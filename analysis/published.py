"""Published perplexities beside the reproduced ones."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis import look, units
from analysis.chart import Chart, run_mark
from analysis.load import Study
from analysis.section import Block, Prose, Section
from analysis.table_text import Cell, Column, Row, Table
from analysis.tables import in_report_order

WITHIN, BELOW, ABOVE, NO_REPLICATIONS = (
    "within the replications' spread",
    "below it",
    "above it",
    "no replications published",
)

IN_TABLE = {WITHIN: "within", BELOW: "below", ABOVE: "above", NO_REPLICATIONS: "no replications"}
"""The verdicts where there is little room."""

DRAWN_FROM, MOST_DRAWN = 3, 60
"""The chart needs so many finished runs, and shows at most so many: those that differ most."""

LINEAR_UP_TO = 50.0
"""Differences beyond so many per cent are drawn as ratios on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run with what has been published of it."""

    run: dict[str, Any]
    """Its row of the runs table."""

    @property
    def published(self) -> float:
        return float(self.run["published_val_ppl"])

    @property
    def reproduced(self) -> float:
        """Validation perplexity; NaN while the run is not done."""
        return float(self.run["val_ppl"]) if self.run["state"] == "done" else math.nan

    @property
    def train_reproduced(self) -> float:
        return float(self.run["train_ppl"]) if self.run["state"] == "done" else math.nan

    @property
    def difference(self) -> float:
        """Of validation perplexities: reproduced less published."""
        return self.reproduced - self.published

    @property
    def percent(self) -> float:
        return 100 * (self._ratio - 1)

    @property
    def nats(self) -> float:
        """Of validation losses per predicted token."""
        return math.log(self._ratio)

    @property
    def _ratio(self) -> float:
        """Reproduced by published; NaN where it makes no sense."""
        return self.reproduced / self.published if self.published > 0 and self.reproduced > 0 else math.nan

    @property
    def replications(self) -> tuple[float, float] | None:
        low, high = self.run["replications_low"], self.run["replications_high"]
        return (min(low, high), max(low, high)) if units.is_number(low) and units.is_number(high) else None

    @property
    def verdict(self) -> str:
        if not units.is_number(self.reproduced):
            kind = self.run["failure_kind"]
            return f"failed: {kind}" if self.run["state"] == "failed" and isinstance(kind, str) else self.run["state"]
        if self.replications is None:
            return NO_REPLICATIONS
        low, high = self.replications
        return BELOW if self.reproduced < low else ABOVE if self.reproduced > high else WITHIN

    @property
    def reference(self) -> str:
        return f"{self.run['number']} {self.run['name']}"


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


# -- chart ---------------------------------------------------------------------------------------------------------


def published_chart(compared: list[Comparison]) -> Chart:
    """A line for each done run: where the published value would be, where ours is, and the replications' range."""
    drawn = set(sorted(range(len(compared)), key=lambda i: -abs(compared[i].nats))[:MOST_DRAWN])
    shown = [c for place, c in enumerate(compared) if place in drawn]
    with look.applied():
        figure, logarithmic = _draw(shown)
    scale = "times the published one, on a logarithmic axis" if logarithmic else "in per cent of the published one"
    caption = (
        f"Reproduced validation perplexity of each done run {'as ' if logarithmic else 'less the published one, '}"
        f"{scale}; on the vertical line both are equal. Colour: architecture; marker: optimizer. Grey bar: range of "
        "the independent replications, where published. Left of the line the reproduced perplexity is lower."
    )
    if len(shown) < len(compared):
        caption += f" The {len(shown)} of {len(compared)} runs that differ most."
    return Chart(
        name="reproduced", title="Reproduced against published validation perplexity", caption=caption, figure=figure
    )


def _draw(shown: list[Comparison]) -> tuple[Figure, bool]:
    spans = [value for c in shown for value in (c.reproduced, *(c.replications or ())) if value > 0]
    published = [c.published for c in shown for _ in (c.reproduced, *(c.replications or ()))]
    logarithmic = any(abs(value / base - 1) * 100 > LINEAR_UP_TO for value, base in zip(spans, published, strict=True))
    height = 0.24 * len(shown) + 1.25
    figure = Figure(figsize=(7.6, height))
    axes = figure.add_axes((0.3, 0.95 / height, 0.66, 1 - 1.1 / height))

    def place(value: float, base: float) -> float:
        return value / base if logarithmic else 100 * (value / base - 1)

    axes.axvline(1.0 if logarithmic else 0.0, color=look.INK, linewidth=1.0, zorder=1.5)
    for row, c in enumerate(shown):
        gid = run_mark(c.run["number"])
        if c.replications is not None:
            ends = [place(value, c.published) for value in c.replications]
            axes.plot(
                ends, [row, row], color=look.MUTED, alpha=0.45, linewidth=7, solid_capstyle="butt", gid=gid, zorder=2
            )
        ours = place(c.reproduced, c.published)
        colour = look.ARCHITECTURE_COLOURS.get(c.run["arch"], look.UNKNOWN_COLOUR)
        marker = look.OPTIMIZER_STYLES.get(c.run["optimizer"], ("-", "."))[1]
        axes.plot(
            [ours], [row], color=colour, marker=marker, markersize=6.5, markeredgecolor=look.PAPER, gid=gid, zorder=3
        )
    names = [c.reference if len(c.reference) <= 32 else c.reference[:31] + "…" for c in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", length=0, labelcolor=look.INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.grid(axis="y", visible=False)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlabel("Reproduced / published validation perplexity")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("Difference from the published validation perplexity (%)")
    _add_legend(figure, shown)
    return figure, logarithmic


def _add_legend(figure: Figure, shown: list[Comparison]) -> None:
    archs = {c.run["arch"] for c in shown}
    optimizers = {c.run["optimizer"] for c in shown}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=colour, markersize=6, label=units.architecture(arch))
        for arch, colour in look.ARCHITECTURE_COLOURS.items()
        if arch in archs
    ]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color=look.MUTED, markersize=6, label=units.optimizer(key))
        for key, (_, marker) in look.OPTIMIZER_STYLES.items()
        if key in optimizers
    ]
    if any(c.replications for c in shown):
        handles.append(Line2D([], [], color=look.MUTED, alpha=0.45, linewidth=7, label="replications"))
    figure.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(0.02, 0.0), fontsize=8)
