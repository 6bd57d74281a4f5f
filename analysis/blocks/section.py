"""What a section of the report is made of. The templates have a part for each kind of block, by its class."""

import itertools
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from markdown_it import MarkdownIt
from markupsafe import Markup

from analysis.blocks.figure import Chart
from analysis.blocks.table import Table

_ANCHOR_LINK = re.compile(r"\[([^\]]*)\]\(#([^)\s]*)\)")
"""A link of Markdown to a place of the page."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples under titles of groups, and the scale of their shades. A sample is what the template shows of it.

    A group may have an empty title.
    """

    legend: list[tuple[int, str]]
    groups: list[tuple[str, list[dict[str, Any]]]]
    more: str = ""
    """Words of a link to the page with all samples. Empty: this is that page."""


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """A text of a manifest, in Markdown."""

    text: str
    title: str
    """Whose text it is."""

    def with_links_to(self, anchors: Container[str]) -> "Note":
        """Return the note in which a link to another place of the page than ``anchors`` is plain text."""
        text = _ANCHOR_LINK.sub(lambda link: link[0] if link[2] in anchors else link[1], self.text)
        return replace(self, text=text)

    @property
    def html(self) -> Markup:
        """The text as HTML, without raw HTML in it."""
        return Markup(MarkdownIt("commonmark", {"html": False}).disable("image").render(self.text))


@dataclass(frozen=True, kw_only=True)
class Points:
    """A list of sentences."""

    items: list[str]


@dataclass(frozen=True, kw_only=True)
class Subheading:
    """The title of a part of a section."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Blocks that the page shows once a reader opens them, and in print."""

    blocks: list["Block"]
    title: str = ""
    """Empty: the titles of the tables and figures in it."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """References to tables and figures, by their names; those that the page does not have are left out."""

    names: tuple[str, ...]


Block: TypeAlias = Prose | Note | Evidence | Points | Subheading | Table | Chart | Samples | Folded


def paragraphs(texts: Iterable[str]) -> list[Block]:
    """Each text as a paragraph."""
    return [Prose(text=text) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a title of its own. ``name`` is its anchor, after ``section-``."""

    name: str
    title: str
    blocks: list["Block"]
    short: str | None = None
    """Title in the page's list of sections, where it differs."""
    folded: bool = False
    """Whether the page shows the title alone, until a reader opens the section."""

    @property
    def tables(self) -> list[Table]:
        return [block for block in flat(self.blocks) if isinstance(block, Table)]

    @property
    def charts(self) -> list[Chart]:
        return [block for block in flat(self.blocks) if isinstance(block, Chart)]

    def with_links_to(self, anchors: Container[str]) -> "Section":
        """Return the section with notes that link to no other places of the page than ``anchors``."""
        blocks = [block.with_links_to(anchors) if isinstance(block, Note) else block for block in self.blocks]
        return replace(self, blocks=blocks)


def flat(blocks: Iterable[Block]) -> list[Block]:
    """The blocks, and in place of each folded one what it holds."""
    return [part for block in blocks for part in (block.blocks if isinstance(block, Folded) else [block])]


MOST_ROWS = 60
"""A longer table is always folded."""


def with_details_folded(section: Section, shown: Container[str]) -> Section:
    """Return the section with its tables and figures folded, but for those with a name in ``shown``."""

    def is_detail(block: Block) -> bool:
        if isinstance(block, Table) and len(block.rows) > MOST_ROWS:
            return True
        return isinstance(block, Table | Chart) and block.name not in shown

    blocks: list[Block] = []
    for folded, group in itertools.groupby(section.blocks, key=is_detail):
        found = list(group)
        blocks += [Folded(blocks=found)] if folded else found
    return replace(section, blocks=blocks)
