from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from analysis.blocks.effects import effects_of
from analysis.blocks.figure import Chart
from analysis.blocks.section import Prose, Section
from analysis.blocks.table import Table
from analysis.plots.files import figure_bytes
from analysis.plots.heat_map import heat_map, map_cells
from analysis.plots.look import ink_on
from analysis.plots.slices import extremes, slices_chart
from analysis.sections.effects import changes_of, effects_section
from analysis.study.pairs import single_key_pairs
from analysis.study.study import Study, load_study
from tests.analysis.grid import make_grid
from tests.analysis.synthetic import make_run
from tests.training.studies import runs_in

COEFFICIENTS: dict[str, dict[Any, float]] = {
    "model.arch": {"rnn": 0.3, "gru": 0.0, "transformer": 0.125},
    "optim.lr": {0.01: 0.25, 0.1: 0.0, 1.0: 0.5},
    "model.hidden_size": {64: 0.0, 128: -0.25},
}


def additive(values: dict[str, Any]) -> float:
    return 5 + math.fsum(COEFFICIENTS[key][value] for key, value in values.items() if key in COEFFICIENTS)


@pytest.fixture(scope="module")
def factorial(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """18 runs whose loss is a sum of a part of each hyperparameter."""
    folder = tmp_path_factory.mktemp("runs") / "grid"
    return load_study(make_grid(folder, {key: list(values) for key, values in COEFFICIENTS.items()}, additive))


def rows_of(table: Table) -> list[dict[str, Any]]:
    return [{c.key: cell.value for c, cell in zip(table.columns, row.cells, strict=True)} for row in table.rows]


def table_of(section: Section, name: str) -> list[dict[str, Any]]:
    (table,) = [table for table in section.tables if table.name == name]
    return rows_of(table)


def chart_of(section: Section, name: str) -> Chart:
    (chart,) = [chart for chart in section.charts if chart.name == name]
    return chart


def test_a_grid_whose_loss_is_a_sum_gives_back_its_coefficients(factorial: Study) -> None:
    rows = table_of(effects_section(factorial), "effects")
    assert [(r["key"], r["lower"], r["higher"], r["pairs"]) for r in rows] == [
        ("optim.lr", 0.01, 0.1, 6),
        ("optim.lr", 0.1, 1.0, 6),
        ("optim.lr", 0.01, 1.0, 6),
        ("model.hidden_size", 64, 128, 9),
        ("model.arch", "rnn", "gru", 6),
        ("model.arch", "gru", "transformer", 6),
        ("model.arch", "rnn", "transformer", 6),
    ]
    for row in rows:
        parts = COEFFICIENTS[row["key"]]
        expected = parts[row["higher"]] - parts[row["lower"]]
        for column in ("mean_change_nats", "lowest_change_nats", "highest_change_nats"):
            assert row[column] == pytest.approx(expected, abs=1e-12)
        assert row["perplexity_ratio"] == pytest.approx(math.exp(expected))


def test_the_range_is_that_of_single_pairs(tmp_path: Path) -> None:
    def loss(values: dict[str, Any]) -> float:
        return 5 + (0.5 if values["model.hidden_size"] == 64 else -0.25) * (values["optim.lr"] == 1.0)

    study = load_study(make_grid(tmp_path, {"optim.lr": [0.1, 1.0], "model.hidden_size": [64, 128]}, loss))
    (row,) = [row for row in table_of(effects_section(study), "effects") if row["key"] == "optim.lr"]
    assert (row["lowest_change_nats"], row["highest_change_nats"]) == (pytest.approx(-0.25), pytest.approx(0.5))
    assert row["mean_change_nats"] == pytest.approx(0.125)


def test_unpaired_means_are_named_so_and_take_in_what_pairs_leave_out(tmp_path: Path) -> None:
    grid = {"optim.lr": [0.1, 1.0], "model.hidden_size": [64, 128]}
    make_grid(tmp_path, grid, lambda v: 5 + (v["optim.lr"] == 1.0) + 0.5 * (v["model.hidden_size"] == 64))
    for run in runs_in(tmp_path)[:1]:  # lr 0.1 with 64
        run.result_file.unlink()
    section = effects_section(load_study(tmp_path))
    (table,) = [table for table in section.tables if table.name == "marginal-means"]
    assert table.title.startswith("Unpaired")
    assert "not the effect of the key" in table.caption
    rates = [row for row in rows_of(table) if row["key"] == "optim.lr"]
    assert [(r["value"], r["settings"], r["mean_loss_nats"]) for r in rates] == [
        (0.1, 1, pytest.approx(5.0)),
        (1.0, 2, pytest.approx(6.25)),
    ]
    assert rates[1]["above_lowest_nats"] == pytest.approx(1.25), "unlike the paired change of 1"
    paired = {row["key"]: row["mean_change_nats"] for row in table_of(section, "effects")}
    assert paired == {"optim.lr": pytest.approx(1.0), "model.hidden_size": pytest.approx(-0.5)}


def test_a_key_of_many_values_has_one_row_for_all_its_pairs(tmp_path: Path) -> None:
    rates = [0.1 * step for step in range(1, 13)]
    study = load_study(make_grid(tmp_path, {"optim.lr": rates}, lambda v: 5 - v["optim.lr"]))
    (effect,) = effects_of(single_key_pairs(study.runs))
    (change,) = changes_of(effect)
    assert (change["lower"], change["higher"], change["pairs"]) == ("any", "any higher", 66)
    section = effects_section(study)
    assert "any: all pairs of a key of many values" in section.tables[0].caption
    assert [table.name for table in section.tables] == ["effects"], "no unpaired mean over single settings"


def test_several_seeds_count_as_one_setting(tmp_path: Path) -> None:
    axes = {"optim.lr": [0.1, 1.0], "seed": [1, 2]}
    study = load_study(make_grid(tmp_path, axes, lambda v: 5 + (v["optim.lr"] == 1.0) + 0.25 * v["seed"]))
    section = effects_section(study)
    (row,) = table_of(section, "effects")
    assert (row["key"], row["pairs"], row["mean_change_nats"]) == ("optim.lr", 1, pytest.approx(1.0))
    assert [axes.get_xlabel() for axes in chart_of(section, "slices").figure.axes] == ["optim.lr"]
    assert {row["key"] for row in table_of(section, "marginal-means")} == {"optim.lr"}


@pytest.mark.parametrize(("n", "said"), [(0, "No run has finished"), (1, "Only one run has finished")])
def test_too_few_runs_give_a_sentence(tmp_path: Path, n: int, said: str) -> None:
    make_run(tmp_path, 0, epochs=1, done=n > 0)
    (block,) = effects_section(load_study(tmp_path)).blocks
    assert isinstance(block, Prose)
    assert block.text.startswith(said)


def test_runs_that_differ_in_several_keys_show_no_paired_effect(tmp_path: Path) -> None:
    for order in (0, 6):
        make_run(tmp_path, order, epochs=2)
    section = effects_section(load_study(tmp_path))
    (prose,) = [block for block in section.blocks if isinstance(block, Prose)]
    assert prose.text.startswith("No two settings with finished runs differ in one hyperparameter alone")
    assert [table.name for table in section.tables] == ["marginal-means"]
    assert "no points are joined" in chart_of(section, "slices").caption


# -- figures -------------------------------------------------------------------------------------------------------


def test_the_heat_map_prints_the_best_of_each_cell_and_how_many_there_are(study: Study) -> None:
    cells = map_cells(study)
    assert ("SGD", "GRU") not in cells, "the interrupted run counts for nothing"
    chart = heat_map(study)
    texts = [text.get_text() for text in chart.figure.axes[0].texts]
    best = study.runs.set_index("number")["val_ppl"]
    assert texts[:4] == [f"{best[1]:.2f}", "run 1, n = 1", f"{best[4]:.2f}", "run 4, n = 1"]
    assert texts.count("–") == 2
    assert "–: no finished run" in chart.caption


def test_of_several_runs_in_a_cell_the_lowest_is_shown(factorial: Study) -> None:
    cell = map_cells(factorial)["SGD", "GRU"]
    assert (cell.n, cell.val_ppl) == (6, pytest.approx(math.exp(4.75)))
    row = factorial.runs[factorial.runs["number"] == cell.run].iloc[0]
    assert (row["optim.lr"], row["model.hidden_size"]) == (0.1, 128)


def test_numbers_on_the_heat_map_stand_out_from_their_cell(study: Study) -> None:
    axes = heat_map(study).figure.axes[0]
    boxes = {patch.get_xy(): patch for patch in axes.patches if isinstance(patch, Rectangle)}

    def luminance(colour: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722])) + 0.05

    for text in axes.texts:
        if text.get_text() == "–":
            continue
        x, y = text.get_position()
        cell, ink = luminance(boxes[math.floor(x), math.floor(y)].get_facecolor()[:3]), luminance(text.get_color())
        assert max(cell, ink) / min(cell, ink) >= 4.5
    assert ink_on("#ffffff") == "#000000"


