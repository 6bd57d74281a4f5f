"""The report's page and its Markdown twin: what they hold, and the templates filled with it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import look, units
from analysis.curves import Chart
from analysis.figure_files import FORMATS as FIGURE_FORMATS
from analysis.load import Study
from analysis.run_files import LogTail
from analysis.table_text import Table, escape_markdown, longest_run_of_backticks, markdown_code
from analysis.tables import Coverage, best_runs, coverage

TABLE_FORMATS = {"csv": "CSV", "tex": "LaTeX", "md": "Markdown"}
DATA_FILES = ("data/runs.csv", "data/runs.json", "data/epochs.csv", "data/epochs.json")

STATES = ("done", "running", "queued", "pending", "cancelled", "failed", "absent")
"""States in the order in which they are counted up; ``absent`` is a run of the manifest without a directory."""


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run that has no result, and why."""

    number: int
    name: str
    state: str
    reason: str
    facts: list[tuple[str, str]]
    """What more is known: place of the failure, epochs finished, best perplexity so far."""
    log_tail: LogTail | None


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the templates show, in the order of the page."""

    study: Study
    done: int
    states: list[tuple[int, str, str]]
    """Number, name and state of every run, the absent ones too, by number."""
    counts: list[tuple[str, int]]
    """How many runs are in each state."""
    origin: list[tuple[str, list[str]]]
    """What the header says of where the results come from."""
    best: list[tuple[str, str, int, str]]
    """Architecture, perplexity, number and name of each best run."""
    coverage: Coverage
    results: Table
    charts: list[Chart]
    open_runs: list[OpenRun]
    hyperparameters: Table


def page_of(study: Study, results: Table, hyperparameters: Table, charts: list[Chart]) -> Page:
    """Put the page together."""
    runs = study.runs.to_dict("records")
    states = [(run["number"], run["name"], run["state"]) for run in runs]
    states = sorted([*states, *((number, "no run directory", "absent") for number in study.absent)])
    counted = Counter(state for _, _, state in states)
    best = best_runs(study.runs).to_dict("records")
    return Page(
        study=study,
        done=counted["done"],
        states=states,
        counts=[(state, counted[state]) for state in STATES if counted[state]],
        origin=_origin(study),
        best=[(units.architecture(r["arch"]), units.perplexity(r["val_ppl"]), r["number"], r["name"]) for r in best],
        coverage=coverage(study),
        results=results,
        charts=charts,
        open_runs=_open_runs(study),
        hyperparameters=hyperparameters,
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


def _open_runs(study: Study) -> list[OpenRun]:
    found = [
        OpenRun(
            number=run["number"],
            name=run["name"],
            state=run["state"],
            reason=_reason(run),
            facts=_facts(run),
            log_tail=study.log_tails.get(run["id"]),
        )
        for run in study.runs.to_dict("records")
        if run["state"] != "done"
    ]
    reason = "The manifest has a run at this place, but there is no run directory for it here."
    absent = [
        OpenRun(number=number, name="", state="absent", reason=reason, facts=[], log_tail=None)
        for number in study.absent
    ]
    return sorted([*found, *absent], key=lambda run: run.number)


def _reason(run: dict[Any, Any]) -> str:
    if isinstance(run["reason"], str) and run["reason"]:
        return run["reason"]
    return {"running": "At work while this report was written.", "queued": "Waits for its turn."}.get(
        run["state"], "Not started yet." if run["epochs_done"] == 0 else "No reason recorded."
    )


def _facts(run: dict[Any, Any]) -> list[tuple[str, str]]:
    facts = [("Epochs finished", f"{run['epochs_done']} of {units.plain_value(run['train.epochs'])}")]
    if units.is_number(run["val_ppl"]):
        best = f"{units.perplexity(run['val_ppl'])} (epoch {run['best_epoch'] + 1})"
        facts.append(("Best validation perplexity so far", best))
    if isinstance(run["failure_where"], str):
        facts.append(("Where", run["failure_where"]))
    return facts


# -- templates -----------------------------------------------------------------------------------------------------


def render_html(page: Page, inline_figures: dict[str, str]) -> str:
    """The page as one file. ``inline_figures``: the SVG element of each chart by its name."""
    figures = {name: Markup(svg) for name, svg in inline_figures.items()}  # made by matplotlib, which escapes text
    environment = _environment(html=True)
    environment.filters.update(sortable=_sortable)
    return environment.get_template("index.html.j2").render(_variables(page), figures=figures)


def render_markdown(page: Page) -> str:
    """The same content in Markdown, with the figures as files beside it."""
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
        "data_files": DATA_FILES,
        "line_colours": look.line_colours(),
    }


def _sortable(value: Any) -> str:
    """What the script sorts a cell by; empty for a missing value, which goes last."""
    return str(value) if isinstance(value, str) or units.is_number(value) else ""


def _fence(lines: list[str]) -> str:
    """Lines as a fenced block that their own backticks cannot end."""
    text = "\n".join(lines)
    fence = "`" * max(3, longest_run_of_backticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"
