"""``curves``: what is drawn of which runs, and with what."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.cli.curves import MOST_CURVES, Curve, picture
from tests.commands import ask
from tests.jobs.cli.test_watch import add, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for study, names in {"first": ("one", "two"), "second": ("three",)}.items():
        for order, name in enumerate(names):
            trained(add(tmp_path / study, name, "gru" if order else "rnn", order), 3)
    add(tmp_path / "second", "fresh", order=1)
    return tmp_path


def asked(folder: Path, *words: str) -> Any:
    return ask(["curves", *words, "--runs-dir", str(folder)], folder=folder, env={})


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["first"], ["one", "two"]),
        (["first", "second"], ["one", "two", "three", "fresh"]),
        (["first", "two", "second"], ["two", "three", "fresh"]),
        (["first", "second", "three"], ["one", "two", "three"]),
        (["first", "second", "--only", "arch=gru"], ["two"]),
    ],
)
def test_a_word_is_a_study_or_a_run_of_the_study_before_it(folder: Path, words: list[str], names: list[str]) -> None:
    assert [run["name"] for run in asked(folder, *words)["runs"]] == names


def test_a_curve_has_the_values_of_its_epochs_so_far(folder: Path) -> None:
    (run,) = asked(folder, "first", "one")["runs"]
    assert (run["epochs"], run["values"]) == ([1, 2, 3], [181, 180, 181])
    (run,) = asked(folder, "first", "one", "--key", "train_ppl")["runs"]
    assert run["values"] == [200, 199, 198]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["first", "onne"], "one"),
        (["nothing"], "first"),
        (["first", "--key", "val_pl"], "val_ppl"),
        (["first", "--watch"], "status --watch"),
    ],
)
def test_a_wrong_word_is_one_line_with_what_would_be_right(
    folder: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["curves", *words, "--runs-dir", str(folder)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert hint in line


def test_the_beginning_of_several_ids_asks_for_more_of_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [add(folder / "many", f"run-{number}", order=number).id for number in range(17)]
    (first, count), *_ = Counter(run_id[0] for run_id in ids).most_common()
    assert launch.main(["curves", "many", first, "--runs-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert count > 1
    assert any(run_id in error for run_id in ids if run_id[0] == first)


def test_without_a_terminal_the_picture_is_plain_and_fits_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["curves", "first", "second", "--runs-dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name in shown for name in ("first/one", "second/three", "fresh"))


def made(number: int, arch: str = "gru", values: tuple[float, ...] = (300.0, 200.0)) -> Curve:
    epochs = [*range(1, len(values) + 1)]
    return Curve(study="s", name=f"run{number}", id=str(number), arch=arch, state="done", epochs=epochs, values=values)


def colours_in(lines: list[str]) -> set[str]:
    return set(re.findall(r"\x1b\[38;2;[\d;]+m", "\n".join(lines)))


def test_curves_of_one_colour_are_told_apart_by_letters() -> None:
    apart = picture("val_ppl", [made(1), made(2, "rnn")], width=80, height=30, colored=True, fine=True)
    alike = picture("val_ppl", [made(number) for number in range(7)], width=80, height=40, colored=True, fine=True)
    assert len(colours_in(apart)) == 2
    assert any("\u2800" <= character <= "\u28ff" for character in "".join(apart))
    assert not any("\u2800" <= character <= "\u28ff" for character in "".join(alike))


@pytest.mark.parametrize("values", [(5.0,), (0.0, 0.0), (1e-300, 1e300), (-1.0, 2.0), ()])
@pytest.mark.parametrize("key", ["val_ppl", "lr"])
def test_any_values_are_drawn(key: str, values: tuple[float, ...]) -> None:
    lines = picture(key, [made(1, values=values)], width=80, height=24, colored=False, fine=False)
    assert lines
    assert len(lines) <= 24


def test_of_many_curves_the_lowest_are_drawn_and_a_line_says_so() -> None:
    runs = [made(number, values=(100.0 + number,)) for number in range(MOST_CURVES + 5)]
    shown = "\n".join(picture("val_ppl", runs, width=80, height=None, colored=False, fine=False))
    assert f"run{MOST_CURVES - 1}" in shown
    assert f"run{MOST_CURVES}" not in shown
    assert f"{MOST_CURVES + 5} curves" in shown
