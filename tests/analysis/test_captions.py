"""Captions are two lines at most: about 200 characters. Longer explanations are in docs/explanation/report.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.table import Table
from analysis.report import Page, report_page
from analysis.study.study import Study, load_study
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.grid import make_grid
from tests.analysis.synthetic import make_run, make_study
from tests.training.studies import runs_in

pytestmark = pytest.mark.usefixtures("blank_figures")
TWO_LINES = 210


def captions(page: Page) -> dict[str, str]:
    blocks: list[Table | Chart] = [*page.tables, *page.charts]
    return {block.name: block.caption for block in blocks}


def too_long(page: Page) -> dict[str, str]:
    return {name: caption for name, caption in captions(page).items() if len(caption) > TWO_LINES}


@pytest.fixture(scope="module")
def nine_runs(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Runs that explode, diverge and wait, with the behaviour of six, of which four have a gradient of exactly zero."""
    folder = make_study(tmp_path_factory.mktemp("captions") / "nine")
    for run in runs_in(folder)[:6]:
        add_behaviour(run)
        add_samples(run, [raw_sample(index, ["a", "<eos>"]) for index in range(4)])
    return load_study(folder)


@pytest.mark.slow
def test_captions_of_nine_runs_are_two_lines_at_most(nine_runs: Study) -> None:
    page = report_page(nine_runs)
    names = {"cost", "validation", "gradient-norms", "behaviour"}
    assert names <= set(captions(page))
    assert too_long(page) == {}


@pytest.mark.slow
def test_captions_of_seeds_and_of_a_grid_are_two_lines_at_most(tmp_path: Path) -> None:
    for order in (0, 3, 5):
        for seed in (1, 2, 3):
            make_run(tmp_path / "seeds", order, epochs=2, seed=seed, provenance={"order": 3 * order + seed})
    assert too_long(report_page(load_study(tmp_path / "seeds"))) == {}
    axes = {"model.arch": ["rnn", "gru"], "optim.lr": [0.1 * step for step in range(1, 13)], "seed": [1, 2]}
    make_grid(tmp_path / "grid", axes, lambda values: 5 + values["optim.lr"])
    assert too_long(report_page(load_study(tmp_path / "grid"))) == {}
