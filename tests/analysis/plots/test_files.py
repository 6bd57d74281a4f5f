from __future__ import annotations

import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.plots import files, look
from analysis.plots.files import FORMATS, drawing
from analysis.study import units

WANTED = [(name, kind) for name in ("one", "two") for kind in FORMATS]


@pytest.fixture
def figures() -> dict[str, Figure]:
    with look.applied():
        made = {"one": Figure(), "two": Figure()}
        for place, figure in enumerate(made.values()):
            axes = figure.add_subplot()
            axes.plot(np.arange(5), np.arange(5) ** (place + 1))
            axes.set_title(f"run {place}")
    return made


def drawn(figures: dict[str, Figure], processes: int = 1) -> list[bytes]:
    with drawing(figures, WANTED, processes) as contents:
        return list(contents)


@pytest.fixture
def _without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the command, in which no thread runs; the process of a test may have some."""
    monkeypatch.setattr("threading.active_count", lambda: 1)


@pytest.mark.process
@pytest.mark.usefixtures("_without_threads")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_several_processes_draw_the_same_bytes(figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = drawn(figures)
    with monkeypatch.context() as patch:
        patch.setattr(files, "figure_bytes", _refuse_in(os.getpid()))
        assert drawn(figures, processes=2) == alone


@pytest.mark.process
@pytest.mark.usefixtures("_without_threads")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_figures_of_a_killed_process_are_drawn_all_the_same(
    figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = drawn(figures)
    monkeypatch.setattr(files, "_draw_kept", _die)
    assert drawn(figures, processes=2) == alone


@pytest.mark.slow
def test_a_process_with_threads_draws_by_itself(figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 2)
    assert len(drawn(figures, processes=2)) == len(WANTED)  # a test without the mark may not fork


@pytest.mark.parametrize("title", ["run 1: 0.5 · 10⁻³", "прогон 1"])
def test_a_pdf_has_the_same_fonts_as_from_whole_fonts(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with look.applied():
        figure = Figure()
        figure.add_subplot(title=title)
    found = files.figure_bytes(figure, "pdf")
    monkeypatch.setattr(files, "_common_font", lambda path: (b"", {}))  # matplotlib from 3.11 wants glyphs ...
    monkeypatch.setattr(files, "COMMON", frozenset())  # ... and before, characters
    assert found == files.figure_bytes(figure, "pdf")


def _refuse_in(process: int) -> Callable[[Figure, str], bytes]:
    draw = files.figure_bytes

    def figure_bytes(figure: Figure, kind: str) -> bytes:
        assert os.getpid() != process, "another process was to draw"
        return draw(figure, kind)

    return figure_bytes


def _die(wanted: tuple[str, str]) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(wanted)


def test_each_kind_of_optimizer_has_a_style_also_those_to_come() -> None:
    styles = look.optimizer_styles(map(str, range(64)))
    assert len(set(styles.values())) == 64
    assert list(look.OPTIMIZER_STYLES) == list(units.OPTIMIZERS)
