"""A full disk and a folder that has become read-only, for real: on a small file system of the test's own."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint
from tests import commands
from tests.chaos.disk import Disk, may_mount
from tests.crawl import Crawl
from tests.facts import failure_of
from tests.outcome import alone, outcome
from tests.seqlm.training.studies import make_config, make_run, write_text
from tests.small_study import epochs_of
from tests.waiting import wait_for

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


def start(run: RunDirectory, text: Path, **variables: str) -> subprocess.Popen[str]:
    known = {"SEQLM_DATA": str(text), "SEQLM_DEVICE": "cpu", "SEQLM_CHECKPOINT_MINUTES": "0.005"}
    env = {**os.environ, **known, **variables}
    argv = [sys.executable, "-m", "seqlm.training.worker", str(run.path)]
    return commands.start(argv, env=env, stdout=subprocess.DEVNULL)


def break_while_it_trains(run: RunDirectory, text: Path, epochs: int, how: Callable[[], None]) -> str:
    """Train, have it happen after ``epochs`` epochs, and return what the worker says on stderr when it ends."""
    crawl = Crawl(text, epochs=0, step_seconds=0.05)
    worker = start(run, text, **crawl.env)
    wait_for(
        lambda: (epochs_of(run), worker.poll()),
        f"{epochs} epochs or the end of the worker",
        until=lambda seen: len(seen[0]) >= epochs or seen[1] is not None,
    )
    how()
    _, stderr = commands.finish(worker)
    assert worker.returncode == EXIT_STORAGE, stderr
    assert "Traceback" not in stderr
    with contextlib.suppress(FileNotFoundError):  # there may be no room for it: the line has to do
        assert (failure_of(run) or {}).get("kind") in (None, "node")
    return stderr


def leftovers(run: RunDirectory) -> list[str]:
    return [path.name for path in run.path.rglob(".*.tmp*")]


@pytest.mark.process
def test_a_disk_that_takes_no_more_stops_a_run_which_goes_on_bit_for_bit_when_it_does(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path / "text", train_lines=100)
    config = make_config("gru", optimizer="adam", lr=0.01, epochs=5, keep=0.8)
    run = make_run(disk.path / "run", config)
    said = break_while_it_trains(run, text, 1, disk.fill)
    assert re.match(r"error: cannot write .*(No space left on device|the disk is full)", said), said
    assert leftovers(run) == []
    assert len(load_checkpoint(run.last_checkpoint, config.fingerprint()).history) >= 1
    disk.make_room()

    said = break_while_it_trains(run, text, 3, lambda: disk.make_read_only(run.path))
    assert re.match(r"error: cannot write .*Read-only file system", said), said
    again = start(run, text)
    _, said = commands.finish(again)
    assert (again.returncode, len(said.splitlines()) <= 2) == (EXIT_STORAGE, True), said
    assert "Read-only file system" in said
    disk.make_writable(run.path)

    last = start(run, text)
    _, said = commands.finish(last)
    assert last.returncode == 0, said
    quiet = alone([run], text, tmp_path / "quiet", monkeypatch)
    assert outcome(run).differences(quiet[run.id]) == []
    assert epochs_of(run) == list(range(5))
    assert leftovers(run) == []
