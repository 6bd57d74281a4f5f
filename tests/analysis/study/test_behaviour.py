import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest

from analysis.report import report_files
from analysis.study.behaviour import LARGEST_LOSSES, read_behaviour
from analysis.study.study import load_study
from seqlm import reading
from seqlm.rundir import RunDirectory
from tests.analysis.behaviour_made_up import BLOCKS, add_behaviour, add_samples, raw_sample
from tests.analysis.synthetic import make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path, 0, epochs=2)
    add_behaviour(run)
    add_samples(run, [raw_sample(0, ["a"]), raw_sample(1, ["b"])])
    return run


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    "damage", ["a folder", "a pipe", "a link", "a cut line", pytest.param("nothing whole", marks=pytest.mark.slow)]
)
def test_samples_that_cannot_be_read_cost_the_samples_alone(run: RunDirectory, damage: str) -> None:
    text = run.samples_file.read_text("utf-8")
    run.samples_file.unlink()
    match damage:
        case "a folder":
            run.samples_file.mkdir()
        case "a pipe":
            os.mkfifo(run.samples_file)
        case "a link":
            run.samples_file.symlink_to(run.config_file)
        case "a cut line":
            run.samples_file.write_text(text[:-20], "utf-8")
        case _:
            run.samples_file.write_text('{"index": 0')
    behaviour, warnings = read_behaviour(run)
    assert behaviour is not None
    assert behaviour.loss_per_step.zero_state.tolist() == [6.0, 5.0, 4.5, 4.25]
    assert [sample.index for sample in behaviour.samples] == ([0] if damage == "a cut line" else [])
    (warning,) = warnings
    assert "samples.jsonl" in warning
    if damage == "nothing whole":
        files = report_files(load_study(run.path.parent))
        assert "figures/gradient-norms.svg" in files
        assert "samples.jsonl" in files["index.html"].decode()


def test_a_checkpoint_that_cannot_be_read_is_a_warning_and_the_behaviour_stays(run: RunDirectory) -> None:
    run.best_checkpoint.parent.mkdir(exist_ok=True)
    run.best_checkpoint.mkdir()
    behaviour, (warning,) = read_behaviour(run)
    assert behaviour is not None
    assert "best.pt: expected a regular file, found a folder" in warning


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("version", 2, "version"),
        ("version", 5, "version"),
        ("losses", {"blocks": -1, "sha256": ""}, "losses"),
        ("seconds", True, "seconds"),
        ("best_epoch", 1.0, "best_epoch"),
        ("seq_len", 0, "seq_len"),
        ("level", None, "level"),
        ("loss_per_step", [], "loss_per_step"),
        (
            "gradient_norms",
            {"window": 3, "columns": 20, "overall": [1.0], "mean_of_norms": [1.0, 2.0], "layers": [[1.0]]},
            "gradient_norms",
        ),
    ],
)
def test_a_value_that_is_not_valid_is_damage_that_names_its_key(
    run: RunDirectory, key: str, value: object, named: str
) -> None:
    add_behaviour(run, **{key: value})
    behaviour, (warning,) = read_behaviour(run)
    assert behaviour is None
    assert "behaviour.json" in warning
    assert f"({named}" in warning


def test_a_missing_number_is_nan_and_not_damage(run: RunDirectory) -> None:
    losses = {"window": 2, "windows": 5, "columns": 20, "zero_state": [None, 4.0], "carried_state": [5, 4.0]}
    add_behaviour(run, loss_per_step=losses)
    behaviour, warnings = read_behaviour(run)
    assert behaviour is not None, warnings
    assert math.isnan(behaviour.loss_per_step.zero_state[0])


# -- losses of blocks -----------------------------------------------------------------------------------------------


def test_the_losses_of_blocks_are_those_of_the_file(run: RunDirectory) -> None:
    behaviour, warnings = read_behaviour(run)
    assert behaviour is not None
    assert warnings == []
    np.testing.assert_equal(behaviour.loss_per_step.blocks, np.array(BLOCKS, np.float32))
    assert behaviour.loss_per_step.tokens == 200


def plant(run: RunDirectory, content: bytes, **losses: int) -> None:
    """Write ``losses.f32`` as somebody would who means harm: with the digest and the sizes that go with it."""
    said = {"blocks": 2, **losses, "sha256": hashlib.sha256(content).hexdigest()}
    add_behaviour(run, losses=said)
    run.losses_file.write_bytes(content)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "a pipe", "a link", "huge", "more than it says"])
def test_losses_that_cannot_be_used_cost_the_losses_alone(run: RunDirectory, damage: str) -> None:
    content = run.losses_file.read_bytes()
    run.losses_file.unlink()
    match damage:
        case "cut":
            run.losses_file.write_bytes(content[:-1])
        case "other":
            run.losses_file.write_bytes(bytes(len(content)))
        case "a pipe":
            os.mkfifo(run.losses_file)
        case "a link":
            run.losses_file.symlink_to(run.config_file)
        case "huge":
            with run.losses_file.open("wb") as sparse:
                sparse.truncate(2**40)
        case "more than it says":
            plant(run, content, blocks=2**62)
    behaviour, (warning,) = read_behaviour(run)
    assert behaviour is not None
    assert "losses.f32" in warning
    assert behaviour.loss_per_step.blocks is None
    assert behaviour.loss_per_step.zero_state.tolist() == [6.0, 5.0, 4.5, 4.25]
    assert len(behaviour.samples) == 2
    if damage == "huge":
        assert f"at most {LARGEST_LOSSES:,} bytes" in warning


def test_what_is_no_loss_is_not_known(run: RunDirectory) -> None:
    nonsense = [math.inf, -math.inf, -1.0, math.nan, 2.0, 3e38]
    plant(run, np.array([*nonsense, 1.0, 1.0], "<f4").tobytes())
    behaviour, warnings = read_behaviour(run)
    assert behaviour is not None, warnings
    assert behaviour.loss_per_step.blocks is not None
    assert np.isnan(behaviour.loss_per_step.blocks).ravel().tolist() == [True] * 4 + [False] * 4


def test_the_losses_of_many_runs_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's study may have thousands of files that are each as large as is read."""
    runs = [make_run(tmp_path / "many", order, epochs=2) for order in (0, 3)]
    for run in runs:
        plant(run, np.ones(100_000, "<f4").tobytes(), blocks=25_000)
    monkeypatch.setattr(reading, "LARGEST_TOGETHER", 600_000)
    study = load_study(tmp_path / "many")
    have = [study.behaviours[run.id].loss_per_step.blocks is not None for run in runs]
    assert sorted(have) == [False, True]
    (warning,) = study.warnings
    assert "losses.f32" in warning
