"""Rules of the report: ``tests/golden/sections.md`` has a small study for each, and what the report says of it.

``python -m tests.analysis.test_golden`` writes the report's parts again; read their diff. A study is ``runs`` (``of``:
architecture and optimizer; the rest is given to ``add_run``) and the keys of ``study.json``, where "#2" is the second
run. Other tests compute the numbers.
"""

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block, Points, Prose, Subheading, flat
from analysis.blocks.table import Table
from analysis.claims.answers import answers
from analysis.sections.effects import effects_section
from analysis.sections.published import published_section
from analysis.sections.results import groups_section, results_blocks
from analysis.sections.search import search_section
from analysis.sections.unfinished import open_runs_table
from analysis.study.study import StudyFiles, load_study
from tests.analysis.hand_made import add_run, digits

GOLDEN = Path(__file__).parents[1] / "golden" / "sections.md"
CASE = re.compile(r"^# (.*)\n\n```toml\n((?:.*\n)*?)```\n((?:(?!# ).*\n)*)", re.MULTILINE)


def cases() -> dict[str, tuple[str, str]]:
    """The study and the golden text of each rule."""
    return {name: (study, text.strip()) for name, study, text in CASE.findall(GOLDEN.read_text("utf-8"))}


def parts_of(study_toml: str, folder: Path) -> str:
    """Make the study, and return the parts of its report that the rule is about."""
    record = tomllib.loads(study_toml)
    names = record.pop("parts").split()
    made = []
    for number, keys in enumerate(record.pop("runs")):
        arch, optimizer = keys.pop("of").split()
        made.append(add_run(folder, number, "abcdefghijklmnop"[number], arch, optimizer, **keys))
    text = re.sub(r"#(\d+)", lambda found: digits(made[int(found[1]) - 1]), json.dumps(record))
    (folder / "study.json").write_text(text, "utf-8")
    study = load_study(folder)
    return "\n\n".join(f"## {name}\n\n{written(part_of(study, name))}".strip() for name in names)


def part_of(study: StudyFiles, name: str) -> Iterable[Block]:
    """The points of an answer, and the blocks of a section."""
    found = {answer.name: answer for answer in answers(study)[0]}
    blocks: list[Block] = [Points(items=[*found[name].points, *found[name].details])] if name in found else []
    match name:
        case "results":
            blocks += results_blocks(study)
        case "open":
            blocks.append(open_runs_table(study))
        case "search":
            blocks += search_section(study, found.get(name)).blocks
        case "published":
            blocks += published_section(study).blocks
        case "groups":
            blocks += groups_section(study).blocks
        case "effects":
            blocks += effects_section(study).blocks
    return blocks


def written(blocks: Iterable[Block]) -> str:
    lines = list[str]()
    for block in flat(blocks):
        match block:
            case Prose():
                lines.append(block.text)
            case Points():
                lines += [f"- {item}" for item in block.items]
            case Subheading():
                lines.append(f"### {block.text}")
            case Chart():
                drawn = sorted({str(line.run) for panel in block.panels for line in panel.lines})
                lines.append(f"Figure {block.name} of {', '.join(drawn)}. {block.caption}")
            case Table():
                lines.append(block.to_markdown().strip())
    return "\n\n".join(lines)


def write_again(folder: Path) -> None:
    parts = []
    for number, (name, (study, _)) in enumerate(cases().items()):
        text = parts_of(study, folder / str(number) / "optimizers")
        parts.append(f"# {name}\n\n```toml\n{study}```\n\n{text}\n")
    GOLDEN.write_text("\n".join(parts), "utf-8")


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", cases())
def test_the_report_says_of_a_small_study_what_the_rule_demands(tmp_path: Path, name: str) -> None:
    study, golden = cases()[name]
    assert parts_of(study, tmp_path / "optimizers") == golden
