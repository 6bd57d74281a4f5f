from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from analysis.blocks.figure import Chart
from analysis.plots.axes import scale_for, shared_cut
from analysis.plots.curve_figures import curve_blocks
from analysis.plots.curves import curves_of
from analysis.plots.files import FORMATS, figure_bytes, inline_svg
from analysis.study.study import Study, load_study
from seqlm.config import RunConfig
from seqlm.files import write_json_lines
from tests.analysis.contents import curve_charts
from tests.analysis.synthetic import DIVERGED, EXPLODING, make_run


def first_chart(study: Study) -> Chart:
    return next(block for block in curve_blocks(study) if isinstance(block, Chart))


@pytest.fixture(scope="module")
def charts(study: Study) -> dict[str, Chart]:
    return curve_charts(study)


@pytest.mark.slow
def test_there_is_a_figure_over_epochs_and_over_time_of_all_runs_and_of_each(charts: dict[str, Chart]) -> None:
    assert list(charts)[:2] == ["validation-epochs", "validation-time"]
    assert list(charts)[-2:] == ["runs-epochs", "runs-time"]
    assert len([axes for axes in charts["runs-epochs"].figure.axes if axes.lines]) == 9


def test_axes_are_labelled_with_their_units(charts: dict[str, Chart]) -> None:
    labels = {name: chart.figure.axes[-1].get_xlabel() for name, chart in charts.items()}
    assert labels["validation-time"] == labels["runs-time"] == "Wall-clock time (hours)"
    assert labels["validation-epochs"] == labels["runs-epochs"] == "Epoch (1 = after the first pass)"
    assert charts["validation-epochs"].figure.axes[0].get_ylabel() == "Validation perplexity"


@pytest.mark.slow
def test_lines_hold_the_metrics_with_epochs_counted_from_1(study: Study, charts: dict[str, Chart]) -> None:
    axes = charts["validation-epochs"].figure.axes[0]
    by_length = [line for line in axes.lines if len(line.get_xdata()) > 1]
    for line, run in zip(by_length, study.runs.to_dict("records"), strict=True):
        epochs = study.epochs_of(run["id"])
        assert list(line.get_xdata()) == [epoch + 1 for epoch in epochs["epoch"]]
        np.testing.assert_array_equal(line.get_ydata(), epochs["val_ppl"].to_numpy())


def test_epochs_on_the_axis_are_whole_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=3)
    axes = curve_charts(load_study(tmp_path))["validation-epochs"].figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == [1, 2, 3]


def test_runs_cut_off_by_the_axis_are_named_with_how_far_they_go(charts: dict[str, Chart]) -> None:
    for name in ("validation-epochs", "validation-time"):
        assert charts[name].figure.axes[0].get_ylim()[1] < 1000
        caption = charts[name].caption
        assert f"2 rnn-sgd (up to 8,600) and 7 {EXPLODING} (up to 6,067)" in caption
        assert "1 rnn-adam" not in caption


def test_a_run_that_explodes_does_not_flatten_the_others() -> None:
    normal = [np.linspace(500, best, 40) for best in (110.0, 120.0, 150.0)]
    explodes = np.geomspace(130, 1e12, 40)
    scale = scale_for([*normal, explodes], cut_at=shared_cut([*normal, explodes]))
    assert scale.high < 1000
    assert scale.cuts(explodes)
    assert not any(scale.cuts(values) for values in normal)


def test_no_infinity_and_no_nan_reaches_an_axis(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=4, done=False)
    records, _ = run.read_metrics()
    text = "".join(
        f'{{"epoch": {r["epoch"]}, "val_ppl": {value}, "train_ppl": {value}, "elapsed_seconds": 1}}\n'
        for r, value in zip(records, ("12.5", "NaN", "Infinity", "0"), strict=True)
    )
    run.metrics_file.write_text(text)
    study = load_study(tmp_path)
    (curve,) = curves_of(study, "epochs")
    assert curve.val_ppl[0] == 12.5
    assert all(math.isnan(value) for value in curve.val_ppl[1:])
    assert len(curve_charts(study)) == 6


