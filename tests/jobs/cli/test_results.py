"""``results`` and ``generate``, and how a run is named."""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import launch
from analysis import open_study
from seqlm.errors import UsageError
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.example_study import make_examples, make_widths
from tests.analysis.hand_made import add_run
from tests.commands import ask
from tests.facts import fail
from tests.jobs.cli.test_watch import add

pytestmark = pytest.mark.slow  # pandas or torch


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "runs"
    make_examples(folder)
    return folder


@pytest.fixture
def seqlm(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str, code: int = 0) -> "pytest.CaptureResult[str]":  # type: ignore[type-arg]
        capsys.readouterr()
        assert launch.main([*words, "--runs-dir", str(runs_dir)]) == code
        return capsys.readouterr()

    return call


def asked(seqlm: Any, *words: str) -> Any:
    return json.loads(seqlm(*words, "--json").out)["data"]


# -- results -------------------------------------------------------------------------------------------------------


def test_the_best_run_comes_first_and_what_is_missing_last(seqlm: Any) -> None:
    runs = asked(seqlm, "results", "optimizers")["runs"]
    values = [run["val_ppl"] for run in runs]
    known = [value for value in values if value is not None]
    assert known == sorted(known)
    assert values == [*known, *([None] * (len(values) - len(known)))]
    best = runs[0]
    assert (best["number"], best["name"], best["state"], best["val_ppl"]) == ("4", "gru-adam", "done", 110)
    assert (best["best_epoch"], best["epochs_done"]) == (2, 3)
    assert best["differs"]["model.arch"] == "gru"
    assert "train.seq_len" not in best["differs"], "all have the same"
    numbers = [run["number"] for run in asked(seqlm, "results", "optimizers", "--sort", "number")["runs"]]
    assert numbers == sorted(numbers)
    rates = [run["differs"]["optim.lr"] for run in asked(seqlm, "results", "optimizers", "--sort", "lr")["runs"]]
    assert rates == sorted(rates)
    two_keys = asked(seqlm, "results", "optimizers", "--sort", "lr,-number")["runs"]
    order = [(run["differs"]["optim.lr"], -int(run["number"])) for run in two_keys]
    assert order == sorted(order)
    assert asked(seqlm, "results", "optimizers", "--top", "2")["runs"] == runs[:2]
    (one,) = asked(seqlm, "results", "optimizers", "--only", "name=gru-adam")["runs"]
    assert one == {**best, "differs": {}}


def test_numbers_are_in_the_order_of_the_report_and_an_infinite_one_is_missing(tmp_path: Path) -> None:
    runs = [add(tmp_path / "s", f"run{order}", order=order) for order in range(11)]
    write_json_lines(runs[0].metrics_file, [{"epoch": 0, "val_ppl": math.inf}])
    words = ["results", "s", "--runs-dir", ".", "--sort"]
    for sort in ("number", "val_ppl"):
        found = ask([*words, sort], folder=tmp_path, env={})["runs"]
        assert [(run["number"], run["val_ppl"]) for run in found] == [(f"{place}", None) for place in range(1, 12)]


def test_runs_on_unlike_texts_are_ranked_apart_unless_by_bits_per_byte(tmp_path: Path) -> None:
    study = tmp_path / "s"
    made = [("char", 3.0, 2.0), ("word", 90.0, 1.5), ("char", 2.5, 1.6), ("word", 80.0, 1.4)]
    for order, (level, ppl, bits) in enumerate(made):
        data = {"corpus": "pydoc", "level": level}
        more: Any = {"record": {"val_bits_per_byte": bits}, "done": False, "epochs": 3}
        add_run(study, order, f"{level}{order}", "rnn", "adam", [ppl], data=data, seed=order + 1, **more)
    words = ["results", "s", "--runs-dir", "."]

    def names(*more: str) -> list[str]:
        return [one["name"] for one in ask([*words, *more], folder=tmp_path, env={})["runs"]]

    assert names() == ["char2", "char0", "word3", "word1"]
    assert names("--top", "1") == ["char2", "word3"]
    assert names("--sort", "val_bits_per_byte") == ["word3", "word1", "char2", "char0"]
    with pytest.raises(UsageError, match="do not compare"):
        open_study(study).run("best")


