"""An interrupted run ends in the weights and metrics of an uninterrupted one, bit for bit.

Here by signals to processes; ``test_trainer.py`` stops each architecture in its own process.
"""

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

KILL, TERM, USR2, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), train_lines=55)  # epochs of 9 steps


class Lab:
    """Runs of the same configuration: a quiet one for each number of ranks, and others."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.folder = folder
        self.text = text
        self._quiet: dict[int, Outcome] = {}

    def run(self, name: str, seed: int = 1111) -> Path:
        config = make_config("gru", optimizer="adamw", lr=0.01, epochs=3, keep=0.7, seed=seed)
        return make_run(self.folder / name, config).path

    def quiet(self, ranks: int) -> Outcome:
        if ranks not in self._quiet:
            folder = self.run(f"quiet-{ranks}")
            assert live(folder, self.text, ranks=ranks) == [0] * ranks
            self._quiet[ranks] = outcome(RunDirectory(folder))
        return self._quiet[ranks]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Lab:
    return Lab(tmp_path_factory.mktemp("runs"), text)


def test_killed_ranks_lose_what_was_not_saved_and_no_more(lab: Lab) -> None:
    folder = lab.run("killed")

    def killed(save_every: int | None = None, **end: Any) -> tuple[int, int]:
        assert live(folder, lab.text, ranks=2, end=End(by=KILL, **end), save_every=save_every)[0] == -KILL
        return position_of(folder).epoch, position_of(folder).step

    epoch, step = killed(at="step", number=17, save_every=3)
    assert (epoch, step > 0) == (1, True), "in mid-run, and in mid-epoch"
    assert killed(at="save") == (epoch, step), "before the end of the epoch was saved"
    assert killed(at="saved") == (2, 0)
    assert live(folder, lab.text, ranks=2) == [0, 0]
    assert outcome(RunDirectory(folder)) == lab.quiet(2)


def test_a_signal_in_the_last_step_of_an_epoch_is_obeyed_after_that_step(lab: Lab) -> None:
    folder = lab.run("middle")
    assert live(folder, lab.text, end=End(by=USR2, at="middle", number=9)) == [EXIT_STOPPED]
    assert steps_per_epoch(folder) == 9
    position = position_of(folder)
    assert position.epoch * 9 + position.step == 9, "the step with the signal was finished"
    assert live(folder, lab.text) == [0]
    assert outcome(RunDirectory(folder)) == lab.quiet(1)


def steps_per_epoch(folder: Path) -> int:
    log = (RunDirectory(folder).attempt_dir(1) / "rank-0.log").read_text()
    return int(log.partition(" steps of epoch")[0].rpartition(" ")[2])


def test_ranks_stop_after_the_same_step_wherever_a_signal_comes_and_not_in_the_test(lab: Lab) -> None:
    folder = lab.run("agreed")
    end = End(by=TERM, at="step", number=13, rank=1)
    assert live(folder, lab.text, ranks=2, end=end) == [EXIT_STOPPED, EXIT_STOPPED]
    assert position_of(folder).step > 0
    end = End(by=TERM, at="validation", number=3)
    assert live(folder, lab.text, ranks=2, end=end) == [EXIT_STOPPED, EXIT_STOPPED]
    assert (position_of(folder).epoch, position_of(folder).step) == (2, 1), "after the next step"
    assert live(folder, lab.text, ranks=2, end=End(by=TERM, at="test", number=3)) == [0, 0], "too late"
    assert outcome(RunDirectory(folder)) == lab.quiet(2)


def test_three_ranks_that_reduce_in_one_buffer_end_as_if_nothing_had_stopped_them(lab: Lab) -> None:
    """Three: the order in which ranks are added up matters."""
    flat = {"SEQLM_CAPTURE_RANKS": "1"}
    quiet, folder = lab.run("flat-quiet"), lab.run("flat")
    assert live(quiet, lab.text, ranks=3, variables=flat) == [0] * 3
    end = End(by=KILL, at="step", number=6)
    assert live(folder, lab.text, ranks=3, end=end, save_every=2, variables=flat)[0] == -KILL
    end = End(by=TERM, at="step", number=7, rank=2)
    assert live(folder, lab.text, ranks=3, end=end, variables=flat) == [EXIT_STOPPED] * 3
    assert position_of(folder).step > 0
    assert live(folder, lab.text, ranks=3, variables=flat) == [0] * 3
    assert outcome(RunDirectory(folder)) == outcome(RunDirectory(quiet))


def test_a_run_that_is_interrupted_again_and_again_ends_all_the_same(lab: Lab) -> None:
    folder = lab.run("again")
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
    assert outcome(RunDirectory(folder)) == lab.quiet(1)


def test_without_dropout_another_number_of_ranks_changes_only_the_rounding(lab: Lab) -> None:
    config = make_config("gru", lr=0.5, epochs=2)
    folders = [make_run(lab.folder / name, config).path for name in ("alone", "shared")]
    assert live(folders[0], lab.text) == [0]
    assert live(folders[1], lab.text, end=End(by=TERM, at="step", number=5)) == [EXIT_STOPPED]
    assert live(folders[1], lab.text, ranks=3) == [0] * 3
    alone, shared = (outcome(RunDirectory(folder)).metrics for folder in folders)
    for name in ("train_loss", "val_loss"):
        assert [epoch[name] for epoch in shared] == pytest.approx([epoch[name] for epoch in alone], rel=1e-5)


def test_another_seed_ends_in_other_weights_and_metrics(lab: Lab) -> None:
    """What makes the comparisons of this file say something."""
    other = lab.run("seed", seed=1)
    assert live(other, lab.text) == [0]
    found = outcome(RunDirectory(other))
    weights = {name for name in found.tensors if " model " in name}
    assert weights | {"metrics.jsonl", "result.json"} <= set(lab.quiet(1).differences(found))
