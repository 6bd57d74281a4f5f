"""A full disk and a folder that has become read-only, for real: on a small file system of the test's own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.errors import FileError
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint
from seqlm.training.failure import failure_kind
from tests import commands
from tests.chaos.disk import Disk, may_mount
from tests.crawl import Crawl
from tests.facts import failure_of
from tests.outcome import Outcome, outcome
from tests.test_launch import epochs_of
from tests.training.studies import Attempt, make_config, make_run, write_text
from tests.waiting import wait_for

pytestmark = pytest.mark.xdist_group("disk-full")  # its fixtures take long to make

EXIT_STORAGE = 74


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not may_mount():
        message = "a small file system can be mounted by root alone"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    disk = Disk(tmp_path / "disk", megabytes=4)
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"), train_lines=400)


@pytest.fixture(scope="module")
def config(text: Path) -> RunConfig:
    return make_config("gru", optimizer="adam", lr=0.01, epochs=8, keep=0.8)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, config: RunConfig, text: Path) -> Outcome:
    run = make_run(tmp_path_factory.mktemp("quiet") / "run", config)
    train(run, text)
    return outcome(run)


def start(run: RunDirectory, text: Path, **variables: str) -> subprocess.Popen[str]:
    known = {"SEQLM_DATA": str(text), "SEQLM_DEVICE": "cpu", "SEQLM_CHECKPOINT_MINUTES": "0.005"}
    env = {**os.environ, **known, **variables}
    argv = [sys.executable, "-m", "seqlm.training.worker", str(run.path)]
    return commands.start(argv, env=env, stdout=subprocess.DEVNULL)


def train(run: RunDirectory, text: Path) -> None:
    worker = start(run, text)
    _, stderr = commands.finish(worker)
    assert worker.returncode == 0, stderr


def break_while_it_trains(run: RunDirectory, text: Path, how: Callable[[], None]) -> str:
    """Train, have it happen after two epochs, and return what the worker says on stderr when it ends."""
    crawl = Crawl(text, epochs=0, step_seconds=0.05)
    worker = start(run, text, **crawl.env)
    wait_for(
        lambda: (epochs_of(run), worker.poll()),
        "two epochs or the end of the worker",
        until=lambda seen: len(seen[0]) >= 2 or seen[1] is not None,
    )
    how()
    _, stderr = commands.finish(worker)
    assert worker.returncode == EXIT_STORAGE, stderr
    return stderr


def leftovers(run: RunDirectory) -> list[str]:
    return [path.name for path in run.path.rglob(".*.tmp*")]


@pytest.mark.process
def test_a_full_disk_stops_a_run_which_goes_on_bit_for_bit_when_there_is_room(
    disk: Disk, config: RunConfig, text: Path, quiet: Outcome
) -> None:
    run = make_run(disk.path / "run", config)
    stderr = break_while_it_trains(run, text, disk.fill)
    assert "Traceback" not in stderr
    line = stderr.splitlines()[0]
    assert line.startswith("error: cannot write"), stderr
    assert "No space left on device" in line or "the disk is full" in line
    try:
        failure = failure_of(run) or {}
    except FileNotFoundError:
        pass  # there is no room for it: the line has to do
    else:
        assert failure.get("kind") in (None, "node")
    assert leftovers(run) == []
    kept = load_checkpoint(run.last_checkpoint, config.fingerprint())
    assert len(kept.history) >= 2
    assert epochs_of(run)[:2] == [0, 1]

    disk.make_room()
    train(run, text)
    assert outcome(run).differences(quiet) == []
    assert epochs_of(run) == list(range(8))
    assert leftovers(run) == []


@pytest.mark.process
def test_a_folder_that_becomes_read_only_stops_a_run_which_goes_on_bit_for_bit_when_it_is_writable(
    disk: Disk, config: RunConfig, text: Path, quiet: Outcome
) -> None:
    run = make_run(disk.path / "run", config)
    stderr = break_while_it_trains(run, text, lambda: disk.make_read_only(run.path))
    assert "Read-only file system" in stderr
    assert "Traceback" not in stderr
    assert failure_of(run) is None, "it cannot be written, so that stderr has to say it"
    again = start(run, text)
    _, stderr = commands.finish(again)
    assert again.returncode == EXIT_STORAGE
    assert len(stderr.splitlines()) <= 2, stderr
    assert "Read-only file system" in stderr
    load_checkpoint(run.last_checkpoint, config.fingerprint())

    disk.make_writable(run.path)
    train(run, text)
    assert outcome(run).differences(quiet) == []
    assert epochs_of(run) == list(range(8))
    assert leftovers(run) == []


def test_a_used_up_quota_is_told_like_a_full_disk(
    tmp_path: Path, config: RunConfig, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a write that fails as the kernel would have it fail: a quota does not bind root, who alone can set one."""
    run = make_run(tmp_path / "run", config)
    attempt = Attempt(run, load_corpus(config.data, text))
    fsync, before = os.fsync, b""

    def refuse(handle: int) -> None:
        nonlocal before
        if len(epochs_of(run)) == 2:
            before = before or run.last_checkpoint.read_bytes()
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match="Disk quota exceeded") as error:
        attempt.train()
    assert failure_kind(error.value) == "node"
    assert run.last_checkpoint.read_bytes() == before
    assert epochs_of(run) == [0, 1]
    assert leftovers(run) == []
