"""What the blocks of a section say, for tests to look into."""

from collections.abc import Iterable

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Table
from analysis.plots import curve_figures
from analysis.report import Page
from analysis.study.study import StudyFiles


def curve_charts(study: StudyFiles) -> dict[str, Chart]:
    """Return the figures of learning curves by name."""
    return {chart.name: chart for chart in curve_figures.curve_charts(study)}


def too_long(page: Page) -> dict[str, str]:
    """Captions of more than two lines: longer explanations are in docs/explanation/report.md."""
    return {block.name: block.caption for block in (*page.tables, *page.charts) if len(block.caption) > 230}


def said(blocks: Iterable[Block]) -> str:
    """All sentences, one paragraph or point a line."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Prose():
                lines.append(block.text)
            case Points():
                lines += block.items
    return "\n".join(lines)


def only_table(blocks: Iterable[Block]) -> Table:
    """The one table of some blocks."""
    (found,) = [block for block in blocks if isinstance(block, Table)]
    return found


def table(blocks: Iterable[Block], name: str) -> list[dict[str, str]]:
    """The texts of a table's cells by the keys of its columns."""
    (found,) = [block for block in blocks if isinstance(block, Table) and block.name == name]
    return [
        {column.key: cell.text for column, cell in zip(found.columns, row.cells, strict=True)} for row in found.rows
    ]