def test_bits_per_byte_of_a_text_with_unknown_words_are_not_ranked(tmp_path: Path) -> None:
    for order, (level, bits, lossless) in enumerate([("word", 1.0, False), ("char", 2.0, True)]):
        more: Any = {"record": {"val_bits_per_byte": bits}, "result": {"lossless": lossless}}
        more["result"] |= {"best_val_bits_per_byte": bits}
        data = {"corpus": "pydoc", "level": level}
        add_run(tmp_path / "s", order, level, "rnn", "adam", [9.0], data=data, **more)
    words = ["results", "s", "--runs-dir", ".", "--sort", "val_bits_per_byte"]
    assert [one["name"] for one in ask(words, folder=tmp_path, env={})["runs"]] == ["char", "word"]


def test_a_text_has_one_heading_over_several_studies(tmp_path: Path) -> None:
    for study, sizes in (("one", [300]), ("two", [300, 1000]), ("three", [1000])):
        for order, size in enumerate(sizes):
            data = {"corpus": "pydoc", "level": "word", "vocab_size": size}
            add_run(tmp_path / study, order, f"{study}{size}", "rnn", "adam", [9.0], data=data, seed=size)

    def texts(*studies: str) -> dict[str, str]:
        found = ask(["results", *studies, "--runs-dir", "."], folder=tmp_path, env={})["runs"]
        return {run["name"]: run["text"] for run in found}

    every = texts("one", "three", "two")
    assert every["one300"] == every["two300"] != every["two1000"] == every["three1000"]
    alone = texts("one", "three")
    assert alone["one300"] != alone["three1000"], "each study has one text, and says nothing of its vocabulary"


def test_runs_of_several_studies_are_ranked_together(seqlm: Any, runs_dir: Path) -> None:
    make_widths(runs_dir)
    one, other = (asked(seqlm, "results", study)["runs"] for study in ("optimizers", "widths"))
    both = asked(seqlm, "results", "optimizers", "widths")["runs"]
    assert sorted((run["study"], run["id"]) for run in both) == sorted((run["study"], run["id"]) for run in one + other)
    known = [run["val_ppl"] for run in both if run["val_ppl"] is not None]
    assert known == sorted(known)


def test_csv_has_a_column_for_each_key_that_differs(seqlm: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(seqlm("results", "optimizers", "--csv").out)))
    records = asked(seqlm, "results", "optimizers")["runs"]
    assert [row["id"] for row in rows] == [run["id"] for run in records]
    assert rows[0]["model.arch"] == "gru"
    assert float(rows[0]["val_ppl"]) == 110
    assert rows[-1]["test_ppl"] == ""


