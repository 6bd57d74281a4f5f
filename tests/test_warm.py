"""A program that is forked from a warm process ends as one that an interpreter has begun."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests import commands, warm
from tests.ray_lab import RayLab
from tests.waiting import wait_for

pytestmark = [pytest.mark.process, pytest.mark.skipif(warm.IS_COLD, reason="every program starts cold")]

PROGRAMS = {
    "its own code": "import sys; print('out'); sys.exit(3)",
    "a sentence": "import sys; sys.exit('said')",
    "nothing": "import sys; sys.exit()",
    "an error": "import atexit; atexit.register(print, 'at exit'); raise ValueError('wrong')",
    "ctrl-c": "import os, signal; os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM); signal.pause()",
    "a thread": "import threading; threading.Thread(target=print, args=['later']).start(); print('sooner', flush=True)",
}


def stand_in(program: str) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the variables of a stand-in for a program."""
    return [sys.executable, "-I", "-S", str(warm.STAND_IN), repr(["-c", program])], {**os.environ, **warm.env()}


def end_of_stand_in(program: str) -> tuple[int, str, bool, str]:
    argv, env = stand_in(program)
    process = commands.start(argv, cold=True, env=env)
    out, err = commands.finish(process)
    return described(process.returncode, out, err)


def described(returncode: int, out: str, err: str) -> tuple[int, str, bool, str]:
    """Exit code, what came on stdout, whether there was a traceback, and the last line that came on stderr."""
    return returncode, out, "Traceback" in err, (err.splitlines() or [""])[-1]


def end(program: str, *, cold: bool, stdout: Path | None = None) -> tuple[int, str, bool, str]:
    argv = [sys.executable, "-c", program]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if stdout is None:
        process = commands.start(argv, cold=cold, env=env)
    else:
        with stdout.open("w") as file:
            process = commands.start(argv, cold=cold, env=env, stdout=file)
    out, err = commands.finish(process)
    return described(process.returncode, out, err)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_both_end_alike(program: str) -> None:
    cold = end(program, cold=True)
    assert end(program, cold=False) == cold
    assert end_of_stand_in(program) == cold


HEARS = """
import os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: sys.exit("heard"))
print(os.getpid(), os.getcwd(), os.environ["WITH"], flush=True)
signal.pause()
"""


def test_a_stand_in_passes_on_its_signals_and_takes_its_program_along_if_it_is_killed(tmp_path: Path) -> None:
    argv, env = stand_in(HEARS)
    for number in (signal.SIGUSR2, signal.SIGKILL):
        process = commands.start(argv, cold=True, env={**env, "WITH": "a variable"}, cwd=tmp_path)
        pid, *rest = commands.next_line(process).split(" ", 2)
        assert rest == [str(tmp_path), "a variable\n"]
        process.send_signal(number)
        _, err = commands.finish(process)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1), err
        assert ("heard" in err) == (number == signal.SIGUSR2)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the program to end")  # noqa: B023


def test_only_a_program_of_seqlm_becomes_a_stand_in(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(program := "import sys; print('torch' in sys.modules)")
    for argv, is_warm in ((["launch.py"], True), (["-c", program], False)):
        done = commands.run(
            [sys.executable, *argv], cold=True, env={**os.environ, **warm.env()}, cwd=tmp_path, check=True
        )
        assert done.stdout == f"{is_warm}\n"
        done = commands.run([sys.executable, *argv], cold=True, cwd=tmp_path, check=True)
        assert done.stdout == "False\n"


@pytest.mark.parametrize("program", ["print('lost')", "import sys; print('lost'); sys.exit(3)"])
def test_both_end_with_120_where_the_last_words_find_no_room(program: str) -> None:
    full = Path("/dev/full")
    cold = end(program, cold=True, stdout=full)
    assert cold[0] == 120
    assert end(program, cold=False, stdout=full) == cold


def test_both_enter_a_network(lab: RayLab) -> None:
    program = "import pathlib; print(pathlib.Path('/proc/self/ns/net').readlink())"
    argv = lab.command([sys.executable, "-c", program])
    ours, cold = (commands.run(argv, cold=cold, check=True).stdout for cold in (False, True))
    assert ours == cold != f"{Path('/proc/self/ns/net').readlink()}\n"
    argv, env = stand_in(program)
    assert commands.run(lab.command(argv), cold=True, env=env, check=True).stdout == cold


def test_a_copy_of_our_code_runs_as_that_copy_and_a_changed_one_as_it_was_changed(tmp_path: Path) -> None:
    source = Path(warm.__file__).parent.parent / "seqlm" / "errors.py"
    copy, changed = tmp_path / "copied.py", tmp_path / "changed.py"
    copy.write_bytes(source.read_bytes())
    changed.write_bytes(source.read_bytes() + b"\nADDED = FileError.__module__\n")
    program = (
        "import copied, changed; print(copied.FileError.from_os_error.__code__.co_filename, changed.ADDED, "
        "copied.FileError.from_os_error.__code__.co_code == changed.FileError.from_os_error.__code__.co_code)"
    )
    answer = commands.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert answer.stdout.split() == [str(copy), "changed", "True"]
