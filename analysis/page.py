"""The report's page and its Markdown twin: what they hold, and the templates filled with it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.blocks.figure import Chart
from analysis.blocks.section import Section, labels
from analysis.blocks.table import Table, escape_markdown, longest_run_of_backticks, markdown_code
from analysis.blocks.texts import scope_of
from analysis.plots import look
from analysis.plots.files import FORMATS as FIGURE_FORMATS
from analysis.study import units
from analysis.study.numbering import VariantNumber
from analysis.study.settings import best_settings
from analysis.study.study import Study
from analysis.study.values import rows_of

TABLE_FORMATS = {"csv": "CSV", "tex": "LaTeX", "md": "Markdown"}

STATES = ("done", "running", "queued", "pending", "stopped", "cancelled", "failed", "absent")
"""States in the order in which they are counted up; ``absent`` is a run of the manifest without a directory."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the report says, its figures not yet drawn."""

    study: Study
    sections: list[Section]
    """In the order of the page, each with a block."""
    data: dict[str, pd.DataFrame]
    """The tables behind the report by the name of their files."""

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def charts(self) -> list[Chart]:
        return [chart for section in self.sections for chart in section.charts]

    @property
    def best(self) -> list[tuple[str, str, str, str]]:
        """Of each best setting architecture (and text, if there are several), perplexity, name, and epoch or seeds."""
        compared, texts = self.study.compared, self.study.texts.index
        epochs = dict(zip(compared.runs["number"], compared.runs["best_epoch"], strict=True))
        return [
            (
                units.architecture(setting.arch) + (f" on {setting.text}" if len(texts) > 1 else ""),
                units.perplexity(setting.val_ppl),
                setting.reference,
                f"epoch {units.whole(epochs[setting.only_run] + 1)}"
                if setting.only_run is not None
                else f"mean of {setting.interval.n} seeds",
            )
            for setting in sorted(best_settings(compared.settings), key=lambda one: list(texts).index(one.text))
        ]


# -- templates -----------------------------------------------------------------------------------------------------


def render_html(page: Page, inline_figures: dict[str, str]) -> str:
    """The page as one file. ``inline_figures``: the SVG element of each chart by its name."""
    figures = {name: Markup(svg) for name, svg in inline_figures.items()}  # made by matplotlib, which escapes text
    environment = _environment(html=True)
    environment.filters.update(sortable=_sortable)
    environment.globals.update(zip=zip)
    pointers = {c.name: [panel.pointer_data() for panel in c.panels] for c in page.charts if c.panels}
    return environment.get_template("index.html.j2").render(
        _variables(page), figures=figures, pointers=_script_json(pointers)
    )


def render_markdown(page: Page) -> str:
    """The same content in Markdown, with links to the files of the figures."""
    environment = _environment(html=False)
    environment.filters.update(md=escape_markdown, code=markdown_code, fence=_fence)
    return environment.get_template("report.md.j2").render(_variables(page))


def _environment(*, html: bool) -> Environment:
    return Environment(
        loader=PackageLoader("analysis", "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _variables(page: Page) -> dict[str, Any]:
    study = page.study
    states = [(run.number, run.name, run.state) for run in rows_of(study.runs)]
    states = sorted([*states, *((run.number, run.name or "no run directory", "absent") for run in study.absent)])
    counted = Counter(state for number, _, state in states if isinstance(number, int))
    variants = [state for number, _, state in states if isinstance(number, VariantNumber)]
    drawn = {line.run for chart in page.charts for panel in chart.panels for line in panel.lines}
    return {
        "page": page,
        "study": study,
        "figure_formats": FIGURE_FORMATS,
        "table_formats": TABLE_FORMATS,
        "line_colours": look.line_colours(),
        "labels": labels(page.sections),
        "states": states,
        "done": counted["done"],
        "counts": [(state, counted[state]) for state in STATES if counted[state]],
        "variants": f"{units.count(len(variants), 'variant')} ({variants.count('done')} done)" if variants else "",
        "scope": scope_of(study.compared.runs, len(study.absent)).strip(),
        "shown_runs": [
            (run.number, run.name, units.architecture(run.arch), units.optimizer(run.optimizer))
            for run in rows_of(study.runs)
            if str(run.number) in drawn
        ],
    }


def _script_json(data: Any) -> Markup:
    """JSON for the inside of a script element, which no text in it can end."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _sortable(value: Any) -> str:
    """What the script sorts a cell by; empty for a missing value, which goes last."""
    if isinstance(value, VariantNumber):
        return f"{value.place}.{value.index:05}"
    return str(value) if isinstance(value, str) or units.is_number(value) else ""


def _fence(lines: list[str]) -> str:
    """Lines as a fenced block that their own backticks cannot end."""
    text = "\n".join(lines)
    fence = "`" * max(3, longest_run_of_backticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"
