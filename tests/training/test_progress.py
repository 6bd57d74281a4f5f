from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from seqlm.data.corpus import load_corpus
from seqlm.errors import EXIT_USAGE
from seqlm.files import read_json
from seqlm.training import attempt, worker
from seqlm.training.distributed import Rank
from seqlm.training.progress import Progress
from seqlm.training.progress_file import ProgressFile
from seqlm.training.trainer import Trainer
from tests.training.studies import make_config, make_run, write_text

STATE: dict[str, Any] = {"epoch": 2, "steps": 100, "train_loss": 5.25, "train_tokens_per_second": 1000.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_file_is_written_once_a_second_however_many_steps_go_by(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "progress.json"
    file = ProgressFile(path, clock=clock)
    seen = []
    for step in range(41):  # 10 s
        clock.now = step / 4
        file.write(**STATE, step=step, phase="train")
        seen.append(json.loads(path.read_text())["step"])
    assert sorted(set(seen)) == list(range(0, 41, 4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress.json"]


def test_the_file_is_written_as_often_as_is_asked_for(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "progress.json"
    file = ProgressFile(path, every_seconds=10, clock=clock)
    seen = []
    for second in range(31):
        clock.now = second
        file.write(**STATE, step=second, phase="train")
        seen.append(json.loads(path.read_text())["step"])
    assert sorted(set(seen)) == [0, 10, 20, 30]


def test_a_worker_writes_as_often_as_its_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def made(path: Path, *, every_seconds: float, **options: Any) -> ProgressFile:
        asked.append(every_seconds)
        return ProgressFile(path, every_seconds=every_seconds, **options)

    monkeypatch.setattr("seqlm.training.trainer.ProgressFile", made)
    run = make_run(tmp_path / "run", make_config(epochs=1))
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "text")))
    monkeypatch.setenv("SEQLM_PROGRESS_SECONDS", "7.5")
    assert worker.main([str(run.path)]) == 0
    assert asked == [7.5]
    monkeypatch.setenv("SEQLM_PROGRESS_SECONDS", "soon")
    assert worker.main([str(run.path)]) == EXIT_USAGE


def test_the_file_says_where_the_worker_stands(tmp_path: Path) -> None:
    ProgressFile(tmp_path / "progress.json").write(**STATE, step=30, phase="valid")
    record = read_json(tmp_path / "progress.json") or {}
    assert record.pop("updated_at").endswith("+00:00")
    assert record == {**STATE, "step": 30, "phase": "valid", "train_ppl": pytest.approx(math.exp(5.25))}


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    ProgressFile(tmp_path / "progress.json").write(**{**STATE, "train_loss": math.nan}, step=1, phase="train")
    record = read_json(tmp_path / "progress.json") or {}
    assert (record["train_loss"], record["train_ppl"]) == (None, None)


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        ProgressFile(tmp_path / folder / "progress.json").write(**STATE, step=1, phase="train")


def test_ranks_other_than_the_first_write_nothing(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    progress = Progress(epochs=1, steps=4, enabled=False, file=file, stream=io.StringIO())
    progress.epoch_begins(0, 0.1)
    progress.steps_done(1, 5.0, 100)
    progress.validation_begins()
    assert not list(tmp_path.iterdir())


def test_the_validation_of_a_long_epoch_is_told_at_once_and_that_of_a_short_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = []
    for seconds in (0.5, 30.0):
        clock = Clock()
        monkeypatch.setattr("seqlm.training.progress.time.perf_counter", clock)
        file = ProgressFile(tmp_path / "progress.json", clock=lambda: 0.0)
        progress = Progress(epochs=1, steps=4, enabled=True, file=file, stream=io.StringIO())
        progress.epoch_begins(0, 0.1)
        clock.now = seconds
        progress.steps_done(4, 5.0, 100)
        progress.validation_begins()
        phases.append((read_json(tmp_path / "progress.json") or {})["phase"])
    assert phases == ["train", "valid"]


def test_a_trainer_tells_of_the_epoch_it_is_in(tmp_path: Path) -> None:
    config = make_config(epochs=1)
    run = make_run(tmp_path / "run", config)
    run.attempt_dir(3).mkdir(parents=True)
    corpus = load_corpus(config.data, write_text(tmp_path / "text"))
    Trainer(config, corpus, run, rank=Rank(), attempt=3).train()
    record = read_json(run.progress_file(3)) or {}
    assert (record["epoch"], record["phase"]) in ((0, "train"), (0, "valid"))  # about one state a second is written
    assert 1 <= record["step"] <= record["steps"]
    assert 0 < record["train_loss"] < 5
    assert record["train_tokens_per_second"] > 0


@pytest.mark.parametrize(("variable", "recorded"), [("3", "3"), ("", None), (None, None)])
def test_the_worker_records_which_gpu_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, recorded: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    run = make_run(tmp_path / "run", make_config())
    with attempt.recorded(run, Rank(), 1):
        pass
    record = read_json(run.attempt_dir(1) / "worker.json") or {}
    assert record["gpu"] == recorded
    assert record["device"]