def test_slices_have_a_point_for_each_run_and_lines_that_hide_with_their_ends(factorial: Study) -> None:
    chart = slices_chart(factorial, order=["optim.lr"])
    assert chart is not None
    rate, hidden = chart.figure.axes
    assert [rate.get_xlabel(), hidden.get_xlabel()] == ["optim.lr", "model.hidden_size"]
    assert [rate.get_xscale(), hidden.get_xscale()] == ["log", "linear"]
    points = [line for line in rate.lines if line.get_marker() not in ("None", "")]
    assert sorted(line.get_gid() for line in points) == sorted(f"run-{n}" for n in factorial.runs["number"])
    for line, (x, y) in zip(points, factorial.runs[["optim.lr", "val_ppl"]].to_numpy(float), strict=True):
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (x, y)
    halves = [line for line in rate.lines if line.get_marker() in ("None", "")]
    assert len(halves) == 6 * 2 * 2, "six chains of two pieces, each in halves"
    first = halves[0].get_xdata()
    assert first[1] == pytest.approx(math.sqrt(0.01 * 0.1))
    assert [label.get_text() for label in hidden.get_xticklabels()] == ["64", "128"]
    assert len(chart.panels[0].lines) == 18


def test_at_most_twelve_slices_and_no_single_points_for_very_many_runs(
    factorial: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.plots.slices.MOST_SLICES", 1)
    monkeypatch.setattr("analysis.plots.slices.MOST_MARKED_RUNS", 10)
    chart = slices_chart(factorial, order=["optim.lr", "model.hidden_size"])
    assert chart is not None
    (axes,) = chart.figure.axes
    assert not any((line.get_gid() or "").startswith("run-") for line in axes.lines)
    assert len(axes.lines) == 3, "one for each architecture"
    assert chart.panels == []
    assert "Left out, of the smallest effects: model.hidden_size." in chart.caption
    assert "the lowest, the middle and the highest" in chart.caption


def test_of_many_points_over_a_value_three_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert extremes([(1, 9), (1, 5), (1, 6), (1, 7), (1, 8), (2, 3)]) == [(1, 5), (1, 7), (1, 9), (2, 3)]
    monkeypatch.setattr("analysis.plots.slices.MOST_MARKED_RUNS", 5)
    axes = {"optim.lr": [0.1, 1.0], "model.hidden_size": [64, 128, 192, 256]}
    study = load_study(make_grid(tmp_path, axes, lambda v: 5 + v["optim.lr"] + v["model.hidden_size"] / 64))
    chart = slices_chart(study, order=["optim.lr"])
    assert chart is not None
    (points,) = chart.figure.axes[0].lines
    assert len(points.get_xdata()) == 6


@pytest.mark.slow
def test_figures_are_the_same_bytes_each_time(factorial: Study) -> None:
    first, second = (
        [figure_bytes(chart.figure, "svg") for chart in effects_section(factorial).charts] for _ in range(2)
    )
    assert first == second
