"""An interrupted run ends in the weights and metrics of an uninterrupted one, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from seqlm.errors import EXIT_STOPPED
from seqlm.rundir import RunDirectory
from tests.outcome import Outcome, outcome
from tests.seqlm.training.lives import End, live, position_of
from tests.seqlm.training.studies import make_config, make_run, write_text

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("exact-resume")]  # its fixtures take long to make

ARCHITECTURES = ("rnn", "gru", "transformer")
EPOCHS = 3
KILL, TERM, USR2, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), train_lines=55)  # epochs of 9 steps


class Lab:
    """Runs of the same configuration: a quiet one, made once for each kind, and others."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.folder = folder
        self.text = text
        self._quiet: dict[tuple[str, int], Outcome] = {}

    def run(self, name: str, arch: str) -> Path:
        config = make_config(arch, optimizer="adamw", lr=0.01, epochs=EPOCHS, keep=0.7)
        return make_run(self.folder / name, config).path

    def quiet(self, arch: str, ranks: int) -> Outcome:
        if (arch, ranks) not in self._quiet:
            folder = self.run(f"quiet-{arch}-{ranks}", arch)
            assert live(folder, self.text, ranks=ranks) == [0] * ranks
            self._quiet[arch, ranks] = outcome(RunDirectory(folder))
        return self._quiet[arch, ranks]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("runs"), text)


@pytest.mark.parametrize(("arch", "ranks"), [*((arch, 1) for arch in ARCHITECTURES), ("gru", 2), ("transformer", 3)])
def test_killed_in_mid_epoch_it_goes_on_from_the_step_that_was_saved(lab: Lab, arch: str, ranks: int) -> None:
    folder = lab.run(f"killed-{arch}-{ranks}", arch)
    codes = live(folder, lab.text, ranks=ranks, end=End(by=KILL, at="step", number=17), save_every=3)
    assert codes[0] == -KILL
    position = position_of(folder)
    assert position.epoch == 1, "in mid-run"
    assert position.step > 0, "and in mid-epoch"
    assert live(folder, lab.text, ranks=ranks) == [0] * ranks
    assert outcome(RunDirectory(folder)) == lab.quiet(arch, ranks)


@pytest.mark.parametrize(
    ("arch", "ranks", "at"), [("gru", 1, "save"), ("transformer", 1, "saved"), ("rnn", 1, "saved"), ("gru", 2, "save")]
)
def test_killed_at_an_epochs_end_it_loses_that_epoch_or_nothing(lab: Lab, arch: str, ranks: int, at: Any) -> None:
    folder = lab.run(f"{at}-{arch}-{ranks}", arch)
    assert live(folder, lab.text, ranks=ranks, end=End(by=KILL, at=at, number=2))[0] == -KILL
    assert position_of(folder).epoch == (1 if at == "save" else 2)
    assert live(folder, lab.text, ranks=ranks) == [0] * ranks
    assert outcome(RunDirectory(folder)) == lab.quiet(arch, ranks)


@pytest.mark.parametrize(("arch", "number"), [("transformer", 13), ("gru", 9), ("rnn", 10)])
def test_a_signal_in_the_middle_of_a_step_is_obeyed_after_that_step(lab: Lab, arch: str, number: int) -> None:
    folder = lab.run(f"middle-{arch}-{number}", arch)
    assert live(folder, lab.text, end=End(by=USR2, at="middle", number=number)) == [EXIT_STOPPED]
    position = position_of(folder)
    assert steps_per_epoch(folder) == 9, "so that one signal comes in the last step of an epoch"
    steps = position.epoch * 9 + position.step
    assert steps == number, "the step with the signal was finished"
    assert live(folder, lab.text) == [0]
    assert outcome(RunDirectory(folder)) == lab.quiet(arch, 1)


def steps_per_epoch(folder: Path) -> int:
    log = (RunDirectory(folder).attempt_dir(1) / "rank-0.log").read_text()
    return int(log.partition(" steps of epoch")[0].rpartition(" ")[2])


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_stop_after_the_same_step_whichever_of_them_got_the_signal(lab: Lab, rank: int) -> None:
    folder = lab.run(f"agreed-{rank}", "gru")
    end = End(by=TERM, at="step", number=13, rank=rank)
    assert live(folder, lab.text, ranks=2, end=end) == [EXIT_STOPPED, EXIT_STOPPED]
    assert position_of(folder).step > 0
    assert live(folder, lab.text, ranks=2) == [0, 0]
    assert outcome(RunDirectory(folder)) == lab.quiet("gru", 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_in_an_evaluation_is_obeyed_after_the_next_step(lab: Lab, ranks: int) -> None:
    folder = lab.run(f"validation-{ranks}", "gru")
    end = End(by=TERM, at="validation", number=3)
    assert live(folder, lab.text, ranks=ranks, end=end) == [EXIT_STOPPED] * ranks
    position = position_of(folder)
    assert (position.epoch, position.step) == (1, 1)
    assert live(folder, lab.text, ranks=ranks) == [0] * ranks
    assert outcome(RunDirectory(folder)) == lab.quiet("gru", ranks)


def test_a_signal_in_the_test_comes_too_late_to_stop_the_run(lab: Lab) -> None:
    folder = lab.run("test", "gru")
    assert live(folder, lab.text, end=End(by=TERM, at="test", number=3)) == [0]
    assert outcome(RunDirectory(folder)) == lab.quiet("gru", 1)


def test_a_run_that_is_interrupted_again_and_again_ends_all_the_same(lab: Lab) -> None:
    folder = lab.run("again", "gru")
    ends = [
        End(by=INT, at="step", number=1),
        End(by=KILL, at="step", number=5),
        End(by=TERM, at="middle", number=2),
        End(by=USR2, at="validation", number=1),
        End(by=KILL, at="save", number=3),
        End(by=TERM, at="step", number=11),
    ]
    for end in ends:
        assert live(folder, lab.text, end=end, save_every=2) != [0]
    assert live(folder, lab.text) == [0]
    assert outcome(RunDirectory(folder)) == lab.quiet("gru", 1)


def test_without_dropout_another_number_of_ranks_changes_only_the_rounding(lab: Lab) -> None:
    config = make_config("gru", lr=0.5, epochs=2)
    folders = [make_run(lab.folder / name, config).path for name in ("alone", "shared")]
    assert live(folders[0], lab.text) == [0]
    assert live(folders[1], lab.text, end=End(by=TERM, at="step", number=5)) == [EXIT_STOPPED]
    assert live(folders[1], lab.text, ranks=3) == [0] * 3
    alone, shared = (outcome(RunDirectory(folder)).metrics for folder in folders)
    for name in ("train_loss", "val_loss"):
        assert [epoch[name] for epoch in shared] == pytest.approx([epoch[name] for epoch in alone], rel=1e-5)


def test_the_same_attempt_twice_is_equal_to_the_last_bit_and_another_seed_is_not(lab: Lab) -> None:
    """What makes the comparisons of this file say something."""
    folder = lab.run("twice", "rnn")
    assert live(folder, lab.text) == [0]
    assert outcome(RunDirectory(folder)) == lab.quiet("rnn", 1)
    other = make_run(
        lab.folder / "seed", make_config("rnn", optimizer="adam", lr=0.01, epochs=EPOCHS, keep=0.7, seed=1)
    )
    assert live(other.path, lab.text) == [0]
    found = outcome(RunDirectory(other.path))
    weights = {name for name in found.tensors if " model " in name}
    assert weights | {"metrics.jsonl", "result.json"} <= set(lab.quiet("rnn", 1).differences(found))
