"""The report's page and its Markdown twin: what they hold, and the templates filled with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
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
from analysis.study.numbering import RunNumber, VariantNumber
from analysis.study.settings import best_runs
from analysis.study.study import Study
from analysis.study.values import rows_of

TABLE_FORMATS = {"csv": "CSV", "tex": "LaTeX", "md": "Markdown"}

STATES = ("done", "running", "queued", "pending", "stopped", "cancelled", "failed", "absent")
"""States in the order in which they are counted up; ``absent`` is a run of the manifest without a directory."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the templates show, in the order of the page."""

    study: Study
    done: int
    states: list[tuple[RunNumber, str, str]]
    """Number, name and state of every run, the absent ones too, by number."""
    counts: list[tuple[str, int]]
    """How many runs are in each state, further runs of the same entry left out."""
    variants: str
    """How many further runs of the same entry there are; empty if there are none."""
    origin: list[tuple[str, list[str]]]
    """What the header says of where the results come from."""
    best: list[tuple[str, str, RunNumber, str]]
    """Architecture (and text, if there are several), perplexity, number and name of each best run."""
    scope: str
    """What they are the best of: epochs and runs; empty if all runs have finished with the same epochs."""
    runs: list[tuple[RunNumber, str, str, str]]
    """Number, name, architecture and optimizer of each run that figures show, for hiding it."""
    sections: list[Section]
    labels: dict[str, str]
    """``Table 3`` or ``Figure 1`` of each table and figure."""
    data: dict[str, pd.DataFrame]
    """The tables behind the report by the name of their files."""

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def charts(self) -> list[Chart]:
        return [chart for section in self.sections for chart in section.charts]


def page_of(study: Study, sections: Sequence[Section], data: dict[str, pd.DataFrame]) -> Page:
    """Put the page together; sections without a block are left out."""
    runs = study.runs.to_dict("records")
    states = [(run["number"], run["name"], run["state"]) for run in runs]
    states = sorted([*states, *((run.number, run.name or "no run directory", "absent") for run in study.absent)])
    counted = Counter(state for number, _, state in states if isinstance(number, int))
    variants = [state for number, _, state in states if isinstance(number, VariantNumber)]
    compared = study.compared.runs
    best = best_runs(compared)
    kept = [section for section in sections if section.blocks]
    drawn = {line.run for section in kept for chart in section.charts for panel in chart.panels for line in panel.lines}
    return Page(
        study=study,
        done=counted["done"],
        states=states,
        counts=[(state, counted[state]) for state in STATES if counted[state]],
        variants=f"{units.count(len(variants), 'variant')} ({variants.count('done')} done)" if variants else "",
        origin=_origin(study),
        best=[
            (
                units.architecture(run.arch) + (f" on {text}" if len(study.texts) > 1 else ""),
                units.perplexity(run.val_ppl),
                run.number,
                run.name,
            )
            for text in study.texts.index
            for run in rows_of(best[best["text"] == text])
        ],
        scope=scope_of(compared, len(study.absent)).strip(),
        runs=[
            (run["number"], run["name"], units.architecture(run["arch"]), units.optimizer(run["optimizer"]))
            for run in runs
            if run["number"] in drawn
        ],
        sections=kept,
        labels=labels(kept),
        data=data,
    )


def _origin(study: Study) -> list[tuple[str, list[str]]]:
    origin = study.origin
    launched = [re.sub(r"T(\d\d:\d\d):\d\d\+00:00$", r" \1 UTC", time) for time in origin.launched]
    facts = [
        ("Launched", [" to ".join(launched)] if launched else []),
        ("Code", origin.commits),
        ("Devices", origin.devices),
        ("Hosts", origin.hosts),
        ("Versions", [", ".join(origin.versions)] if origin.versions else []),
    ]
    return [(title, values or ["not recorded"]) for title, values in facts]


# -- templates -----------------------------------------------------------------------------------------------------


def render_html(page: Page, inline_figures: dict[str, str], refresh_seconds: int | None = None) -> str:
    """The page as one file. ``inline_figures``: the SVG element of each chart by its name."""
    figures = {name: Markup(svg) for name, svg in inline_figures.items()}  # made by matplotlib, which escapes text
    environment = _environment(html=True)
    environment.filters.update(sortable=_sortable)
    pointers = {chart.name: chart.pointer_data() for chart in page.charts if chart.panels}
    return environment.get_template("index.html.j2").render(
        _variables(page), figures=figures, pointers=_script_json(pointers), refresh_seconds=refresh_seconds
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
    return {
        "page": page,
        "study": page.study,
        "figure_formats": FIGURE_FORMATS,
        "table_formats": TABLE_FORMATS,
        "line_colours": look.line_colours(),
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