def test_a_name_in_the_csv_starts_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "s", "=HYPERLINK(1)", order=1)
    assert launch.main(["results", "s", "--runs-dir", str(tmp_path), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["name"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_keys_are_left_out_until_the_table_fits(
    seqlm: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    header, *_ = lines = seqlm("results", "optimizers").out.splitlines()
    assert {"run", "epoch", "time"} <= set(header.split())
    assert ("arch" in header) == (width >= 80)
    assert max(map(len, lines)) <= max(width, 62)


def test_a_key_by_which_nothing_can_be_sorted_is_one_line(seqlm: Any) -> None:
    (line,) = seqlm("results", "optimizers", "--sort", "val_pl", code=2).err.splitlines()
    assert "optim.lr" in line
    assert 'did you mean "val_ppl"' in line


# -- names of runs --------------------------------------------------------------------------------------------------


def test_the_best_run_has_that_name_and_a_number_names_none(seqlm: Any) -> None:
    (found,) = asked(seqlm, "logs", "optimizers", "best")["runs"]
    assert found["name"] == "gru-adam"
    (line,) = seqlm("logs", "optimizers", "4", code=2).err.splitlines()
    assert 'no run "4"' in line


def test_a_pattern_names_several_runs_where_several_can_be_meant(seqlm: Any) -> None:
    found = asked(seqlm, "logs", "optimizers", "gru-*")["runs"]
    assert {run["name"] for run in found} == {"gru-adam", "gru-sgd", "gru-schedule"}
    assert len(seqlm("generate", "optimizers", "gru-*", "the", code=2).err.splitlines()) == 1


# -- diff -----------------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_study_and_its_name_id_or_folder(seqlm: Any, runs_dir: Path) -> None:
    (folder,) = (path for path in (runs_dir / "optimizers").iterdir() if path.name.startswith("gru-adam-"))
    other = "optimizers/rnn-adam"
    names = [f"optimizers/{name}" for name in ("gru-adam", "best", folder.name)] + [str(folder), f"{folder}/"]
    found = [asked(seqlm, "diff", other, name)["differences"] for name in names]
    assert found[0]
    assert all(one == found[0] for one in found)
    mirrored = asked(seqlm, "diff", names[0], other)["differences"]
    assert [{**one, "a": one["b"], "b": one["a"]} for one in mirrored] == found[0]


def test_two_studies_are_compared_run_by_run(seqlm: Any, runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_dir / "optimizers", tmp_path / "copy")
    assert asked(seqlm, "diff", "optimizers", str(tmp_path / "copy"))["differences"] == []
    changed, lost = (next((tmp_path / "copy").glob(f"{name}-*")) for name in ("rnn-adam-wide", "gru-sgd"))
    write_json(changed / "result.json", {**json.loads((changed / "result.json").read_text()), "test_ppl": 1.0})
    shutil.rmtree(lost)
    found = asked(seqlm, "diff", "optimizers", str(tmp_path / "copy"))["differences"]
    assert {(one["kind"], one["key"], *one["runs"]) for one in found} == {
        ("run", "gru-sgd", "gru-sgd"),
        ("results", "test_ppl", "rnn-adam-wide"),
    }


@pytest.mark.parametrize("pair", [("optimizers/gru-adam", "optimizers"), ("optimizers/gru", "optimizers/gru-adam")])
def test_what_cannot_be_compared_is_one_line(seqlm: Any, pair: tuple[str, str]) -> None:
    assert len(seqlm("diff", *pair, code=2).err.splitlines()) == 1


# -- generate ------------------------------------------------------------------------------------------------------


def test_a_model_continues_a_prompt_of_several_words(seqlm: Any) -> None:
    words = ["generate", "optimizers", "best", "the cat", "--tokens", "6"]
    found = asked(seqlm, *words)
    assert (found["name"], found["prompt"], found["unknown"]) == ("gru-adam", "the cat", [])
    assert found == asked(seqlm, *words)
    assert found["text"] != asked(seqlm, *words, "--seed", "2")["text"]
    cold = [asked(seqlm, *words, "--temperature", "1e-9", "--seed", seed)["text"] for seed in "12"]
    assert cold[0] == cold[1], "always the likeliest"
    assert seqlm(*words).out == f"the cat{found['text']}\n"


def test_unknown_words_are_named(seqlm: Any) -> None:
    said = seqlm("generate", "optimizers", "gru-adam", "the zebra xyzzy zebra", "--tokens", "2")
    (warning,) = said.err.splitlines()
    assert warning.count("zebra") == warning.count("xyzzy") == 1
    assert said.out.startswith("the <unk> <unk> <unk>")


@pytest.mark.parametrize("has_model", [True, False])
def test_a_run_that_has_diverged_is_said_to_have(seqlm: Any, runs_dir: Path, tmp_path: Path, has_model: bool) -> None:
    shutil.copytree(runs_dir / "optimizers", tmp_path / "copy")
    (folder,) = (tmp_path / "copy").glob("gru-adam-*")
    run = RunDirectory(folder)
    run.result_file.unlink()
    fail(run, {"kind": "diverged", "message": "the loss of a step is nan"})
    if not has_model:
        run.best_checkpoint.unlink()
    said = seqlm("generate", str(folder.parent), folder.name, "the", "--tokens", "2", code=0 if has_model else 1)
    (line,) = said.err.splitlines()
    assert "diverged: the loss of a step is nan" in line
    assert ("best epoch" in line) == has_model


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["gru-adam", " "], 2, "prompt: expected at least one word"),
        (["gru-sgd", "the"], 1, "gru-sgd has no trained model"),
        (["nothing", "the"], 2, 'no run "nothing"'),
    ],
)
def test_what_cannot_be_written_is_one_line(seqlm: Any, words: list[str], code: int, message: str) -> None:
    (line,) = seqlm("generate", "optimizers", *words, code=code).err.splitlines()
    assert message in line
