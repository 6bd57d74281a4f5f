from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqlm import lease, processes
from seqlm.errors import FileError, RunBusyError
from seqlm.locks import exclusive_lock, is_locked, read_lock_holder
from seqlm.rundir import RunDirectory
from seqlm.state import View
from tests import commands
from tests.facts import fail
from tests.full_disk import full_disk
from tests.training.studies import make_config, make_run

HOLD = (
    "import sys; from pathlib import Path; from seqlm.locks import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "study" / "rnn-sgd-0123abcd", make_config())


@pytest.mark.process
def test_a_lock_has_one_owner_and_goes_when_its_process_is_killed(run: RunDirectory) -> None:
    path = run.worker_lock_file
    assert not is_locked(path)
    holder = commands.start([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE)
    assert commands.next_line(holder) == "held\n"
    assert run.observe().state == "running"
    named = read_lock_holder(path)
    assert named is not None
    assert named["pid"] == holder.pid
    with pytest.raises(RunBusyError, match=rf"^taken \(pid {holder.pid} on "), exclusive_lock(path, "taken"):
        pass
    holder.kill()
    commands.finish(holder)
    assert not is_locked(path)
    with exclusive_lock(path, "taken"):
        assert is_locked(path)


@contextlib.contextmanager
def locked_by_a_stranger(path: Path, record: object) -> Iterator[None]:
    """A lock held without writing a name into the file, as any user who may read it can."""
    path.write_text(json.dumps(record) if record is not None else "")
    with path.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def dead() -> dict[str, Any]:
    return {**processes.this_process(), "process_start": 1}


@pytest.mark.parametrize("record", [None, dead()], ids=["no name", "a dead worker's name"])
def test_a_lock_that_its_file_does_not_explain_is_reported_and_makes_no_run_look_running(
    run: RunDirectory, record: object
) -> None:
    path = run.worker_lock_file
    advice = f"`fuser {path}` lists the holder: end it, or move the file away"
    said = f"{path} is locked, but names no live process; {advice}"
    with locked_by_a_stranger(path, record):
        assert (run.observe().state, run.observe().reason) == ("pending", said)
        assert (run.observe(View(stage="queued")).state, run.observe(View(stage="queued")).reason) == ("queued", said)
        with pytest.raises(RunBusyError) as caught, exclusive_lock(path, "the run has a worker"):
            pass
        assert str(caught.value) == said
        fail(run, {"kind": "oom", "message": "too large"})
        assert run.observe().reason == "oom: too large"
        path.rename(path.with_name("moved-away"))
        run.attempt_dir(2).mkdir()
        with exclusive_lock(path, "the run has a worker"):
            assert run.observe().state == "running"


def test_a_lock_that_names_a_worker_elsewhere_is_believed_while_its_lease_is_fresh(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "this_host", lambda: processes.Host(name="other", machine="other"))
    theirs = lease.claim(run.lease_dir, attempt=1, busy="busy", terms=lease.Terms())
    record = processes.this_process()
    monkeypatch.setattr(processes, "this_host", lambda: processes.Host(name="here", machine="here"))
    with locked_by_a_stranger(run.worker_lock_file, record):
        assert run.observe().state == "running"
        theirs.release()
        assert run.observe().state == "pending", "its lease is released, so the lock is somebody else's"


def test_a_worker_that_has_not_written_its_name_yet_is_looked_at_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def write_name(seconds: float) -> None:
        looks.append(seconds)
        run.worker_lock_file.write_text(json.dumps(processes.this_process()))

    monkeypatch.setattr(time, "sleep", write_name)
    with locked_by_a_stranger(run.worker_lock_file, None):
        assert run.observe().state == "running"
    assert len(looks) == 1


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
@pytest.mark.parametrize("old", [None, 0o644, 0o666])
def test_no_stranger_may_open_a_lock_file(tmp_path: Path, mask: int, old: int | None) -> None:
    path = tmp_path / "worker.lock"
    if old is not None:  # made by an earlier version
        path.touch()
        path.chmod(old)
    before = os.umask(mask)
    try:
        with exclusive_lock(path, "busy"):
            pass
    finally:
        os.umask(before)
    expected = 0o660 & ~mask if old is None else old & ~0o007
    assert path.stat().st_mode & 0o777 == expected


NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("code", NO_LOCKS)
def test_without_locks_the_record_of_a_live_process_of_this_host_stands_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_locks(monkeypatch, code)
    path = tmp_path / "launch.lock"
    with exclusive_lock(path, "busy"):
        assert is_locked(path)
        with pytest.raises(RunBusyError, match=rf"^taken \(pid {os.getpid()} on "), exclusive_lock(path, "taken"):
            pass
        assert is_locked(path)
    assert not is_locked(path), "though this process still lives"
    for changes in ({"process_start": 1}, {"boot_id": "of another host"}):  # dead, or nobody here can say
        path.write_text(json.dumps({**processes.this_process(), **changes}))
        assert not is_locked(path)
        with exclusive_lock(path, "taken"):
            pass


def test_a_lock_that_fails_in_another_way_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with (
        pytest.raises(FileError, match=r"cannot lock .*worker\.lock: Input/output error"),
        exclusive_lock(tmp_path / "worker.lock", "busy"),
    ):
        pass
    with pytest.raises(FileError, match=r"cannot lock .*worker\.lock: Input/output error"):
        is_locked(tmp_path / "worker.lock")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        full_disk(0),
        pytest.raises(FileError, match=r"cannot write .*launch\.lock"),
        exclusive_lock(tmp_path / "launch.lock", "busy"),
    ):
        pytest.fail("a lock was held that names nobody")
