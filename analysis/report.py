"""The report of a study: a folder with one page, its Markdown twin, and the tables, figures and data behind them."""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.blocks.figure import Chart
from analysis.blocks.latex import latex_table
from analysis.blocks.notes import note_blocks
from analysis.blocks.section import Prose, Section, with_details_folded
from analysis.blocks.sentences import scope_of
from analysis.blocks.table import Table, escape_markdown, longest_run_of_backticks, markdown_code
from analysis.claims.answer import Answer
from analysis.claims.answers import answers
from analysis.claims.page import answers_section, claims_data
from analysis.plots import look
from analysis.plots.column import column_files
from analysis.plots.curve_figures import curve_charts
from analysis.plots.files import FORMATS, figure_bytes, inline_svg
from analysis.plots.scatter import costs_chart, spread_chart
from analysis.sections.behaviour import behaviour_data, behaviour_section, samples_page
from analysis.sections.comparisons import comparisons_section
from analysis.sections.cost import cost_section
from analysis.sections.effects import effects_section
from analysis.sections.published import published_section
from analysis.sections.results import groups_section, hyperparameter_blocks, results_blocks
from analysis.sections.samples import PAGE
from analysis.sections.search import search_section
from analysis.sections.unfinished import open_runs_table
from analysis.study import units
from analysis.study.examined import examined_runs
from analysis.study.numbering import VariantNumber
from analysis.study.settings import best_settings, repeats_seeds
from analysis.study.study import StudyFiles, load_study
from analysis.study.values import rows_of
from seqlm.errors import UsageError, file_errors
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
    files = report_files(load_study(*study_dirs))
    make_directory(target.parent)
    with file_errors("write report", target), folder_beside(target) as new:
        for name, content in files.items():
            path = new / name
            make_directory(path.parent)
            write_new(path, content)
        replace_folder(new, target)
    return folder / "index.html"


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


def report_files(study: StudyFiles) -> dict[str, bytes]:
    """Every file of the report by its path in the report's folder."""
    page = report_page(study)
    drawn = {f"{chart.name}.{kind}": figure_bytes(chart.figure, kind) for chart in page.charts for kind in FORMATS}
    inline = {chart.name: inline_svg(drawn[f"{chart.name}.svg"], chart.name) for chart in page.charts}
    texts = {"index.html": render_html(page, inline), "report.md": render_markdown(page)}
    if page.samples:
        texts |= {f"{PAGE}.html": render_html(page, {}, PAGE), f"{PAGE}.md": render_markdown(page, PAGE)}
    for name, data in page.data.items():
        texts[f"data/{name}.csv"], texts[f"data/{name}.json"] = _data_texts(data)
    texts["data/claims.json"] = "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in page.claims) + "\n]\n"
    for table in page.tables:
        texts[f"tables/{table.name}.csv"] = table.to_csv()
        texts[f"tables/{table.name}.tex"] = latex_table(table)
        texts[f"tables/{table.name}.md"] = table.to_markdown()
    files = {path: text.encode("utf-8", errors="replace") for path, text in texts.items()}
    files |= {f"figures/{name}": content for name, content in drawn.items()}
    columns = (file for chart in page.charts for file in column_files(chart))  # takes the figures apart
    return files | {f"figures/column/{name}": content for name, content in columns}


def _data_texts(data: pd.DataFrame) -> tuple[str, str]:
    """A table as CSV and as a JSON list of objects, one a line. A missing number is empty or null, as infinity in JSON.

    Both are made from lists of plain values: ``DataFrame.to_csv`` and ``to_json`` take several times as long.
    """
    plain = data.astype(object).where(data.notna(), None)
    columns = [plain[name].to_list() for name in data]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([list(data), *zip(*columns, strict=True)])
    row = f"{{{', '.join(f'{json.dumps(name)}: %s' for name in data)}}}"
    cells = zip(*map(_json_texts, columns), strict=True)
    return table.getvalue(), "[\n" + ",\n".join(row % texts for texts in cells) + "\n]\n"


def _json_texts(values: list[Any]) -> list[str]:
    """Each value as JSON: all at once, which is many times as fast, unless some are lists or objects."""
    encode = json.JSONEncoder(ensure_ascii=False, default=str, separators=("\n", ": ")).encode
    found = encode(values)[1:-1].split("\n")
    if len(found) != len(values):
        found = [json.dumps(v, ensure_ascii=False, default=str) for v in values]
    return ["null" if text in ("Infinity", "-Infinity") else text for text in found]


# -- what it says ------------------------------------------------------------------------------------------------------

SHOWN = ("results", "settings", "comparisons", "search-frontier", "published", "validation")
"""Tables and figures that the page shows at once. A table of settings takes the place of that of runs."""


