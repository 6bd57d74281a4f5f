"""The report of a study: a folder with one page, its Markdown twin, and the tables, figures and data behind them."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.blocks.latex import latex_table
from analysis.blocks.section import Note, Prose, Section
from analysis.discussion import discussion_section
from analysis.page import Page, render_html, render_markdown
from analysis.plots.curve_figures import curve_blocks
from analysis.plots.files import FORMATS, drawing, inline_svg
from analysis.sections.behaviour import behaviour_data, behaviour_section, samples_appendix
from analysis.sections.cost import cost_section
from analysis.sections.coverage import coverage, open_runs
from analysis.sections.effects import effects_section
from analysis.sections.published import published_section
from analysis.sections.results import groups_section, hyperparameter_blocks, results_blocks
from analysis.sections.search import search_section
from analysis.study.behaved import behaved_runs
from analysis.study.study import Study, load_study
from seqlm.errors import FileError, UsageError
from seqlm.files import folder_beside, make_directory, replace_folder, write_new
from seqlm.reading import exists, is_file, is_folder, is_link, listed

LARGE = 50
"""Epochs of all runs together from which on several processes draw the figures."""

SIGNATURE = ("index.html", "report.md", "data/runs.json")
"""Files by which a folder is known to be a report."""


atexit.register(gc.freeze)  # at its end the interpreter would collect several times, of what the system frees anyway


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Save an eighth of a large report's time, in which the collector finds next to nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_garbage_collection()
def write_report(
    *study_dirs: Path, output: Path | None = None, refresh_seconds: int | None = None, processes: int = 1
) -> Path:
    """Write the report of the runs below each of ``study_dirs`` and return the path of its page.

    ``output`` (default: ``report`` in the study's folder, for several studies beside their folders) is replaced as a
    whole, with all files in it. The new report is built in a temporary folder and renamed into place, so a reader never
    sees half of one; if anything goes wrong, the old one stays. The same files give the same report, byte for byte.
    With ``refresh_seconds`` an open page loads itself again so often. ``processes`` draw the figures of a study of
    ``LARGE`` or more epochs.

    Raises:
        UsageError: a folder holds no runs or is given twice, or ``output`` is a link or holds files that are no report.
        FileError: the report cannot be written.
    """
    folder, target = folder_of(*study_dirs, output=output)
    study = load_study(*study_dirs)
    files = report_files(study, refresh_seconds, processes)
    make_directory(target.parent)
    try:
        with folder_beside(target) as new:
            for name, content in files.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_new(path, content)
            replace_folder(new, target)
    except OSError as error:
        raise FileError.from_os_error("write report", target, error) from None
    return folder / "index.html"


def report_sections(study: Study) -> list[Section]:
    """Everything below the report's header, in its order."""
    nothing = Prose(text="No epoch has been finished yet, so there are no curves.")
    unfinished = open_runs(study)
    return [
        Section(name="coverage", title="Coverage", blocks=[coverage(study)]),
        Section(name="results", title="Results", blocks=results_blocks(study)),
        search_section(study),
        groups_section(study),
        published_section(study),
        Section(name="curves", title="Learning curves", blocks=curve_blocks(study) or [nothing]),
        discussion_section(study),
        cost_section(study),
        effects_section(study),
        behaviour_section(study),
        Section(name="open", title="Unfinished runs", blocks=[unfinished] if unfinished.runs else []),
        Section(name="hyperparameters", title="Hyperparameters", blocks=hyperparameter_blocks(study)),
        samples_appendix(study),
    ]


def report_files(study: Study, refresh_seconds: int | None = None, processes: int = 1) -> dict[str, bytes]:
    """Every file of the report by its path in the report's folder.

    While several processes draw the figures, this one writes the tables and data, and the page once it has the SVGs.
    """
    page = report_page(study)
    figures = {chart.name: chart.figure for chart in page.charts}
    wanted = [(name, kind) for kind in FORMATS for name in figures]
    paths = [f"figures/{name}.{kind}" for name, kind in wanted]
    with drawing(figures, wanted, processes if len(study.epochs) >= LARGE else 1) as contents:
        texts = {"report.md": render_markdown(page)}
        for name, data in page.data.items():
            texts[f"data/{name}.csv"] = data.to_csv(index=False, lineterminator="\n")
            texts[f"data/{name}.json"] = _json(data)
        for table in page.tables:
            texts[f"tables/{table.name}.csv"] = table.csv_file()
            texts[f"tables/{table.name}.tex"] = latex_table(table)
            texts[f"tables/{table.name}.md"] = table.to_markdown()
        drawn = dict(zip(paths, itertools.islice(contents, len(figures)), strict=False))
        inline = {name: inline_svg(drawn[f"figures/{name}.svg"], name) for name in figures}
        texts["index.html"] = render_html(page, inline, refresh_seconds)
        drawn |= zip(paths[len(figures) :], contents, strict=True)
    return {path: text.encode("utf-8", errors="replace") for path, text in texts.items()} | drawn


def report_page(study: Study) -> Page:
    """What the report says, its figures not yet drawn."""
    data = {
        "runs": study.runs,
        "epochs": study.epochs,
        "attempts": study.attempts,
        **behaviour_data(behaved_runs(study)),
    }
    sections = [_with_notes(section, study.notes) for section in report_sections(study) if section.blocks]
    return Page(study=study, sections=sections, data=data)


def _with_notes(section: Section, notes: Iterable[tuple[str, str]]) -> Section:
    """Return the section with the author's notes below it."""
    own = [Note(text=text) for part, text in notes if part == section.name]
    return dataclasses.replace(section, blocks=[*section.blocks, *own])


def _json(data: pd.DataFrame) -> str:
    """A list of objects, one a line; null for every missing or infinite number."""
    keys = [f"{json.dumps(str(key), ensure_ascii=False)}: " for key in data.columns]
    columns = [map(key.__add__, _json_values(data.iloc[:, place])) for place, key in enumerate(keys)]
    lines = [f"{{{', '.join(row)}}}" for row in zip(*columns, strict=True)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _json_values(column: pd.Series[Any]) -> list[str]:
    """Return each value as JSON; quicker than ``json`` for the tens of thousands of numbers of a large study."""
    if pd.api.types.is_float_dtype(column.dtype):
        return [repr(value) if math.isfinite(value) else "null" for value in column.to_list()]
    if pd.api.types.is_integer_dtype(column.dtype):
        return ["null" if value is pd.NA else str(value) for value in column.to_list()]
    written: dict[str, str] = {}
    values = []
    for value in column.to_list():
        if isinstance(value, str):
            values.append(written.get(value) or written.setdefault(value, json.dumps(value, ensure_ascii=False)))
        else:
            values.append(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, default=str))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list | bool):
        return json.loads(json.dumps(value), parse_constant=lambda _: None)
    return None if value is None or pd.isna(value) or value in (float("inf"), float("-inf")) else value


# -- files ---------------------------------------------------------------------------------------------------------


def folder_of(*study_dirs: Path, output: Path | None = None) -> tuple[Path, Path]:
    """Return the folder of a report as given or by default, and as it is resolved.

    Raises:
        UsageError: it is a link, or a folder of other things: what is replaced is gone.
    """
    folder = output or (study_dirs[0] if len(study_dirs) == 1 else study_dirs[0].parent) / "report"
    target = folder.resolve() if folder.name in ("", "..") else folder.parent.resolve() / folder.name
    if is_link(target):
        raise UsageError(f"{target} is a link, which is not replaced; remove it or choose another folder (--output)")
    if not exists(target) or (is_folder(target) and not listed(target)):
        return folder, target
    if not is_folder(target) or not all(is_file(target / name) for name in SIGNATURE):
        raise UsageError(f"{target} exists and is no report, so it is not replaced; choose another folder")
    return folder, target
