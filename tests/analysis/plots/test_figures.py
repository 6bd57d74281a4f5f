"""What holds of every figure: its numbers, one colour for a run, and a caption of what is drawn."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from analysis.blocks.figure import Chart
from analysis.plots import look, palette
from analysis.plots.axes import Mark, log_ticks, place_numbers, tick_text
from analysis.plots.column import column_files
from analysis.plots.scatter import costs_chart, spread_chart
from analysis.plots.slices import slices_chart
from analysis.report import report_page
from analysis.study import units
from analysis.study.study import StudyFiles, load_study
from benchmarks.report_study import make_study as make_large_study
from tests.analysis.claims import made_up
from tests.analysis.contents import curve_charts
from tests.analysis.hand_made import add_run
from tests.analysis.sections.test_search import make_searched
from tests.analysis.synthetic import make_study

NO_PERPLEXITIES = ("steps", "loss-per-step", "gradient-norms", "effects-forest")
"""Figures of losses."""


def heights_of(axes: Axes) -> dict[str, float]:
    """The height of the middle of each number above the bottom of the figure, in pixels, by its text."""
    return {
        text.get_text(): float(axes.transData.transform(text.xy)[1]) + text.xyann[1] * axes.figure.dpi / 72
        for text in axes.texts
        if text.get_text().rstrip(" ↑▲").isdigit()
    }


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crowd", [[9.7, 9.8, 9.9, 10.0], [0.0, 0.1, 0.1, 0.2], [4.9, 5.0, 5.0, 5.1]])
def test_numbers_spread_both_ways_and_stay_inside_the_axes(crowd: Sequence[float]) -> None:
    axes = Figure(figsize=(6, 4), dpi=72).add_subplot(xlim=(0, 10), ylim=(0, 10))
    place_numbers(axes, [Mark(9.0, y, str(place), "black") for place, y in enumerate(crowd)])
    heights = heights_of(axes)
    assert np.diff(sorted(heights.values())).min() > 8, "the height of a number in points"
    assert axes.bbox.y0 <= min(heights.values()) <= max(heights.values()) <= axes.bbox.y1
    if crowd[0] == 4.9:
        points = {text.get_text(): axes.transData.transform(text.xy)[1] for text in axes.texts}
        assert {np.sign(round(heights[text] - points[text], 6)) for text in heights} == {-1, 1}


def test_numbers_hide_no_data_and_only_the_first_eight_are_written() -> None:
    axes = Figure(figsize=(6, 4), dpi=72).add_subplot(xlim=(0, 10), ylim=(0, 10))
    place_numbers(axes, [Mark(9.0, 9 - place / 3, str(place), "black") for place in range(20)])
    assert {text.get_text() for text in axes.texts} == {str(place) for place in range(8)}
    assert all(text.get_bbox_patch() is None for text in axes.texts)


def test_a_number_at_the_right_edge_stays_in_the_figure() -> None:
    figure = Figure(figsize=(6, 4), dpi=72)
    axes = figure.add_axes((0.1, 0.1, 0.89, 0.8), xlim=(0, 10), ylim=(0, 10))
    place_numbers(axes, [Mark(10.0, 5.0, "1234", "black")])
    figure.draw_without_rendering()
    (text,) = axes.texts
    assert 0 <= text.get_window_extent().x0 < text.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("style", ["default", "steps-post"])
@pytest.mark.parametrize("level", [4.9, 5.0, 5.1])
def test_a_number_moves_out_of_the_way_of_a_line_that_goes_on(style: str, level: float) -> None:
    """As in a panel over time, where one run is over and another passes right of its end."""
    axes = Figure(figsize=(6, 4), dpi=72).add_subplot(xlim=(0, 10), ylim=(0, 10))
    axes.plot([1.0, 4.0], [8.0, 5.0])
    axes.plot([1.0, 9.0], [level, level], drawstyle=style)
    place_numbers(axes, [Mark(9.0, level, "2", "black"), Mark(4.0, 5.0, "1", "black")])
    line = float(axes.transData.transform((0, level))[1])
    assert abs(heights_of(axes)["1"] - line) > 4, "half the height of a number in points"
    assert heights_of(axes)["2"] == line, "right of both"


def test_numbers_that_meet_no_line_keep_the_order_of_their_points() -> None:
    axes = Figure(figsize=(6, 2.3), dpi=72).add_subplot(xlim=(0, 10), ylim=(0, 10))
    ends = (0.0, 0.1, 0.2)
    for y in ends:
        axes.plot([1.0, 9.0], [8.0, y])
    place_numbers(axes, [Mark(9.0, y, str(place), "black") for place, y in enumerate(ends)])
    assert sorted(heights_of(axes), key=heights_of(axes).__getitem__) == ["0", "1", "2"]


def test_a_run_above_the_axis_has_an_arrow_also_if_eight_others_are_lower(tmp_path: Path) -> None:
    for order in range(12):
        value = 1e6 if order == 11 else 100.0 + order
        add_run(
            tmp_path, order, f"r{order}", "gru", "sgd", [value], lr=0.1 + order, result={"parameters": 1000 + order}
        )
    study = load_study(tmp_path).compared
    for chart, panels in ((costs_chart(study), 2), (spread_chart(study), 1)):
        assert chart is not None
        for axes in chart.figure.axes[:panels]:
            assert "12 ↑" in {text.get_text() for text in axes.texts}
        assert "↑: above the axis" in chart.caption


def test_a_curve_above_the_axis_has_no_number(tmp_path: Path) -> None:
    for order, value in enumerate((100.0, 101.0, 102.0, 1e7)):
        add_run(tmp_path, order, f"r{order}", "gru", "sgd", [2 * value, value], lr=0.1 + order)
    (axes, *_) = curve_charts(load_study(tmp_path))["validation"].figure.axes
    assert set(heights_of(axes)) == {"1", "2", "3"}


# -- slices --------------------------------------------------------------------------------------------------------


def test_one_diverged_run_flattens_no_slice(tmp_path: Path) -> None:
    for order, value in enumerate((100.0, 110.0, 120.0, 1e6)):
        add_run(tmp_path, order, f"r{order}", "gru", "sgd", [value], lr=0.1 + order)
    chart = slices_chart(load_study(tmp_path))
    assert chart is not None
    for axes in chart.figure.axes:
        low, high = axes.get_ylim()
        assert high < 1e4
        points = {line.get_gid(): float(line.get_ydata()[0]) for line in axes.lines}
        assert set(points) == {"run-1", "run-2", "run-3", "run-4"}
        assert points["run-4"] == high, "at the end of the axis"
        assert [text.get_text() for text in axes.texts] == ["4 ↑"]
        assert low < min(points.values())


# -- colours -------------------------------------------------------------------------------------------------------


def colours_of(charts: Sequence[Chart]) -> dict[str, set[str]]:
    """The colours of the curves of each run over all figures, by its mark."""
    found = defaultdict(set)
    for chart in charts:
        for axes in chart.figure.axes:
            for line in axes.lines:
                if (line.get_gid() or "").startswith("run-") and len(line.get_xdata()) > 1:
                    found[line.get_gid()].add(to_hex(line.get_color()))
    return found


def test_a_run_has_one_colour_in_all_figures(tmp_path: Path) -> None:
    order = itertools.count()
    for arch, optimizer in itertools.product(("rnn", "gru"), ("adam", "sgd")):
        for rate in range(1, 9):
            value = 100.0 + 5 * ((3 * rate) % 8) + (arch == "rnn")
            add_run(tmp_path, next(order), f"{arch}-{optimizer}-{rate}", arch, optimizer, [2 * value, value], lr=rate)
    study = load_study(tmp_path)
    colours = colours_of(list(curve_charts(study).values()))
    assert len(colours) > 8
    assert {gid: found for gid, found in colours.items() if len(found) > 1} == {}
    best = study.runs.sort_values("val_ppl").groupby(["arch", "optimizer"]).head(4)
    for _, group in best.groupby(["arch", "optimizer"]):
        shown = [colours[f"run-{number}"] for number in group["number"] if f"run-{number}" in colours]
        assert len(set(map(frozenset, shown))) == len(shown), "the best of a kind differ in shade"


# -- captions ------------------------------------------------------------------------------------------------------


def make_explosion(folder: Path) -> None:
    """Seeds as a band, a run that leaves its axis, and one above it."""
    for seed in (1, 2):
        add_run(folder, seed, f"gru-seed{seed}", "gru", "sgd", [200.0, 100.0 + seed], seed=seed)
    add_run(folder, 3, "leaves", "gru", "sgd", [150.0, 1e5], lr=2.0)
    add_run(folder, 4, "above", "gru", "sgd", [1e7, 1e6], lr=3.0)


def make_front_of_one(folder: Path) -> None:
    """The smallest model is the best one, so that there is no front to draw."""
    for order, (size, value) in enumerate(((16, 100.0), (32, 110.0))):
        result = {"parameters": 1000 * size}
        add_run(folder, order, f"r{order}", "gru", "sgd", [value], hidden_size=size, result=result)


STUDIES: dict[str, Callable[[Path], object]] = {
    "nine": make_study,
    "explosion": make_explosion,
    "searched": make_searched,
    "front": make_front_of_one,
    "quickstart": made_up.make_study,
}


def drawn_in(figure: Figure) -> dict[str, bool]:
    """Which signs a figure shows, by the letters that a caption has for them."""
    crosses = [(axes, line) for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    heights = [(axes.get_ylim()[1], y) for axes, line in crosses for y in line.get_ydata()]
    found = [artist for axes in figure.axes for artist in axes.collections]
    return {
        "↑": any("↑" in text.get_text() for axes in figure.axes for text in axes.texts),
        "×": any(y <= top for top, y in heights),
        "band": any(isinstance(artist, PolyCollection) for artist in found),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", STUDIES)
def test_captions_name_the_signs_that_are_drawn_and_no_others(tmp_path: Path, name: str) -> None:
    STUDIES[name](tmp_path)
    page = report_page(load_study(tmp_path))
    for chart in page.charts:
        if chart.name in NO_PERPLEXITIES:
            continue
        drawn = drawn_in(chart.figure)
        named = {sign: sign in chart.caption.lower() for sign in drawn}
        legend = {text.get_text() for legend in chart.figure.legends for text in legend.get_texts()}
        named["×"] |= "stopped" in legend
        assert named == drawn, chart.name
        assert "▲" not in chart.caption
        assert not any("▲" in text.get_text() for axes in chart.figure.axes for text in axes.texts)
        dashed = [line for axes in chart.figure.axes for line in axes.lines if line.get_linestyle() == "--"]
        assert ("Grey line" in chart.caption) == (bool(dashed) and chart.name == "time-and-perplexity")


@pytest.mark.usefixtures("blank_figures")
def test_captions_have_three_figures_of_where_an_axis_ends(tmp_path: Path) -> None:
    make_explosion(tmp_path)
    found = re.findall(r"(?:at|to) ([\d,]+\.?\d*)", curve_charts(load_study(tmp_path))["validation"].caption)
    assert len(found) == 3
    assert all(len(number.replace(",", "").strip("0.")) <= 3 for number in found), found


# -- every run by architecture, and settings against what they cost --------------------------------------------------


def make_costly(folder: Path) -> StudyFiles:
    """Three settings of other sizes, the best of two seeds, and one of another learning rate."""
    for order, (arch, value, seed, rate) in enumerate(
        [("rnn", 120.0, 1, 0.1), ("gru", 101.0, 1, 0.1), ("gru", 103.0, 2, 0.1), ("gru", 140.0, 1, 1.0)]
    ):
        sizes = {"rnn": 1000, "gru": 3000}
        add_run(
            folder,
            order,
            f"r{order}",
            arch,
            "sgd",
            [2 * value, value],
            train=[value, value / 2],
            seed=seed,
            lr=rate,
            record={"steps": 10},
            result={"parameters": sizes[arch]},
        )
    return load_study(folder)


def test_every_finished_run_is_a_dot_by_its_architecture_and_the_best_settings_are_coloured(tmp_path: Path) -> None:
    chart = spread_chart(make_costly(tmp_path).compared)
    assert chart is not None
    ppl, gap = chart.figure.axes
    drawn = {line.get_gid(): (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ppl.lines}
    grey = drawn.pop(None, None) or drawn.pop("", None)
    assert grey == (1.0, 140.0)
    assert drawn == {"run-1": (0.0, 120.0), "run-2": (1.0, 101.0), "run-3": (1.0, 103.0)}
    gaps = [float(line.get_ydata()[0]) for line in gap.lines if (line.get_gid() or "").startswith("run-")]
    assert gaps == pytest.approx([np.log(2)] * 3)
    assert "grey: the others" in chart.caption
    assert [label.get_text() for label in ppl.get_xticklabels()] == ["RNN", "GRU"]
    assert chart.message.startswith("Lowest validation perplexity: RNN 120.00 and GRU ")


def test_settings_stand_against_time_and_parameters_with_a_line_of_the_lowest_so_far(tmp_path: Path) -> None:
    chart = costs_chart(make_costly(tmp_path).compared)
    assert chart is not None
    _, parameters = chart.figure.axes
    (front,) = [line for line in parameters.lines if line.get_label() == "_"]
    mean = float(np.sqrt(101.0 * 103.0))
    assert front.get_xydata().tolist() == [[1.0, 120.0], [3.0, pytest.approx(mean)], [3.0, pytest.approx(mean)]]


def test_curves_over_tokens_and_operations_follow_from_steps_and_parameters(tmp_path: Path) -> None:
    chart = curve_charts(make_costly(tmp_path))["tokens-and-flops"]
    tokens, operations = ({line.run: line.x for line in panel.lines} for panel in chart.panels)
    config = next(iter(load_study(tmp_path).runs.to_dict("records")))
    a_step = config["train.batch_size"] * config["train.seq_len"]
    assert tokens["1"].tolist() == [10 * a_step, 20 * a_step]
    assert operations["1"].tolist() == [6 * 1000 * 10 * a_step, 6 * 1000 * 20 * a_step]


def test_a_study_of_one_optimizer_and_one_architecture_has_no_second_copy_of_its_curves(tmp_path: Path) -> None:
    for order in range(3):
        add_run(tmp_path, order, f"r{order}", "gru", "sgd", [200.0, 100.0 + order], lr=0.1 + order)
    assert list(curve_charts(load_study(tmp_path))) == ["validation", "runs-epochs"]


# -- a column of a paper -------------------------------------------------------------------------------------------


def test_each_panel_is_laid_out_for_a_column_with_its_numbers_inside(tmp_path: Path) -> None:
    made_up.make_study(tmp_path)
    chart = curve_charts(load_study(tmp_path))["by-optimizer"]
    assert [name for name, _ in column_files(chart)] == [f"by-optimizer-{place}.pdf" for place in range(1, 7)]
    axes = chart.figure.axes[-1]
    assert [other for other in chart.figure.axes if other.get_visible()] == [axes]
    assert chart.figure.get_size_inches()[0] == pytest.approx(3.3)
    assert axes.get_ylabel() == "Validation perplexity"
    sizes = {text.get_fontsize() for text in [*axes.texts, *axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label]}
    sizes |= {text.get_fontsize() for legend in chart.figure.legends for text in legend.get_texts()}
    assert 7 <= min(sizes) <= max(sizes) <= 8
    chart.figure.draw_without_rendering()
    for text in [*axes.texts, axes.xaxis.label, axes.yaxis.label, *chart.figure.legends]:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= chart.figure.bbox.x1 + 1, text


# -- many runs -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_many_runs_panels_show_settings_of_each_kind_and_say_which(tmp_path: Path) -> None:
    make_large_study(tmp_path / "study", 160, 4)
    study: StudyFiles = load_study(tmp_path / "study")
    charts = curve_charts(study)
    panels = charts["runs-epochs"].figure.axes
    by_number = {str(run["number"]): run for run in study.runs.to_dict("records")}
    shown = [by_number[panel.lines[0].run or ""] for panel in charts["runs-epochs"].panels]
    kinds = [(run["arch"], run["optimizer"]) for run in shown]
    assert len(set(kinds)) == len(kinds) == len(panels)
    assert kinds == [(arch, key) for arch in units.ARCHITECTURES for key in units.OPTIMIZERS if (arch, key) in kinds]
    for axes, run in zip(panels, shown, strict=True):
        title = axes.get_title(loc="left").lower()
        assert run["arch"] in title
        assert run["optimizer"].partition("_")[0] in title
    done = study.runs[study.runs["state"] == "done"]
    repeated = {str(n) for n in done[done.duplicated("setting", keep=False)]["number"]}
    for name in ("validation", "runs-epochs", "by-optimizer"):
        lines = [line for panel in charts[name].panels for line in panel.lines if line.run in repeated]
        assert lines
        assert all("mean of" in line.label for line in lines), name
    without = {*study.runs["number"]} - {*study.epochs["number"][np.isfinite(study.epochs["val_ppl"])]}
    assert without
    for name in ("validation", "runs-epochs"):
        drawn = {line.run for panel in charts[name].panels for line in panel.lines}
        assert set(re.findall(r"\b(\d+)(?:/\d+)* (?:rnn|gru|transformer)-", charts[name].caption)) <= drawn, name
    assert f"Without a perplexity: {len(without)} runs." in charts["validation"].caption


# -- axes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", ["nine", "searched", "quickstart"])
def test_perplexity_is_on_a_logarithmic_axis_that_all_panels_of_a_figure_share(tmp_path: Path, name: str) -> None:
    STUDIES[name](tmp_path)
    for chart in report_page(load_study(tmp_path)).charts:
        if chart.name in NO_PERPLEXITIES:
            continue
        of_perplexity = [axes for axes in chart.figure.axes if "Gap" not in axes.get_ylabel()]
        assert {axes.get_yscale() for axes in of_perplexity} == {"log"}, chart.name
        assert len({axes.get_ylim() for axes in of_perplexity}) == 1, chart.name


@pytest.mark.parametrize(("low", "high"), [(100.0, 104.0), (58.0, 61.0), (90.0, 130.0), (3.0, 8000.0), (1.0, 2.0)])
def test_a_logarithmic_axis_has_three_ticks_or_more_also_where_it_is_short(low: float, high: float) -> None:
    ticks = log_ticks(low, high, 6)
    assert 3 <= len(ticks) <= 6
    assert all(low <= tick <= high for tick in ticks)


def test_ticks_have_a_minus_sign_and_powers_of_ten() -> None:
    assert [tick_text(value) for value in (-0.5, 2e-5, 1e-5, 0.002, 1500, 5e11)] == [
        *("−0.5", "2×10⁻⁵", "10⁻⁵", "0.002", "1,500", "5×10¹¹")
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_of_a_text_has_enough_contrast_with_its_paper(*, dark: bool) -> None:
    colours = look.line_colours()
    for own in [*look.architecture_colours().values(), palette.UNKNOWN_COLOUR]:
        for light, _ in palette.SHADES:
            ink = look.ink_of(palette.shade(own, light))
            assert look.contrast(colours[ink] if dark else ink, "#14181c" if dark else look.PAPER) >= look.CONTRAST


SEEN_BY = {
    "all": np.eye(3),
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
"""Matrices on linear red, green and blue (Machado, Oliveira and Fernandes, 2009, severity 1)."""

TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]]
"""Linear red, green and blue to CIE XYZ, each relative to white."""


def lab(colour: str, seen_by: str) -> np.ndarray:
    """Return a colour in CIE L*a*b*."""
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    x, y, z = np.asarray(TO_XYZ) @ np.clip(np.asarray(SEEN_BY[seen_by]) @ linear, 0, 1)
    x, y, z = (np.cbrt(part) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_architectures_differ_in_colour_in_all_shades_for_the_colour_blind_too(seen_by: str, *, dark: bool) -> None:
    shades = [[palette.shade(own, pair[dark]) for pair in palette.SHADES] for own in palette.PALETTE[:3]]
    own, other = (
        [np.linalg.norm(lab(a, seen_by) - lab(b, seen_by)) for a, b in pairs]
        for pairs in (
            [pair for colours in shades for pair in itertools.combinations(colours, 2)],
            [pair for a, b in itertools.combinations(shades, 2) for pair in itertools.product(a, b)],
        )
    )
    assert min(other) > 10, "of two architectures"
    assert min(own) > 4, "of two settings of one architecture"
