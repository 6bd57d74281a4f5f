"""The report shows the messages of a failed run as text; nothing in them is executed."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.blocks.table import Column, Table
from analysis.report import write_report
from tests.facts import fail
from tests.seqlm.training.studies import make_config, make_run

SCRIPT = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(" ".join([tag, *(name for name, _ in attrs if name.startswith("on"))]))


def test_a_failure_message_is_text_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small" / "rnn-00000000", make_config())
    fail(run, {"kind": "code", "message": f"ValueError: {SCRIPT}", "attempt": 1})
    page = write_report(tmp_path / "small").read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in page
    seen = Seen()
    seen.feed(page)
    assert [tag for tag in seen.tags if tag.startswith("img") and "onerror" in tag] == []
    scripts = re.findall(r"<script[^>]*>(.{0,20})", page, re.DOTALL)
    assert not [script for script in scripts if "alert" in script]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_in_the_csv_of_a_table_starts_no_formula(text: str) -> None:
    table = Table(
        name="t",
        title="",
        caption="",
        columns=[Column("name", ""), Column("loss", "")],
        records=[{"name": text, "loss": -0.5}],
    )
    assert list(csv.reader(io.StringIO(table.to_csv(), newline="")))[1:] == [[f"'{text}".replace("\r", " "), "-0.5"]]
