import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from analysis.blocks.figure import Chart
from analysis.blocks.section import Section
from analysis.blocks.table import Table
from analysis.plots import look
from analysis.plots.slices import slices_chart
from analysis.sections.effects import effects_section
from analysis.study.study import StudyFiles, load_study
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import make_run

Loss = Callable[[dict[str, Any]], float]


def make_grid(study_dir: Path, axes: dict[str, Iterable[Any]], loss_nats: Loss) -> Path:
    """A run of one epoch for every combination of the values, with ``loss_nats`` of it as its validation loss."""
    for order, values in enumerate(itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        keys = {"arch": "gru", "optimizer": "sgd", "num_layers": 2, "keep": 0.5, "batch_size": 20}
        keys |= {key.rpartition(".")[2]: value for key, value in chosen.items()}
        add_run(study_dir, order, f"r{order}", val=[math.exp(loss_nats(chosen))], **keys)
    return study_dir


COEFFICIENTS: dict[str, dict[Any, float]] = {
    "model.arch": {"rnn": 0.3, "gru": 0.0, "transformer": 0.125},
    "optim.lr": {0.01: 0.25, 0.1: 0.0, 1.0: 0.5},
    "model.hidden_size": {64: 0.0, 128: -0.25},
}


def additive(values: dict[str, Any]) -> float:
    return 5 + math.fsum(COEFFICIENTS[key][value] for key, value in values.items() if key in COEFFICIENTS)


@pytest.fixture(scope="module")
def factorial(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
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


def test_a_grid_whose_loss_is_a_sum_gives_back_its_coefficients(factorial: StudyFiles) -> None:
    rows = table_of(effects_section(factorial), "effects")
    assert [(r["key"], r["lower"], r["higher"], r["pairs"]) for r in rows] == [
        ("model.arch", "rnn", "gru", 2),  # of each width, at the best of three learning rates
        ("model.arch", "gru", "transformer", 2),
        ("model.arch", "rnn", "transformer", 2),
        ("model.hidden_size", 64, 128, 9),
        ("optim.lr", 0.01, 0.1, 6),
        ("optim.lr", 0.1, 1.0, 6),
        ("optim.lr", 0.01, 1.0, 6),
    ]
    for row in rows:
        parts = COEFFICIENTS[row["key"]]
        expected = parts[row["higher"]] - parts[row["lower"]]
        for column in ("mean_change_nats", "lowest_change_nats", "highest_change_nats"):
            assert row[column] == pytest.approx(expected, abs=1e-12)


def test_the_range_is_that_of_single_pairs(tmp_path: Path) -> None:
    def loss(values: dict[str, Any]) -> float:
        return 5 + (0.5 if values["model.hidden_size"] == 64 else -0.25) * (values["optim.lr"] == 1.0)

    study = load_study(make_grid(tmp_path, {"optim.lr": [0.1, 1.0], "model.hidden_size": [64, 128]}, loss))
    (row,) = [row for row in table_of(effects_section(study), "effects") if row["key"] == "optim.lr"]
    assert (row["lowest_change_nats"], row["highest_change_nats"]) == (pytest.approx(-0.25), pytest.approx(0.5))
    assert row["mean_change_nats"] == pytest.approx(0.125)


def test_a_change_has_a_row_for_each_optimizer_that_shows_it(tmp_path: Path) -> None:
    def loss(values: dict[str, Any]) -> float:
        helps = values["optim.optimizer"] == "adam"
        return 5 + (values["model.hidden_size"] == 128) * (-0.2 if helps else 0.1)

    axes = {"model.hidden_size": [64, 128], "optim.optimizer": ["adam", "sgd"], "optim.lr": [0.1, 1.0]}
    study = load_study(make_grid(tmp_path, axes, loss))
    wide = study.runs.pivot_table(index=["optimizer", "optim.lr"], columns="model.hidden_size", values="val_ppl")
    change = np.log(wide[128] / wide[64]).groupby("optimizer").mean()
    rows = [row for row in table_of(effects_section(study), "effects") if row["key"] == "model.hidden_size"]
    assert {row["name"]: (row["pairs"], row["mean_change_nats"]) for row in rows} == {
        "all": (4, pytest.approx(change.mean())),
        "Adam": (2, pytest.approx(change["adam"])),
        "SGD": (2, pytest.approx(change["sgd"])),
    }


def test_a_key_of_very_many_values_is_in_the_figure_alone(tmp_path: Path) -> None:
    study = load_study(make_grid(tmp_path, {"optim.lr": [0.1 * n for n in range(1, 23)]}, lambda v: 5 - v["optim.lr"]))
    section = effects_section(study)
    assert (section.tables, len(chart_of(section, "slices").figure.axes)) == ([], 1)


def test_runs_that_differ_in_several_keys_show_no_paired_effect(tmp_path: Path) -> None:
    for order in (0, 6):
        make_run(tmp_path, order, epochs=2)
    assert effects_section(load_study(tmp_path)).tables == []


# -- figures -------------------------------------------------------------------------------------------------------


def test_slices_have_a_point_for_each_setting_and_lines_through_those_alike_in_all_else(factorial: StudyFiles) -> None:
    chart = slices_chart(factorial)
    assert chart is not None
    hidden, rate = chart.figure.axes
    assert [(axes.get_xlabel(), axes.get_xscale()) for axes in (hidden, rate)] == [
        ("model.hidden_size", "linear"),
        ("optim.lr", "log"),
    ]
    points = {line.get_gid(): (line.get_xdata()[0], line.get_ydata()[0]) for line in rate.lines}
    assert points == {f"run-{n}": (x, y) for n, x, y in factorial.runs[["number", "optim.lr", "val_ppl"]].to_numpy()}
    assert [label.get_text() for label in hidden.get_xticklabels()] == ["64", "128"]
    segments = [line for drawn in rate.collections for line in drawn.get_segments()]
    assert [len(line) for line in segments] == [3] * 6, "of each architecture and width through three rates"
    colours = {line.get_gid(): to_hex(line.get_color()) for line in rate.lines}
    for arch, own in look.architecture_colours().items():
        runs = factorial.runs[factorial.runs["arch"] == arch]
        best = runs.loc[runs["val_ppl"].astype(float).idxmin()]
        alike = set(runs[runs["model.hidden_size"] == best["model.hidden_size"]]["number"])
        for number in runs["number"]:
            assert colours[f"run-{number}"] == (own if number in alike else look.CROWD[0]), number


def test_a_learning_rate_has_a_panel_for_each_optimizer_and_no_panel_is_without_a_pair(tmp_path: Path) -> None:
    order = 0
    for optimizer, rates in (("adam", (0.001, 0.01)), ("sgd", (1.0, 10.0)), ("sgd_schedule", (5.0,))):
        for rate in rates:
            add_run(tmp_path, order, f"r{order}", "gru", optimizer, [100.0 + order], lr=rate)
            order += 1
    chart = slices_chart(load_study(tmp_path))
    assert chart is not None
    assert [axes.get_xlabel() for axes in chart.figure.axes] == ["optim.lr (Adam)", "optim.lr (SGD)"]


def test_very_many_settings_are_drawn_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("analysis.plots.slices.MOST_SLICES", 1)
    monkeypatch.setattr("analysis.plots.slices.MOST_MARKED", 5)
    axes = {"optim.lr": [0.1, 1.0, 10.0, 100.0], "model.hidden_size": [64, 128]}
    study = load_study(make_grid(tmp_path, axes, lambda v: 5 + v["optim.lr"] / 100 + v["model.hidden_size"] / 64))
    chart = slices_chart(study)
    assert chart is not None
    grey, *strong = chart.figure.axes[0].lines
    assert (len(grey.get_xdata()), grey.get_gid(), len(strong)) == (6, None, 2)
    assert "Left out: optim.lr." in chart.caption


def test_effects_are_a_forest_of_mean_changes_with_the_range_of_pairs_grouped_by_key(factorial: StudyFiles) -> None:
    section = effects_section(factorial)
    chart, rows = chart_of(section, "effects-forest"), table_of(section, "effects")
    (axes,) = chart.figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in drawn] == [row["mean_change_nats"] for row in rows]
    bars = [path for found in axes.collections for path in found.get_segments()]
    assert [(bar[0][0], bar[1][0]) for bar in bars] == [
        (row["lowest_change_nats"], row["highest_change_nats"]) for row in rows
    ]
    heights = [line.get_ydata()[0] for line in drawn]
    assert heights == [bar[0][1] for bar in bars] == sorted(heights, reverse=True), "in the order of the table"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    for key in {row["key"] for row in rows}:
        assert labels.count(key) == 1
    low, high = axes.get_xlim()
    assert low < 0 < high
    assert any(set(line.get_xdata()) == {0.0} for line in axes.lines if len(line.get_xdata()) == 2), "a line at zero"


def test_one_diverged_run_flattens_no_effect(tmp_path: Path) -> None:
    rates = [0.1, 0.2, 0.3, 0.4, 0.5]
    study = load_study(
        make_grid(tmp_path, {"optim.lr": rates}, lambda v: 40.0 if v["optim.lr"] == 0.5 else v["optim.lr"])
    )
    (axes,) = chart_of(effects_section(study), "effects-forest").figure.axes
    low, high = axes.get_xlim()
    points = [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(points) == 5
    assert high < 5
    assert all(low <= point <= high for point in points)
    assert [text.get_text() for text in axes.texts] == ["→", "→"], "0.4 to 0.5, and 0.1 to 0.5"


def test_a_bar_that_is_cut_off_has_a_sign_at_that_end(tmp_path: Path) -> None:
    axes = {"optim.lr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "model.hidden_size": [64, 128]}
    far = (0.7, 128)
    study = load_study(
        make_grid(tmp_path, axes, lambda v: 5 + 9 * ((v["optim.lr"], v["model.hidden_size"]) == far) + v["optim.lr"])
    )
    (drawn,) = chart_of(effects_section(study), "effects-forest").figure.axes
    low, high = drawn.get_xlim()
    ends = [end for found in drawn.collections for bar in found.get_segments() for end in bar[:, 0]]
    assert len([end for end in ends if not low <= end <= high]) == len(drawn.texts) > 0
