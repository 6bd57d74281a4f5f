"""What ends after a killed launcher: the processes that it had written down, and no others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.backends import ray_watchdog
from tests import commands

pytestmark = pytest.mark.process

WAITS = "import sys; print('array', flush=True); sys.stdin.read()"


def waiting() -> subprocess.Popen[str]:
    """A process with "ray" in its command line."""
    process = commands.start([sys.executable, "-c", WAITS], stdin=subprocess.PIPE, cold=True)
    assert commands.next_line(process) == "array\n"
    return process


@pytest.fixture
def watch(tmp_path: Path) -> Callable[[str], None]:
    """The watchdog of a launcher that has just ended."""

    def watch(name: str) -> None:
        folder = tmp_path / "ray"
        (folder / "session").mkdir(parents=True)
        argv = [sys.executable, "-S", str(Path(ray_watchdog.__file__)), str(folder), name]
        assert commands.run(argv, stdin=subprocess.DEVNULL).stderr == ""
        assert not folder.exists()

    return watch


def test_a_process_with_the_number_of_one_of_rays_is_left_alone_and_the_one_itself_is_killed(
    watch: Callable[[str], None],
) -> None:
    process = waiting()
    name = ray_watchdog.identity(process.pid)
    assert name is not None
    pid, _, started = name.partition(":")
    watch(f"{pid}:0{started}x")
    assert commands.finish(process) == ("", "")  # stdin ends, and it with it
    assert process.returncode == 0, "it was not killed"

    process = waiting()
    name = ray_watchdog.identity(process.pid)
    assert name is not None
    watch(name)
    commands.finish(process)
    assert process.returncode == -9


def test_a_process_that_is_gone_has_no_name_and_stops_nobody(watch: Callable[[str], None]) -> None:
    process = waiting()
    name = ray_watchdog.identity(process.pid)
    assert name is not None
    commands.finish(process)
    assert ray_watchdog.identity(process.pid) is None
    watch(name)