def test_runs_without_an_epoch_are_named_and_not_drawn(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=2)
    make_run(tmp_path, 3, epochs=0, done=False)
    charts = curve_charts(load_study(tmp_path))
    told = {name: "Without a finished epoch: 4 gru-adam." in chart.caption for name, chart in charts.items()}
    assert told.pop("architecture-rnn") is False
    assert all(told.values())


def test_a_study_without_epochs_has_no_figures(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=0, done=False)
    assert curve_charts(load_study(tmp_path)) == {}


def test_epochs_without_times_are_drawn_over_epochs_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2, done=False)
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**record, "elapsed_seconds": None} for record in records])
    assert list(curve_charts(load_study(tmp_path))) == [
        *("validation-epochs", "optimizer-adam", "architecture-rnn", "runs-epochs")
    ]


def test_a_run_that_ended_early_is_marked_and_named(charts: dict[str, Chart]) -> None:
    assert f"Ended early (×): 3 {DIVERGED}." in charts["validation-epochs"].caption
    crosses = [line for line in charts["validation-epochs"].figure.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1


def test_colour_tells_the_architecture_and_dashes_the_optimizer(study: Study) -> None:
    styles = {curve.name: curve.style for curve in curves_of(study, "epochs")}
    assert styles["gru-adam"].colour == styles["gru-sgd"].colour != styles["rnn-adam"].colour
    assert styles["gru-adam"].marker == styles["rnn-adam"].marker != styles["gru-sgd"].marker


@pytest.mark.parametrize(
    ("change", "alike"), [({"optim": {"optimizer": "adam", "lr": 0.5}}, False), ({"seed": 2}, True)]
)
def test_settings_alike_in_both_differ_in_shade_and_seeds_do_not(
    tmp_path: Path, change: dict[str, Any], alike: bool
) -> None:
    run = make_run(tmp_path, 0, epochs=2)
    config = run.read_config().to_dict()
    twin = RunConfig.from_dict({**config, **change})
    other = type(run).locate(tmp_path, "twin", twin.fingerprint())
    other.create(twin, {"order": 1})
    write_json_lines(other.metrics_file, run.read_metrics()[0])
    first, second = curves_of(load_study(tmp_path), "epochs")
    assert (first.style.colour == second.style.colour) is alike
    assert first.style.dashes == second.style.dashes


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("two")
    for order in (3, 6):
        make_run(folder, order)
    return load_study(folder)


@pytest.fixture(scope="module")
def twins(two_runs: Study) -> list[Chart]:
    """The first figure of the study, made twice."""
    return [first_chart(two_runs) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_a_figure_always_gives_the_same_bytes(twins: list[Chart], kind: str) -> None:
    first, second = (figure_bytes(chart.figure, kind) for chart in twins)
    assert first == second
    assert b"CreationDate" not in first
    assert b"dc:date" not in first


@pytest.mark.slow
def test_figures_do_not_depend_on_the_users_settings(two_runs: Study) -> None:
    plain = figure_bytes(first_chart(two_runs).figure, "svg")
    with matplotlib.rc_context({"font.size": 20, "axes.grid.axis": "x", "lines.solid_capstyle": "butt"}):
        assert figure_bytes(first_chart(two_runs).figure, "svg") == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{1}{$", "日本語 🚀", "n" * 300])
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    make_run(tmp_path, 0, epochs=2, name=name)
    chart = curve_charts(load_study(tmp_path))["validation-epochs"]
    figures = {kind: figure_bytes(chart.figure, kind) for kind in FORMATS}
    assert all(figures.values())
    assert "<script" not in inline_svg(figures["svg"], "x")


@pytest.mark.slow
def test_an_inline_figure_brings_no_id_of_another(charts: dict[str, Chart]) -> None:
    svg = figure_bytes(charts["validation-epochs"].figure, "svg")
    one, two = inline_svg(svg, "one"), inline_svg(svg, "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    references = set(re.findall(r'(?:url\(|href=")#([^")]+)', one))
    assert references
    assert references <= ids[0]
