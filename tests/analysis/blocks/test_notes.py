"""Notes of manifests: whose they are, and results in place of references."""

from pathlib import Path
from typing import Any, get_args

import pytest

from analysis.blocks.notes import UNKNOWN, note_blocks
from analysis.blocks.section import Note
from analysis.study import units
from analysis.study.record import METRICS
from analysis.study.study import load_study
from seqlm import references
from seqlm.files import write_json
from tests.analysis.hand_made import add_run, digits


def notes_of(*folders: Path) -> list[Note]:
    return note_blocks("results", load_study(*folders))


def note(text: str, **more: Any) -> dict[str, Any]:
    return {"part": "results", "text": text, **more}


def test_a_note_is_headed_by_the_manifest_that_has_it(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0])
    notes = [note("One.", manifest="first.toml"), note("Two.", manifest="b.toml"), note("Old.")]
    write_json(tmp_path / "study.json", {"notes": notes})
    one, two, old = notes_of(tmp_path)
    assert "first" in one.title.split()
    assert "b" in two.title.split()
    assert old.text == "Old."
    assert not any("author" in found.title.lower() for found in (one, two, old))


def test_a_reference_is_replaced_by_the_result(tmp_path: Path) -> None:
    study = tmp_path / "s"
    run = add_run(study, 0, "rnn-keep0.5", "rnn", "sgd", [100.0, 90.25, 95.0], train=[80.0, 60.0, 50.0])
    add_run(study, 1, "gru", "gru", "sgd", [70.0] * 3, seed=1)
    add_run(study, 2, "gru", "gru", "sgd", [90.0] * 3, seed=2)
    add_run(study, 3, "wide", "gru", "sgd", [82.0] * 3, hidden_size=512)
    waits = add_run(study, 4, "waits", "rnn", "adam", [50.0], done=False)
    text = "{run.rnn-keep0.5.val_ppl} {best.gru.val_ppl} {run.waits.val_ppl} {best.transformer.val_ppl} {run.gone.gap}"
    runs = {"rnn-keep0.5": digits(run), "waits": digits(waits), "gone": "0" * 8}
    write_json(study / "study.json", {"notes": [note(text, runs=runs)]})
    (found,) = notes_of(study)
    mean = units.perplexity((70.0 * 90.0) ** 0.5)
    assert found.text == f"90.25 {mean} {UNKNOWN} {UNKNOWN} {UNKNOWN}"
    # and in a report of several studies, those of its own
    add_run(tmp_path / "other", 0, "gru", "gru", "sgd", [10.0] * 3)
    (again,) = notes_of(tmp_path / "other", study)
    assert again.text == found.text


@pytest.mark.parametrize("metric", references.METRICS)
def test_every_measure_of_a_run_can_be_referred_to(tmp_path: Path, metric: str) -> None:
    run = add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0], device="A")
    write_json(tmp_path / "study.json", {"notes": [note(f"{{run.a.{metric}}}", runs={"a": digits(run)})]})
    (found,) = notes_of(tmp_path)
    assert any(map(str.isdigit, found.text))


def test_manifest_and_report_know_the_same_measures() -> None:
    assert set(METRICS) == set(get_args(references.Metric)) | {"seconds_to_common"}, "which is of a pair of runs"


@pytest.mark.parametrize(
    "text", ["a {b} c", r"$\frac{1}{2.5}$", "{run.a}", "{best.gru.speed}", "{ run.a.val_ppl }", "{}"]
)
def test_other_braces_stay(tmp_path: Path, text: str) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0])
    write_json(tmp_path / "study.json", {"notes": [note(text)]})
    (found,) = notes_of(tmp_path)
    assert found.text == text
