import math
import sys
import time
from pathlib import Path

import pytest

from seqlm.data.corpus import load_corpus
from seqlm.errors import EXIT_USAGE
from seqlm.files import read_json
from seqlm.rundir import RunDirectory
from seqlm.training import attempt as attempts
from seqlm.training import worker
from seqlm.training.distributed import Rank
from seqlm.training.progress import Progress
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    config = make_config(epochs=2)
    run = make_run(tmp_path / "run", config)
    run.attempt_dir(3).mkdir(parents=True)
    return Attempt(run, load_corpus(config.data, write_text(tmp_path / "text")), attempt=3)


@pytest.mark.parametrize(("seconds", "written"), [("1", 5), ("2.5", 2)])
def test_the_file_is_written_at_intervals_however_many_steps_go_by(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, seconds: str, written: int
) -> None:
    monkeypatch.setenv("SEQLM_PROGRESS_SECONDS", seconds)
    monkeypatch.setattr(time, "monotonic", clock := Clock())
    path = attempt.run.progress_file(3)
    progress = Progress(attempt.trainer, attempt.made)
    seen = set()
    for event in attempt.trainer.events(1):
        progress.show(event)
        clock.now += 0.25
        if path.exists():
            seen.add((read_json(path) or {})["step"])
        if clock.now == 5:
            break
    assert len(seen - {0}) == written, "besides the one before the first step"
    assert [entry.name for entry in path.parent.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    progress = Progress(attempt.trainer, attempt.made)
    for event in attempt.trainer.events(2):
        progress.show(event)
    shown = capsys.readouterr().out
    assert ("step/s" in shown) == is_terminal
    assert (f"/{attempt.trainer.steps}  loss" in shown) != is_terminal
    assert [line for line in shown.replace("\r", "\n").splitlines() if line.startswith("epoch 2/2 done")]


def test_a_folder_that_cannot_be_written_stops_no_run(attempt: Attempt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        attempt.made.run = RunDirectory(tmp_path / folder)
        Progress(attempt.trainer, attempt.made).before_window()


def test_ranks_other_than_the_first_write_and_print_nothing(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt.trainer.rank = Rank(index=1)
    progress = Progress(attempt.trainer, attempt.made)
    for event in attempt.trainer.events(1, before_window=progress.before_window):
        progress.show(event)
    assert not attempt.run.progress_file(3).exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "phase"), [("1e-9", "valid"), ("1e9", "train")])
def test_the_validation_of_a_long_epoch_is_shown_and_that_of_a_short_one_is_not(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, seconds: str, phase: str
) -> None:
    monkeypatch.setenv("SEQLM_PROGRESS_SECONDS", seconds)
    attempt.train()
    record = read_json(attempt.run.progress_file(3)) or {}
    assert record["phase"] == phase
    assert 1 <= record["step"] <= record["steps"]
    assert 0 < record["train_loss"] < 5
    assert record["train_ppl"] == pytest.approx(math.exp(record["train_loss"]))
    assert record["train_tokens_per_second"] > 0
    assert record["updated_at"].endswith("+00:00")


def test_a_wrong_interval_is_an_error_of_the_launcher(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_PROGRESS_SECONDS", "soon")
    assert worker.main([str(attempt.run.path)]) == EXIT_USAGE


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("variable", "gpu"), [("3", "3"), ("", None), (None, None)])
def test_the_worker_records_which_gpu_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, gpu: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    run = make_run(tmp_path / "run", make_config())
    attempts.Attempt(run=run, rank=Rank(), number=1).record_start()
    record = read_json(run.attempt_dir(1) / "worker.json") or {}
    assert record["gpu"] == gpu
    assert record["device"]
