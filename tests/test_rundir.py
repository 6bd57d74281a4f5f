from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqlm import lease, rundir
from seqlm.errors import FileError, LeaseLostError, RunBusyError
from seqlm.rundir import (
    RunDirectory,
    exclusive_lock,
    is_locked,
    read_json,
    read_lock_holder,
    replacing,
    slugify,
    write_json,
    write_json_lines,
    write_text,
)
from tests import commands
from tests.training.studies import make_config, make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "study" / "rnn-sgd-0123abcd", make_config())


def epoch(number: int, val_ppl: float | None = 100.0) -> dict[str, object]:
    return {"epoch": number, "val_ppl": val_ppl}


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half a fi")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_guard_is_asked_when_all_is_written_and_keeps_the_old_file_where_it_refuses(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.result_file, {"a": 1})
    write_json_lines(run.metrics_file, [{"epoch": 0}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    beside = []

    def refuse() -> None:
        beside.extend(path.stat().st_size for path in tmp_path.glob(".*.tmp"))
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        write_json(run.result_file, {"a": 2}, guard=refuse)
    with pytest.raises(LeaseLostError):
        write_json_lines(run.metrics_file, [], guard=refuse)
    with pytest.raises(LeaseLostError):
        run.write_failure_once({"kind": "code"}, guard=refuse)
    assert beside == [len('{\n "a": 2\n}\n'), 0, len('{\n "kind": "code"\n}\n')]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_writer_whose_temporary_file_was_swept_away_asks_its_guard_why(tmp_path: Path) -> None:
    asked = []

    def lost_meanwhile() -> None:
        asked.append(len(asked))
        if len(asked) > 1:
            raise LeaseLostError("taken over")
        (beside,) = tmp_path.glob(".*.tmp")
        beside.unlink()  # by the new owner, between the question and the renaming

    with pytest.raises(LeaseLostError):
        write_json(tmp_path / "result.json", {}, guard=lost_meanwhile)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_read_only_while_a_file_is_written_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def becomes_read_only() -> None:
        monkeypatch.setattr(Path, "replace", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)  # so that the temporary file stays

    with pytest.raises(FileError, match=r"cannot write .*result\.json: Read-only file system"):
        write_json(tmp_path / "result.json", {}, guard=becomes_read_only)


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_failing_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if number != errno.EIO else pytest.raises(FileError, match="Input/output error"):
        write_text(tmp_path / "file", "x")


def test_a_folder_in_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*file: Is a directory"):
        write_text(tmp_path / "file", "x")
    with pytest.raises(FileError, match="cannot read"):
        read_json(tmp_path / "file")


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "\0"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(FileError, match=r"job\.json is damaged"):
        read_json(tmp_path / "job.json")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "m.jsonl", [{"val_ppl": math.inf, "train_ppl": math.nan, "epoch": 0}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"val_ppl": None, "train_ppl": None, "epoch": 0}


def test_a_metrics_file_cut_in_a_line_loses_that_line_alone_and_says_so(run: RunDirectory) -> None:
    write_json_lines(run.metrics_file, [epoch(0), epoch(1), epoch(2)])
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text[:-9])
    epochs, warnings = run.read_metrics()
    assert [record["epoch"] for record in epochs] == [0, 1]
    assert warnings == [f"{run.metrics_file}: line 3 is cut or damaged and was left out"]
    assert run.observe().epoch == 1


def test_the_state_is_read_from_the_files(run: RunDirectory) -> None:
    assert run.observe().state == "pending"
    assert run.observe(queued=True).state == "queued"
    run.attempt_dir(1).mkdir(parents=True)
    assert run.observe().reason == "interrupted before the first epoch ended; run again to resume"
    write_json_lines(run.metrics_file, [epoch(0, 90.0), epoch(1, None), epoch(2, 95.0)])
    observation = run.observe()
    assert (observation.state, observation.epoch, observation.best_val_ppl) == ("pending", 2, 90.0)
    assert observation.reason == "interrupted after 3 epochs; run again to resume"
    run.write_failure_once({"kind": "diverged", "message": "the loss is nan"})
    assert run.observe().state == "failed"
    assert run.observe().reason == "diverged: the loss is nan"
    write_json(run.result_file, {})
    assert run.observe().state == "done", "a result stands above a failure that came before"


def test_a_live_lease_of_another_host_says_running_until_it_is_stale_released_or_the_run_has_spoken(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="other", machine="other"))
    theirs = lease.claim(run.lease_dir, attempt=1, busy="busy", terms=lease.Terms())
    monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="here", machine="here"))
    assert run.observe(queued=True).state == "running"
    assert not run.worker_lock_file.exists(), "which is what its lock looks like from here"
    silent = time.time() - 200
    os.utime(theirs.file, (silent, silent))
    assert run.observe(queued=True).state == "queued"
    monkeypatch.setenv("SEQLM_STALE_LEASE_MINUTES", "4")
    assert run.observe().state == "running"
    theirs.release()
    assert run.observe().state == "pending"
    second = lease.claim(run.lease_dir, attempt=2, busy="busy", terms=lease.Terms())
    monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="other", machine="other"))
    assert run.observe().state == "running"
    run.write_failure_once({"kind": "node", "message": "its machine is gone"})
    assert run.observe().state == "failed", "a launcher knows better than a heartbeat of a minute ago"
    second.beat()
    write_json(run.result_file, {})
    assert run.observe().state == "done"


