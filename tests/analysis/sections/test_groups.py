from __future__ import annotations

from pathlib import Path

import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Subheading
from analysis.blocks.table import Table
from analysis.sections.results import groups_section
from analysis.study.study import load_study
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.analysis.hand_made import add_run, digits


def grouped(study_dir: Path, runs: list[RunDirectory], **groups: list[int]) -> None:
    planned = [{"number": place, "fingerprint": digits(run)} for place, run in enumerate(runs, start=1)]
    planned.append({"number": len(runs) + 1, "name": "absent", "fingerprint": "f" * 64})
    members = [
        {"title": title.replace("_", " "), "runs": [planned[number - 1]["fingerprint"] for number in numbers]}
        for title, numbers in groups.items()
    ]
    write_json(study_dir / "study.json", {"planned": planned, "groups": members})


@pytest.mark.slow
def test_each_group_has_a_table_and_curves_of_its_own(tmp_path: Path) -> None:
    runs = [
        add_run(tmp_path, 0, "a", "rnn", "sgd", [120.0, 110.0]),
        add_run(tmp_path, 1, "b", "rnn", "adam", [100.0, 90.0]),
        add_run(tmp_path, 2, "c", "gru", "adam", [95.0, 80.0]),
        add_run(tmp_path, 3, "d", "gru", "sgd", [], done=False),
    ]
    grouped(tmp_path, runs, Model_comparison=[1, 3], The_rest=[2, 4, 5], Nothing=[5], Waiting=[4])
    blocks = groups_section(load_study(tmp_path)).blocks
    assert [block.text if isinstance(block, Subheading) else getattr(block, "name", "") for block in blocks] == [
        *("Model comparison", "group-1-model-comparison", "curves-1-model-comparison"),
        *("The rest", "group-2-the-rest", "curves-2-the-rest"),
        *("Waiting", "group-4-waiting"),
    ]
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [[(row.run, row.cells[1].bold) for row in table.rows] for table in tables] == [
        [(1, True), (3, True)],
        [(2, True), (4, False)],
        [(4, False)],
    ], "bold: the lowest of the group"
    scopes = [table.caption.partition("Bold: best setting of each architecture.")[2] for table in tables]
    assert scopes == ["", " 1 of 3 runs.", " 0 of 1 run."], "run 5 of the rest has no run directory"
    charts = [block for block in blocks if isinstance(block, Chart)]
    assert [[line.run for line in chart.panels[0].lines] for chart in charts] == [["1", "3"], ["2"]]
    assert "Without a finished epoch: 4 d." in charts[1].caption
    assert "Colour: architecture; line and marker: optimizer" in charts[0].caption
