"""The report of a study: a folder with one page, its Markdown twin, and the tables, figures and data behind them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.blocks.latex import latex_table
from analysis.blocks.section import Note, Prose, Section, with_details_folded
from analysis.discussion import discussion_section, next_section
from analysis.page import Page, render_html, render_markdown
from analysis.plots.curve_figures import curve_charts
from analysis.plots.files import FORMATS, figure_bytes, inline_svg
from analysis.sections.behaviour import behaviour_data, behaviour_section, samples_appendix
from analysis.sections.cost import cost_section
from analysis.sections.coverage import coverage_table, open_runs_table
from analysis.sections.effects import effects_section
from analysis.sections.published import published_section
from analysis.sections.results import groups_section, hyperparameter_blocks, results_blocks
from analysis.sections.search import search_section
from analysis.study.examined import examined_runs
from analysis.study.study import Study, load_study
from seqlm.errors import FileError, UsageError
from seqlm.files import folder_beside, make_directory, replace_folder, write_new
from seqlm.reading import exists, is_file, is_folder, is_link, listed

SIGNATURE = ("index.html", "report.md", "data/runs.json")
"""Files by which a folder is known to be a report."""


def write_report(*study_dirs: Path, output: Path | None = None) -> Path:
    """Write the report of the runs below each of ``study_dirs`` and return the path of its page.

    ``output`` (default: ``report`` in the study's folder, for several studies beside their folders) is replaced as a
    whole, with all files in it. The new report is built in a temporary folder and renamed into place, so a reader never
    sees half of one; if anything goes wrong, the old one stays. The same files give the same report, byte for byte.

    Raises:
        UsageError: a folder holds no runs or is given twice, or ``output`` is a link or holds files that are no report.
        FileError: the report cannot be written.
    """
    folder, target = folder_of(*study_dirs, output=output)
    with _no_collections():
        files = report_files(load_study(*study_dirs))
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


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Pause Python's search for garbage: what is read of a study is needed to the end, and a tenth of the time went."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


SHOWN = ("results", "settings", "search-frontier", "published", "validation")
"""Tables and figures that the page shows at once."""


def report_sections(study: Study) -> list[Section]:
    """Everything below the report's header: what a reader asks first, then the rest, folded."""
    nothing = Prose(text="No epoch has been finished yet, so there are no curves.")
    unfinished = open_runs_table(study)
    opened = [
        Section(name="results", title="Results", blocks=results_blocks(study)),
        search_section(study),
        published_section(study),
        Section(name="curves", title="Learning curves", blocks=[*curve_charts(study)] or [nothing]),
        cost_section(study),
        next_section(study),
        discussion_section(study),
    ]
    folded = [
        groups_section(study),
        effects_section(study),
        behaviour_section(study),
        Section(name="open", title="Unfinished runs", blocks=[unfinished] if unfinished.rows else []),
        Section(name="coverage", title="Coverage", blocks=[coverage_table(study)]),
        Section(name="hyperparameters", title="Hyperparameters", blocks=hyperparameter_blocks(study)),
        samples_appendix(study),
    ]
    return [
        *(with_details_folded(section, SHOWN) for section in opened),
        *(dataclasses.replace(section, folded=True) for section in folded),
    ]


def report_files(study: Study) -> dict[str, bytes]:
    """Every file of the report by its path in the report's folder."""
    page = report_page(study)
    drawn = {f"{chart.name}.{kind}": figure_bytes(chart.figure, kind) for chart in page.charts for kind in FORMATS}
    inline = {chart.name: inline_svg(drawn[f"{chart.name}.svg"], chart.name) for chart in page.charts}
    texts = {"index.html": render_html(page, inline), "report.md": render_markdown(page)}
    for name, data in page.data.items():
        texts[f"data/{name}.csv"] = data.to_csv(index=False, lineterminator="\n")
        texts[f"data/{name}.json"] = _json(data)
    for table in page.tables:
        texts[f"tables/{table.name}.csv"] = table.to_csv()
        texts[f"tables/{table.name}.tex"] = latex_table(table)
        texts[f"tables/{table.name}.md"] = table.to_markdown()
    files = {path: text.encode("utf-8", errors="replace") for path, text in texts.items()}
    return files | {f"figures/{name}": content for name, content in drawn.items()}


def report_page(study: Study) -> Page:
    """What the report says, its figures not yet drawn."""
    data = {
        "runs": study.runs,
        "epochs": study.epochs,
        "attempts": study.attempts,
        **behaviour_data(examined_runs(study)),
    }
    sections = [_with_notes(section, study.notes) for section in report_sections(study) if section.blocks]
    return Page(study=study, sections=sections, data=data)


def _with_notes(section: Section, notes: Iterable[tuple[str, str]]) -> Section:
    """Return the section with the author's notes below it."""
    own = [Note(text=text) for part, text in notes if part == section.name]
    return dataclasses.replace(section, blocks=[*section.blocks, *own])


def _json(data: pd.DataFrame) -> str:
    """A list of objects, one a line; null for every missing or infinite number."""
    plain = data.astype(object).where(data.notna() & ~data.isin([math.inf, -math.inf]), None)
    row = f"{{{', '.join(f'{json.dumps(name)}: %s' for name in data)}}}"
    cells = zip(*(_json_texts(plain[name].to_list()) for name in data), strict=True)
    return "[\n" + ",\n".join(row % texts for texts in cells) + "\n]\n"


def _json_texts(values: list[Any]) -> list[str]:
    """Each value as JSON: all at once, which is many times as fast, unless some are lists or objects."""
    encode = json.JSONEncoder(ensure_ascii=False, default=str, separators=("\n", ": ")).encode
    found = encode(values)[1:-1].split("\n")
    return found if len(found) == len(values) else [json.dumps(v, ensure_ascii=False, default=str) for v in values]


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
