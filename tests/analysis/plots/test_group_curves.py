"""Figures of groups of runs: by optimizer and architecture, with seeds as bands, and of very many runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from analysis.blocks.figure import Chart
from analysis.plots.axes import within
from analysis.plots.curve_figures import MOST_PANELS
from analysis.plots.curves import LABEL_LENGTH, curves_of
from analysis.plots.lines import MOST_LINES, STANDING_OUT, choose
from analysis.study.study import Study, load_study
from benchmarks.report_study import make_study as make_large_study
from tests.analysis.contents import curve_charts
from tests.analysis.synthetic import fail, make_run


@pytest.fixture(scope="module")
def charts(study: Study) -> dict[str, Chart]:
    return curve_charts(study)


def numbers(chart: Chart) -> list[set[int | None]]:
    """The runs that each pair of axes shows values of."""
    return [{line.run for line in panel.lines} for panel in chart.panels]


@pytest.mark.slow
def test_each_optimizer_and_each_architecture_has_all_its_runs_over_epochs_and_over_time(
    charts: dict[str, Chart],
) -> None:
    expected = {
        "optimizer-adam": {1, 4, 7},
        "optimizer-sgd": {2, 5, 8},
        "optimizer-sgd-schedule": {3, 6, 9},
        "architecture-rnn": {1, 2, 3},
        "architecture-gru": {4, 5, 6},
        "architecture-transformer": {7, 8, 9},
    }
    for name, runs in expected.items():
        assert numbers(charts[name]) == [runs, runs]
        assert [panel.x_name for panel in charts[name].panels] == ["epoch", "hours"]
        labels = [axes.get_xlabel() for axes in charts[name].figure.axes]
        assert labels == ["Epoch (1 = after the first pass)", "Wall-clock time (hours)"]


@pytest.mark.slow
def test_a_run_that_leaves_the_axis_in_a_group_is_named_and_flattens_no_other(charts: dict[str, Chart]) -> None:
    chart = charts["optimizer-sgd"]
    assert chart.figure.axes[0].get_ylim()[1] < 1000
    assert "2 rnn-sgd" in chart.caption
    assert any("▲" in text.get_text() for text in chart.figure.axes[0].texts)


@pytest.mark.slow
def test_seeds_become_their_geometric_mean_with_a_band_from_lowest_to_highest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, 3, seed=seed, provenance={"order": order}) for order, seed in enumerate((1, 2, 3))]
    for run, factor in zip(runs, (1.0, 1.21, 1.1), strict=True):
        epochs = run.read_metrics()[0]
        lines = [{**epoch, "val_ppl": factor * epoch["val_ppl"]} for epoch in epochs]
        run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fail(make_run(tmp_path, 3, epochs=5, done=False, seed=9, provenance={"order": 3}), "diverged", "NaN")
    study = load_study(tmp_path)
    chart = curve_charts(study)["architecture-gru"]
    lines = {line.run: line for line in chart.panels[0].lines}
    assert set(lines) == {1, 4}, "the one that failed is not averaged in"
    seeds = [study.epochs_of(run.id)["val_ppl"].to_numpy() for run in runs]
    np.testing.assert_allclose(lines[1].y, np.exp(np.mean(np.log(seeds), axis=0)), rtol=1e-12)
    (band,) = [found for found in chart.figure.axes[0].collections if isinstance(found, PolyCollection)]
    corners = band.get_paths()[0].vertices
    at_the_end = np.asarray(corners)[np.isclose(np.asarray(corners)[:, 0], 40), 1]
    assert at_the_end.min() == pytest.approx(seeds[0][-1])
    assert at_the_end.max() == pytest.approx(seeds[1][-1])
    assert "n = 3" in chart.caption
    assert "mean of 3 seeds" in lines[1].label


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("large") / "study"
    make_large_study(folder, 160, 4)
    return load_study(folder)


@pytest.fixture(scope="module")
def charts_of_many(large: Study) -> dict[str, Chart]:
    return curve_charts(large)


@pytest.mark.slow
def test_of_many_runs_the_best_of_each_kind_stand_out_and_the_rest_is_grey(
    large: Study, charts_of_many: dict[str, Chart]
) -> None:
    curves = [curve for curve in curves_of(large, "epochs") if curve.is_validated]
    assert len(curves) > MOST_LINES
    choice = choose(curves)
    assert len(choice.named) == STANDING_OUT
    assert len(choice.named) + len(choice.crowd) == len(curves)
    kinds = {(curve.arch, curve.optimizer) for curve in curves}
    assert {(curve.arch, curve.optimizer) for curve in choice.named} == kinds
    for kind in kinds:
        members = [curve for curve in curves if (curve.arch, curve.optimizer) == kind]
        best = min(members, key=lambda curve: curve.best)
        assert best.number in {curve.number for curve in choice.named}
    chart = charts_of_many["validation-epochs"]
    assert numbers(chart) == [{curve.number for curve in choice.named}]
    assert f"Grey: the other {len(choice.crowd)}" in chart.caption
    assert len(chart.figure.axes[0].lines) < 40, "the crowd is a few long lines"


@pytest.mark.slow
def test_of_many_runs_the_best_settings_have_a_panel_and_no_legend_grows(
    charts_of_many: dict[str, Chart],
) -> None:
    assert len(charts_of_many["runs-epochs"].panels) == MOST_PANELS
    for chart in charts_of_many.values():
        for legend in chart.figure.legends:
            assert len(legend.get_texts()) <= 3 * (MOST_LINES + 1)
            assert all(len(text.get_text()) <= LABEL_LENGTH for text in legend.get_texts())


@pytest.mark.parametrize(
    ("heights", "found"),
    [
        ([-3.0, 1.0, 5.0], [0.0, 4.0, 8.0]),
        ([17.0, 21.0], [16.0, 20.0]),
        ([5.0], [5.0]),
        ([25.0], [20.0]),
        ([float(4 * n) for n in range(11)], [2.0 * n for n in range(11)]),
    ],
)
def test_numbers_at_the_ends_of_lines_stay_beside_the_axes(heights: list[float], found: list[float]) -> None:
    assert within(heights, 0.0, 20.0, 4.0) == found
