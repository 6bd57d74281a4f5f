"""One rank's life as its files tell it afterwards."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqlm.errors import DivergedError, FileError
from seqlm.lease import is_released
from seqlm.rundir import RunDirectory, read_json
from seqlm.training import attempt, worker
from seqlm.training.trainer import Trainer
from tests.training.studies import make_config, make_run, write_text

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "text")))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    monkeypatch.setattr(attempt.StopSignal, "install", lambda self: None)  # the handlers of this process stay
    return make_run(tmp_path / "study" / "run", make_config(epochs=1))


def record_of(run: RunDirectory) -> dict[str, Any]:
    return read_json(run.worker_file(1)) or {}


def ended_by(monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]) -> None:
    def train(self: Trainer) -> None:
        assert "ended_at" not in record_of(self.run), "not before the end"
        end()

    monkeypatch.setattr(Trainer, "train", train)


def diverge() -> None:
    raise DivergedError("the loss is nan")


def stop() -> None:
    raise attempt.StopRequested


def fill_the_disk() -> None:
    raise FileError("cannot write last.pt: no space left on device")


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("end", "code"),
    [(nothing, 0), (diverge, 1), (stop, attempt.EXIT_STOPPED), (fill_the_disk, attempt.EXIT_STORAGE)],
)
def test_however_an_attempt_ends_its_worker_leaves_when_it_began_and_when_that_was(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], code: int
) -> None:
    ended_by(monkeypatch, end)
    assert worker.main([str(run.path)]) == code
    record = record_of(run)
    assert TIME.fullmatch(record["started_at"])
    assert TIME.fullmatch(record["ended_at"])
    assert record["started_at"] <= record["ended_at"]
    assert record["pid"] == os.getpid(), "the rest of the record stands"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_on_a_file_system_without_locks_and_links_a_worker_owns_its_run_by_the_lease_alone(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    def refuse_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    def second_worker() -> None:
        assert run.observe().state == "running"
        assert worker.main([str(run.path)]) == attempt.EXIT_BUSY, "refused by the record in worker.lock"
        run.worker_lock_file.unlink()
        assert run.observe().state == "running", "by the lease"

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "link", refuse_links)
    ended_by(monkeypatch, second_worker)
    assert worker.main([str(run.path)]) == 0
    assert is_released(run.lease_dir)
    assert run.observe().state == "pending"


def test_a_record_that_cannot_be_completed_changes_nothing_about_the_end(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_folder() -> None:
        run.worker_file(1).unlink()
        run.attempt_dir(1).rmdir()

    ended_by(monkeypatch, lose_the_folder)
    assert worker.main([str(run.path)]) == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_configuration_that_cannot_be_read_just_now_is_trouble_with_the_disk(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    real = os.open

    def fails(path: Any, *arguments: Any, **options: Any) -> int:
        if path == str(run.config_file):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    assert worker.main([str(run.path)]) == 74
    assert capsys.readouterr().err == f"error: cannot read {run.config_file}: {os.strerror(number)}\n"


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main([str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
