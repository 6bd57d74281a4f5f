"""Learning curves: what is drawn of each run, of seeds as bands, and of very many runs."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from analysis.blocks.figure import Chart
from analysis.plots.axes import Mark, place_numbers
from analysis.plots.curve_figures import BEST_PANELS
from analysis.plots.curves import LABEL_LENGTH, MOST_LINES, STANDING_OUT, curves_of, prominent, setting_curves
from analysis.plots.files import FORMATS, figure_bytes, inline_svg
from analysis.study.study import StudyFiles, load_study
from benchmarks.report_study import make_study as make_large_study
from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines
from seqlm.records.runs import Provenance
from tests.analysis.contents import curve_charts
from tests.analysis.synthetic import STEPS, add_trace, fail, make_run


@pytest.fixture(scope="module")
def charts(study: StudyFiles) -> dict[str, Chart]:
    return curve_charts(study)


def runs_of(chart: Chart) -> list[set[str | None]]:
    """The runs that each pair of axes shows values of."""
    return [{line.run for line in panel.lines} for panel in chart.panels]


@pytest.mark.slow
def test_all_runs_are_drawn_over_epochs_and_over_time_by_optimizer_and_by_architecture(
    charts: dict[str, Chart],
) -> None:
    rows = {
        "validation": ["13456789"],
        "by-optimizer": ["147", "58", "369"],
        "by-architecture": ["13", "456", "789"],
        "tokens-and-flops": ["13456789"],
        "runs-epochs": list("123456789"),
    }
    assert list(charts) == list(rows)
    for name, expected in rows.items():
        panels = 1 if name.startswith("runs") else 2
        assert runs_of(charts[name]) == [set(row) for row in expected for _ in range(panels)]
    assert [axes.get_xlabel() for axes in charts["validation"].figure.axes] == [
        "Epoch (1 = after the first pass)",
        "Wall-clock time (hours)",
    ]
    assert charts["validation"].figure.axes[0].get_ylabel() == "Validation perplexity"


@pytest.mark.slow
def test_lines_hold_the_metrics_with_epochs_counted_from_1(study: StudyFiles, charts: dict[str, Chart]) -> None:
    over_epochs, over_time = ({line.run: line for line in panel.lines} for panel in charts["validation"].panels)
    for run in study.runs[study.runs["number"] != 2].to_dict("records"):  # far above the axis
        epochs, number = study.epochs_of(run["id"]), str(run["number"])
        np.testing.assert_array_equal(over_epochs[number].x, epochs["epoch"] + 1)
        np.testing.assert_array_equal(over_epochs[number].y, epochs["val_ppl"].to_numpy())
        np.testing.assert_allclose(3600 * over_time[number].x, epochs["elapsed_seconds"])


def test_epochs_on_the_axis_are_whole_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=3)
    axes = curve_charts(load_study(tmp_path))["validation"].figure.axes[0]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1, 2, 3]


@pytest.mark.slow
def test_runs_that_leave_the_axis_or_end_early_are_marked_and_flatten_no_other(charts: dict[str, Chart]) -> None:
    chart = charts["validation"]
    assert all(axes.get_ylim()[1] < 5000 for axes in chart.figure.axes)
    assert [line.get_marker() for line in chart.figure.axes[0].lines].count("x") == 1
    assert any("↑" in text.get_text() for text in chart.figure.axes[0].texts)


def test_each_run_has_a_line_in_each_figure_that_names_it(charts: dict[str, Chart]) -> None:
    """The second run is worse than all others by far, the seventh explodes."""
    for chart in charts.values():
        for axes, panel in zip(chart.figure.axes, chart.panels, strict=True):
            top = axes.get_ylim()[1]
            runs = {line.run for line in panel.lines}
            seen = {line.run for line in panel.lines if sum(y <= top for y in line.y) > 1}
            assert runs == seen or [text.get_text()[:6] for text in axes.texts if "from" in text.get_text()] == [
                "↑ from"
            ]
    assert "2 rnn-sgd" in charts["validation"].caption
    assert "Above the axis: 2 rnn-sgd." in charts["by-optimizer"].caption


def test_no_infinity_and_no_nan_reaches_an_axis(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=4, done=False)
    records, _ = run.read_metrics()
    text = "".join(
        f'{{"epoch": {r["epoch"]}, "val_ppl": {value}, "train_ppl": {value}, "elapsed_seconds": 1}}\n'
        for r, value in zip(records, ("12.5", "NaN", "Infinity", "0"), strict=True)
    )
    run.metrics_file.write_text(text)
    study = load_study(tmp_path)
    (curve,) = curves_of(study)
    np.testing.assert_equal(curve.val_ppl, [12.5, np.nan, np.nan, np.nan])
    assert len(curve_charts(study)) == 2


def test_runs_without_an_epoch_are_named_and_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, 3, epochs=0, done=False)
    assert curve_charts(load_study(tmp_path)) == {}
    make_run(tmp_path, 0, epochs=2)
    charts = curve_charts(load_study(tmp_path))
    for name in ("validation", "runs-epochs"):
        assert "Without a perplexity: 4 gru-adam." in charts[name].caption
        assert runs_of(charts[name])[0] == {"1"}


@pytest.mark.parametrize(
    ("change", "alike"), [({"optim": {"optimizer": "adam", "lr": 0.5}}, False), ({"seed": 2}, True)]
)
def test_settings_alike_in_both_differ_in_shade_and_seeds_do_not(
    tmp_path: Path, change: dict[str, Any], alike: bool
) -> None:
    run = make_run(tmp_path, 0, epochs=2)
    twin = RunConfig.from_dict({**run.read_config().to_dict(), **change})
    other = type(run).locate(tmp_path, "twin", twin.fingerprint())
    other.create(twin, Provenance(order=1))
    write_json_lines(other.metrics_file, run.read_metrics()[0])
    first, second = (curve.style for curve in curves_of(load_study(tmp_path)))
    assert (first.colour == second.colour) is alike
    assert first.dashes == second.dashes


@pytest.mark.slow
def test_seeds_become_their_geometric_mean_with_a_band_from_lowest_to_highest(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, 3, seed=seed, provenance={"order": order}) for order, seed in enumerate((1, 2, 3))]
    for run, factor in zip(runs, (1.0, 1.21, 1.1), strict=True):
        epochs = run.read_metrics()[0]
        lines = [{**epoch, "val_ppl": factor * epoch["val_ppl"]} for epoch in epochs]
        run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fail(make_run(tmp_path, 3, epochs=5, done=False, seed=9, provenance={"order": 3}), "diverged", "NaN")
    study = load_study(tmp_path)
    chart = curve_charts(study)["validation"]
    drawn = {line.run: line for line in chart.panels[0].lines}
    assert set(drawn) == {"1", "4"}, "the one that failed is not averaged in"
    seeds = [study.epochs_of(run.id)["val_ppl"].to_numpy() for run in runs]
    np.testing.assert_allclose(drawn["1"].y, np.exp(np.mean(np.log(seeds), axis=0)), rtol=1e-12)
    (band,) = [found for found in chart.figure.axes[0].collections if isinstance(found, PolyCollection)]
    corners = np.asarray(band.get_paths()[0].vertices)
    at_the_end = corners[np.isclose(corners[:, 0], 40), 1]
    assert (at_the_end.min(), at_the_end.max()) == pytest.approx((seeds[0][-1], seeds[1][-1]))
    assert "mean of 3 seeds" in drawn["1"].label


@pytest.mark.slow
def test_of_many_runs_the_best_of_each_kind_stand_out_and_no_legend_grows(tmp_path: Path) -> None:
    make_large_study(tmp_path / "study", 160, 4)
    study = load_study(tmp_path / "study")
    curves = setting_curves(study, [curve for curve in curves_of(study) if curve.is_validated])
    assert len(curves) > MOST_LINES
    named = prominent(curves)
    assert len(named) == STANDING_OUT
    for kind in {(curve.arch, curve.optimizer) for curve in curves}:
        members = [curve for curve in curves if (curve.arch, curve.optimizer) == kind]
        assert min(members, key=lambda curve: curve.best) in named
    charts = curve_charts(study)
    assert runs_of(charts["validation"])[0] == {str(curve.number) for curve in named}
    assert named != sorted(sorted(curves, key=lambda curve: curve.best)[:STANDING_OUT], key=lambda curve: curve.number)
    assert f" {STANDING_OUT} of {len(curves)} " in charts["validation"].caption, "and not the ten best"
    assert "best of each architecture" in charts["validation"].caption
    assert len(charts["runs-epochs"].panels) == BEST_PANELS
    for chart in charts.values():
        for legend in chart.figure.legends:
            assert len(legend.get_texts()) <= 3 * (MOST_LINES + 1)
            assert all(len(text.get_text()) <= LABEL_LENGTH for text in legend.get_texts())


def test_numbers_cover_no_other_and_stay_beside_their_points() -> None:
    axes = Figure(figsize=(6, 4), dpi=72).add_subplot(xlim=(0, 10), ylim=(0, 10))
    place_numbers(axes, [Mark(9.0, y, str(n), "black") for n, y in enumerate([5.0, 5.1, 5.2, 1.0])])
    points = {text.get_text(): axes.transData.transform(text.xy)[1] for text in axes.texts}
    heights = {text.get_text(): points[text.get_text()] + text.xyann[1] for text in axes.texts}
    assert sorted(heights, key=lambda text: heights[text]) == ["3", "0", "1", "2"]
    assert np.diff(sorted(heights.values())).min() > 8, "the height of a number in points"
    assert heights["3"] == points["3"]


@pytest.mark.slow
def test_each_run_with_a_trace_has_a_panel_of_its_steps_also_within_its_first_epoch(tmp_path: Path) -> None:
    whole, begun, _ = (
        make_run(tmp_path, order, epochs=epochs, done=False) for order, epochs in ((0, 2), (3, 0), (6, 2))
    )
    write_json(begun.progress_file(1), {"epoch": 0, "step": 3, "steps": STEPS})
    losses = np.random.default_rng(1).uniform(3, 9, 2 * STEPS)
    losses[7] = np.nan
    add_trace(whole, losses)
    add_trace(begun, losses[:3])
    chart = curve_charts(load_study(tmp_path))["steps"]
    assert runs_of(chart) == [{"1"}, {"4"}]
    for axes, drawn in zip(chart.figure.axes, (losses, losses[:3]), strict=True):
        ((_, low), (end, high)) = axes.dataLim.get_points()
        assert (low, high) == pytest.approx((np.nanmin(drawn), np.nanmax(drawn)))
        assert end == pytest.approx(len(drawn) / STEPS, rel=0.02)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    folder = tmp_path_factory.mktemp("two")
    for order in (3, 6):
        make_run(folder, order)
    return load_study(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_a_figure_always_gives_the_same_bytes_whatever_the_users_settings(two_runs: StudyFiles, kind: str) -> None:
    first = figure_bytes(curve_charts(two_runs)["validation"].figure, kind)
    with matplotlib.rc_context({"font.size": 20, "axes.grid.axis": "x", "lines.solid_capstyle": "butt"}):
        assert figure_bytes(curve_charts(two_runs)["validation"].figure, kind) == first
    assert b"CreationDate" not in first
    assert b"dc:date" not in first


@pytest.mark.slow
def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    for order, name in enumerate(["<script>alert(1)</script>", "$\\frac{1}{$", "日本語 🚀", "n" * 300]):
        make_run(tmp_path, order, epochs=2, name=name)
    chart = curve_charts(load_study(tmp_path))["validation"]
    figures = {kind: figure_bytes(chart.figure, kind) for kind in FORMATS}
    assert all(figures.values())
    assert "<script" not in inline_svg(figures["svg"], "x")


@pytest.mark.slow
def test_an_inline_figure_brings_no_id_of_another(charts: dict[str, Chart]) -> None:
    svg = figure_bytes(charts["validation"].figure, "svg")
    one, two = inline_svg(svg, "one"), inline_svg(svg, "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    references = set(re.findall(r'(?:url\(|href=")#([^")]+)', one))
    assert references
    assert references <= ids[0]
