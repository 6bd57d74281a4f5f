"""A file that cannot be read or written: the trouble of its own run, or, of a queue, of nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import pytest

from jobs.launch import dispatch
from jobs.manifests.policy import Policy
from jobs.spec import Submission
from seqlm import ends, rundir
from seqlm.errors import FileError
from seqlm.files import write_json_lines
from tests.cancelling import cancel
from tests.fakes import FakeBackend
from tests.jobs.launch.test_dispatch import finish, run_all, todo

METRICS = [{"epoch": 0, "val_ppl": 9.0}]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)


@final
class Disk:
    """Refuses a number of calls on some paths with an error of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.refused = 0

    def refuse(self, method: str, wanted: Callable[[Path], bool], number: int, *, times: float) -> None:
        """``method`` of :class:`Path`, or opening to ``read``, where ``wanted`` says so."""
        where: Any = os if method == "read" else Path
        name = "open" if method == "read" else method
        real = getattr(where, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            writes = where is os and arguments[0] & (os.O_WRONLY | os.O_RDWR)
            if not writes and wanted(Path(path)) and self.refused < times:
                self.refused += 1
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *arguments, **options)

        self._monkeypatch.setattr(where, name, call)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_run_that_stays_unreadable_fails_alone_with_the_kind_node(tmp_path: Path, disk: Disk) -> None:
    first, second, third = todo(tmp_path, 3)
    failed: list[Path] = []
    disk.refuse("read", lambda path: bool(failed) and path == first.run.metrics_file, errno.EIO, times=float("inf"))

    def work(submission: Submission) -> int:
        if submission.run_dir != first.run.path:
            return finish(submission)
        failed.append(submission.run_dir)
        return 3

    backend = FakeBackend(work, slots=1)
    run_all(backend, [first, second, third], policy=Policy(max_stalled_retries=2))
    failed.clear()
    seen = first.run.observe()
    assert (seen.state, seen.kind) == ("failed", "node")
    line = f"cannot read {first.run.metrics_file}: Input/output error, after 2 retries in a row without progress"
    assert seen.reason == f"node: {line}"
    assert {item.run.observe().state for item in (second, third)} == {"done"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_queue_that_cannot_be_written_ends_nothing_and_is_written_later(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Mapping[str, str]] = []
    refused = []

    def write_queue(study_dir: Path, waiting: Mapping[str, str], request: int | None) -> None:
        if len(refused) < 2:
            refused.append(waiting)
            raise FileError.from_os_error("write", "queue.json", OSError(number, os.strerror(number)))
        told.append(waiting)

    items = todo(tmp_path, 4)
    backend = FakeBackend(finish, slots=1)
    monkeypatch.setattr(dispatch, "write_queue", write_queue)
    run_all(backend, items, writes_queue=True)
    assert not backend.stopped
    assert all(item.run.observe().state == "done" for item in items)
    assert len(refused) == 2
    assert told[-1] == {}
    line = f"warning: cannot write queue.json: {os.strerror(number)}; status shows an older queue\n"
    assert capsys.readouterr().err == line


def test_a_file_replaced_by_another_host_while_it_is_read_is_opened_again(tmp_path: Path, disk: Disk) -> None:
    (item,) = todo(tmp_path, 1)
    write_json_lines(item.run.metrics_file, METRICS)
    disk.refuse("read", lambda path: path == item.run.metrics_file, errno.ESTALE, times=1)
    assert item.run.read_metrics() == (METRICS, [])
    disk.refused = -10
    with pytest.raises(FileError, match="Stale file handle"):
        rundir.read_json(item.run.metrics_file)


def test_a_run_cancelled_while_its_files_give_trouble_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = todo(tmp_path, 2)
    backend = FakeBackend(finish, slots=2)
    submit, tried = backend.submit, []

    def full(submission: Submission) -> str:
        tried.append(submission.run_dir)
        if submission.run_dir == first.run.path:
            cancel(first.run)
            raise FileError("cannot make folder attempts/0001: No space left on device")
        return submit(submission)

    monkeypatch.setattr(backend, "submit", full)
    run_all(backend, [first, second])
    assert [item.run.observe().state for item in (first, second)] == ["cancelled", "done"]
    assert [submission.run_dir for submission in backend.submissions] == [second.run.path]
    assert tried.count(first.run.path) == 1, "its cancellation was put aside"


def test_troubles_count_in_a_row_and_not_over_the_life_of_a_run(tmp_path: Path, disk: Disk) -> None:
    (item,) = todo(tmp_path, 1)

    def work(submission: Submission) -> int:
        write_json_lines(item.run.metrics_file, [{"epoch": e, "val_ppl": 9.0} for e in range(submission.attempt)])
        disk.refused = -3 if submission.attempt < 8 else 0
        return -9 if submission.attempt < 8 else finish(submission)

    disk.refuse("read", lambda path: path == item.run.metrics_file, errno.EIO, times=0)
    backend = FakeBackend(work)
    run_all(backend, [item], policy=Policy(max_stalled_retries=2))
    assert item.run.observe().state == "done"