def test_a_new_owner_sweeps_what_dead_owners_have_begun_and_nothing_else(run: RunDirectory) -> None:
    begun = [
        run.last_checkpoint.with_name(".last.pt.abc.tmp"),
        run.last_checkpoint.with_name(".best.pt.def.tmp"),
        run.path / ".metrics.jsonl.abc.tmp",
        run.path / ".result.json.abc.tmp",
        run.path / ".canary.json.abc.tmp",
        run.lease_dir / ".000001.json.abc.tmp",
        run.attempt_dir(1) / ".worker.json.abc.tmp",
        run.attempt_dir(1) / ".worker-1.json.abc.tmp",
        run.attempt_dir(1) / ".progress.json.tmp",
    ]
    kept = [
        run.last_checkpoint,
        run.best_checkpoint,
        run.metrics_file,
        run.lease_dir / "000001.json",
        run.path / ".job.json.abc.tmp",  # a launcher may be about to put it in place
        run.path / ".failure.json.abc.tmp",
        run.attempt_dir(2) / ".worker-1.json.abc.tmp",  # another rank of the new owner's attempt
        run.attempt_dir(1) / "worker.json",
    ]
    for path in (*begun, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.sweep(2)
    assert not [path for path in begun if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_launcher_sweeps_what_dead_launchers_have_begun_and_nothing_of_a_worker(run: RunDirectory) -> None:
    begun = [
        run.path / ".config.json.abc.tmp",
        run.path / ".provenance.json.abc.tmp",
        run.path / ".job.json.abc.tmp",
        run.path / ".failure.json.abc.tmp",
        run.attempt_dir(1) / ".failure.json.abc.tmp",
    ]
    kept = [run.last_checkpoint.with_name(".last.pt.abc.tmp"), run.path / ".metrics.jsonl.abc.tmp", run.job_file]
    for path in (*begun, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.sweep_launch()
    assert not [path for path in begun if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_cancelled_run_is_not_a_failed_one(run: RunDirectory) -> None:
    run.write_failure_once({"kind": "cancelled", "message": "cancelled by the user"})
    assert (run.observe().state, run.observe().kind) == ("cancelled", "cancelled")


def test_the_first_failure_stands(run: RunDirectory) -> None:
    run.write_failure_once({"kind": "oom", "message": "first"})
    run.write_failure_once({"kind": "node", "message": "what followed"})
    failure = run.read_failure()
    assert failure is not None
    assert failure["message"] == "first"
    assert not list(run.path.glob(".*.tmp"))


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 40, b"[]", b"\xff"])
def test_a_damaged_failure_is_one_of_kind_node_and_stops_nothing(run: RunDirectory, content: bytes) -> None:
    run.failure_file.write_bytes(content)
    seen = run.observe()
    assert (seen.state, seen.kind) == ("failed", "node")
    assert seen.reason == "node: failure.json is damaged: the machine may have crashed while it was written"
    assert not run.is_cancelled()


def test_a_failure_that_the_disk_does_not_read_is_an_error(run: RunDirectory) -> None:
    run.failure_file.mkdir()
    with pytest.raises(FileError, match=r"cannot read .*failure\.json: expected a regular file, found a folder"):
        run.observe()


def test_a_failure_is_on_the_disk_before_it_is_in_its_place_and_so_is_its_name(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        content = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((content.name if content.is_dir() else content.read_text(), run.failure_file.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    run.write_failure_once({"kind": "node"})
    assert synced == [('{\n "kind": "node"\n}\n', False), (run.path.name, True)]


HOLD = (
    "import sys; from pathlib import Path; from seqlm.rundir import exclusive_lock\n"
    "with exclusive_lock(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
)


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
    return {**lease.this_process(), "process_start": 1}


@pytest.mark.parametrize("record", [None, dead()], ids=["no name", "a dead worker's name"])
def test_a_lock_that_its_file_does_not_explain_is_reported_and_makes_no_run_look_running(
    run: RunDirectory, record: object
) -> None:
    path = run.worker_lock_file
    advice = f"`fuser {path}` lists the holder: end it, or move the file away"
    said = f"{path} is locked, but names no live process; {advice}"
    with locked_by_a_stranger(path, record):
        assert (run.observe().state, run.observe().reason) == ("pending", said)
        assert (run.observe(queued=True).state, run.observe(queued=True).reason) == ("queued", said)
        with pytest.raises(RunBusyError) as caught, exclusive_lock(path, "the run has a worker"):
            pass
        assert str(caught.value) == said
        run.write_failure_once({"kind": "oom", "message": "too large"})
        assert run.observe().reason == "oom: too large"
        path.rename(path.with_name("moved-away"))
        with exclusive_lock(path, "the run has a worker"):
            assert run.observe().state == "running"


def test_a_lock_that_names_a_worker_elsewhere_is_believed_while_its_lease_is_fresh(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="other", machine="other"))
    theirs = lease.claim(run.lease_dir, attempt=1, busy="busy", terms=lease.Terms())
    record = lease.this_process()
    monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="here", machine="here"))
    with locked_by_a_stranger(run.worker_lock_file, record):
        theirs.release()
        assert run.observe().state == "running", "it has locked the run a moment ago, and may wait for the lease"
        silent = time.time() - 200
        os.utime(run.worker_lock_file, (silent, silent))
        assert run.observe().state == "pending", "its lease is released, so the lock is somebody else's"
        monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="other", machine="other"))
        again = lease.claim(run.lease_dir, attempt=1, busy="busy", terms=lease.Terms())
        monkeypatch.setattr(lease, "this_host", lambda: lease.Host(name="here", machine="here"))
        assert run.observe().state == "running"
        again.release()


