"""What a section of the report is made of. The templates have a part for each kind of block, by its ``kind``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from analysis.chart import Chart
from analysis.coverage import Coverage
from analysis.open_runs import OpenRuns
from analysis.table_text import Table
from analysis.trained.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"

    text: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"

    items: list[str]


@dataclass(frozen=True, kw_only=True)
class Subheading:
    """The title of a part of a section."""

    kind: ClassVar[str] = "subheading"

    text: str


Block: TypeAlias = Prose | Points | Subheading | Table | Chart | Coverage | OpenRuns | Samples


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a title of its own. ``name`` is its anchor, after ``section-``."""

    name: str
    title: str
    blocks: list[Block]
    short: str | None = None
    """Title in the page's list of sections, where it differs."""

    @property
    def tables(self) -> list[Table]:
        return [block for block in self.blocks if isinstance(block, Table)]

    @property
    def charts(self) -> list[Chart]:
        return [block for block in self.blocks if isinstance(block, Chart)]


def labels(sections: Iterable[Section]) -> dict[str, str]:
    """``Table 3`` or ``Figure 1`` for each table and figure by its name, counted through the report."""
    found: dict[str, str] = {}
    counts = {"Table": 0, "Figure": 0}
    for section in sections:
        for block in section.blocks:
            match block:
                case Table() | Coverage():
                    word = "Table"
                case Chart():
                    word = "Figure"
                case _:
                    continue
            counts[word] += 1
            found[block.name] = f"{word} {counts[word]}"
    return found