def report_sections(study: StudyFiles, found: Sequence[Answer]) -> list[Section]:
    """Everything below the report's header: the answers to its questions, what a reader asks next, the rest folded."""
    nothing = Prose(text="No epoch has been finished yet, so there are no curves.")
    unfinished = open_runs_table(study)
    shown = [name for name in SHOWN if name != "results" or not repeats_seeds(study.runs)]
    opened = [
        answers_section(study, found),
        Section(name="results", title="Results", blocks=results_blocks(study)),
        comparisons_section(study),
        search_section(study, next((one for one in found if one.name == "search"), None)),
        published_section(study),
        Section(
            name="curves", title="Learning curves", blocks=[*curve_charts(study), *point_charts(study)] or [nothing]
        ),
    ]
    folded = [
        groups_section(study),
        effects_section(study),
        behaviour_section(study),
        Section(name="open", title="Unfinished runs", blocks=[unfinished] if unfinished.rows else []),
        cost_section(study),
        Section(name="hyperparameters", title="Hyperparameters", blocks=hyperparameter_blocks(study)),
    ]
    return [
        *(with_details_folded(section, shown) for section in opened),
        *(dataclasses.replace(section, folded=True) for section in folded),
    ]


def point_charts(study: StudyFiles) -> list[Chart]:
    """Return the figures of finished runs and settings as points."""
    one = study.compared.on_one_text
    return [*filter(None, [spread_chart(one), costs_chart(one)])]


STATES = ("done", "running", "queued", "pending", "stopped", "cancelled", "failed", "absent")
"""States in the order in which they are counted up; ``absent`` is a run of the manifest without a directory."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the report says, its figures not yet drawn."""

    study: StudyFiles
    sections: list[Section]
    """In the order of the page, each with a block."""
    samples: list[Section]
    """All samples, on a page of their own; empty if there are none."""
    data: dict[str, pd.DataFrame]
    """The tables behind the report by the name of their files."""
    claims: list[dict[str, Any]]
    """All claims of the answers."""

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


def report_page(study: StudyFiles) -> Page:
    """What the report says, its figures not yet drawn."""
    behaviour = {name: table for name, table in behaviour_data(examined_runs(study)).items() if len(table)}
    data = {"runs": study.runs, "epochs": study.epochs, "attempts": study.attempts, **behaviour}
    found, warnings = answers(study)
    study = dataclasses.replace(study, warnings=[*study.warnings, *warnings])
    sections = [_with_notes(section, study) for section in report_sections(study, found) if section.blocks]
    anchors = {*anchors_of(sections), *(["section-warnings"] if study.warnings else [])}
    sections = [section.with_links_to(anchors) for section in sections]
    return Page(study=study, sections=sections, samples=samples_page(study), data=data, claims=claims_data(found))


def anchors_of(sections: Sequence[Section]) -> set[str]:
    """Return the places that a link within the page may name: sections, tables, figures and the list of files."""
    found = {"section-files", *(f"section-{section.name}" for section in sections)}
    for section in sections:
        found |= {table.name for table in section.tables} | {chart.name for chart in section.charts}
    return found


def _with_notes(section: Section, study: StudyFiles) -> Section:
    """Return the section with what the manifests say of it below."""
    return dataclasses.replace(section, blocks=[*section.blocks, *note_blocks(section.name, study)])


# -- templates -----------------------------------------------------------------------------------------------------


def render_html(page: Page, inline_figures: dict[str, str], name: str = "index") -> str:
    """A page as one file. ``inline_figures``: the SVG element of each chart by its name."""
    figures = {name: Markup(svg) for name, svg in inline_figures.items()}  # made by matplotlib, which escapes text
    environment = _environment(html=True)
    environment.filters.update(sortable=_sortable)
    environment.globals.update(zip=zip)
    pointers = {c.name: [panel.pointer_data() for panel in c.panels] for c in page.charts if c.panels}
    return environment.get_template(f"{name}.html.j2").render(
        _variables(page), figures=figures, pointers=_script_json(pointers)
    )


def render_markdown(page: Page, name: str = "report") -> str:
    """The same content in Markdown, with links to the files of the figures."""
    environment = _environment(html=False)
    environment.filters.update(md=escape_markdown, code=markdown_code, fence=_fence)
    return environment.get_template(f"{name}.md.j2").render(_variables(page))


def _environment(*, html: bool) -> Environment:
    found = Environment(
        loader=PackageLoader("analysis", "templates"),
        optimized=False,  # templates are rendered once, and to optimise them takes longer
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["kind"] = lambda block: type(block).__name__.lower()
    return found


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
        "samples_page": PAGE,
        "figure_formats": FORMATS,
        "table_formats": {"csv": "CSV", "tex": "LaTeX", "md": "Markdown"},
        "line_colours": look.line_colours(),
        "labels": {table.name: f"Table {place}" for place, table in enumerate(page.tables, start=1)}
        | {chart.name: f"Figure {place}" for place, chart in enumerate(page.charts, start=1)},
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
    """What the script sorts a cell by that is no text; empty for a missing value, which goes last."""
    if isinstance(value, VariantNumber):
        return f"{value.place}.{value.index:05}"
    return str(value) if units.is_number(value) else ""


def _fence(lines: list[str]) -> str:
    """Lines as a fenced block that their own backticks cannot end."""
    text = "\n".join(lines)
    fence = "`" * max(3, longest_run_of_backticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"