def test_a_worker_that_has_not_written_its_name_yet_is_looked_at_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def write_name(seconds: float) -> None:
        looks.append(seconds)
        run.worker_lock_file.write_text(json.dumps(lease.this_process()))

    monkeypatch.setattr(rundir.time, "sleep", write_name)
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
        path.write_text(json.dumps({**lease.this_process(), **changes}))
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


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_links_the_first_failure_stands_too(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    run.write_failure_once({"kind": "oom", "message": "first"})
    run.write_failure_once({"kind": "node", "message": "what followed"})
    assert run.read_failure() == {"kind": "oom", "message": "first"}
    assert not list(run.path.glob(".*.tmp"))


def test_a_folder_that_cannot_be_flushed_stops_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int, code: int = errno.EINVAL) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_json(tmp_path / "file.json", {"a": 1})
    assert read_json(tmp_path / "file.json") == {"a": 1}
    monkeypatch.setattr(os, "fsync", lambda handle: refuse_folders(handle, errno.EIO))
    with pytest.raises(FileError, match="Input/output error"):
        write_json(tmp_path / "file.json", {"a": 2})


def test_a_run_is_found_again_whatever_its_name_is_now(tmp_path: Path) -> None:
    config = make_config()
    run = RunDirectory.locate(tmp_path, "GRU / first try", config.fingerprint())
    assert run.id == f"gru-first-try-{config.fingerprint()[:8]}"
    run.create(config, {"name": "GRU / first try"})
    assert RunDirectory.locate(tmp_path, "renamed", config.fingerprint()) == run


def test_another_configuration_never_overwrites_a_run(run: RunDirectory) -> None:
    run.create(make_config(), {"name": "again"})
    with pytest.raises(FileError, match="holds another configuration"):
        run.create(make_config(seed=5), {})
    assert run.read_config() == make_config()


def test_runs_are_listed_in_manifest_order(tmp_path: Path) -> None:
    for order, name in ((1, "a-00000001"), (0, "b-00000002"), (None, "c-00000003")):
        make_run(tmp_path / name, make_config()).create(make_config(), {"order": order})
    assert [run.id for run in RunDirectory.all_in(tmp_path)] == ["b-00000002", "a-00000001", "c-00000003"]
    (tmp_path / "b-00000002" / "provenance.json").write_text("{")
    assert [run.id for run in RunDirectory.all_in(tmp_path)] == ["a-00000001", "b-00000002", "c-00000003"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("gru-adam", "gru-adam"),
        ("../../etc/passwd", "etc-passwd"),
        ("$(rm -rf ~)", "rm-rf"),
        ("a\nb c", "a-b-c"),
        ("...", "run"),
        ("é", "run"),
        ("x" * 200, "x" * 80),
    ],
)
def test_a_name_becomes_a_harmless_folder_name(name: str, slug: str) -> None:
    assert slugify(name) == slug


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small file system that this test fills")
def test_a_full_disk_is_one_clear_line_and_the_old_file_stays(tmp_path: Path) -> None:
    program = f"""
import sys
import time
from pathlib import Path
from seqlm.errors import FileError
from seqlm.rundir import read_json, write_json
path = Path({str(tmp_path)!r}) / "small" / "file.json"
write_json(path, {{"a": 1}})
try:
    write_json(path, {{"a": "x" * 2_000_000}})
except FileError as error:
    print(error)
print(read_json(path), sorted(entry.name for entry in path.parent.iterdir()))
"""
    (tmp_path / "small").mkdir()
    mount = f'mount -t tmpfs -o size=1m none \'{tmp_path}/small\' && exec "$0" -c "$1"'
    shell = ["unshare", "--mount", "sh", "-c", mount, sys.executable, program]
    answer = commands.run(shell)
    if answer.returncode and "mount" in answer.stderr + answer.stdout:
        pytest.skip("mounting is not allowed here")
    assert answer.stderr == ""
    first, second = answer.stdout.splitlines()
    assert first == f"cannot write {tmp_path}/small/file.json: No space left on device"
    assert second == "{'a': 1} ['file.json']"
