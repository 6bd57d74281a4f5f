from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from analysis.blocks.section import Subheading
from analysis.discussion import discussion_section
from analysis.report import report_files
from analysis.study.study import Study, load_study
from jobs.manifests.claims import Part
from seqlm.files import write_json
from tests.analysis.hand_made import add_run

QUESTIONS = [
    "Expected against observed",
    "The optimizers compared",
    "The pick for time and the pick for generalisation",
    "Reliability of the architectures",
]


def titles(study: Study) -> list[str]:
    return [block.text for block in discussion_section(study).blocks if isinstance(block, Subheading)]


def test_the_questions_are_answered_on_the_page_and_in_markdown(report: Path) -> None:
    page, markdown = (report / "index.html").read_text("utf-8"), (report / "report.md").read_text("utf-8")
    for question in QUESTIONS:
        assert f">{question}</h3>" in page
        assert f"### {question}" in markdown
    assert (report / "tables" / "discussion-3-picks.csv").is_file()
    assert (report / "figures" / "time-and-perplexity.svg").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_damaged_runs_and_strange_names_do_no_harm(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "<b>$x_1$ & | `\\", "rnn", "sgd", [100.0, 90.0])
    add_run(tmp_path, 1, "other", "gru", "adam", [100.0, 95.0])
    for name in ("broken", "sadly"):
        add_run(tmp_path, 2, name, "gru", "sgd", [100.0], hidden_size=len(name)).config_file.write_text("{", "utf-8")
    add_run(tmp_path, 3, "no-times", "gru", "sgd", [91.0, 92.0], seconds=float("nan"))
    study = load_study(tmp_path)
    assert titles(study) == QUESTIONS
    page = report_files(study)["index.html"].decode("utf-8")
    assert "<b>$x" not in page
    assert "&lt;b&gt;$x_1$ &amp; | `" in page


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_the_notes_of_the_author_stand_in_their_parts_without_html_of_their_own(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0])
    note = "Momentum *was not tried*.\n\n- <script>alert(1)</script> [x](javascript:alert(1))"
    parts = get_args(Part)
    write_json(tmp_path / "study.json", {"notes": [{"part": part, "text": f"On {part}. {note}"} for part in parts]})
    files = report_files(load_study(tmp_path))
    page, markdown = files["index.html"].decode(), files["report.md"].decode()
    shown = {part for part in parts if f"On {part}. Momentum <em>was not tried</em>." in page}
    assert shown == {part for part in parts if f"On {part}. Momentum *was not tried*." in markdown}
    assert shown == set(parts) - {"search", "groups", "published"}, "this study has nothing of these"
    assert page.index("On optimizers.") < page.index("The pick for time") < page.index("On picks.")
    assert "<script>alert" not in page + markdown
    assert 'href="javascript' not in page
