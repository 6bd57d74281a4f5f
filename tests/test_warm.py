"""A program that is forked from a warm process ends as one that an interpreter has begun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import commands, warm
from tests.ray_lab import RayLab

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
