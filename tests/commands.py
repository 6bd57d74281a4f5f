"""Start processes and wait for their ends. Every test that needs a process starts it here."""

import contextlib
import io
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import pytest

import launch
from tests import warm
from tests.waiting import DEADLINE_SECONDS, scene

Ask: TypeAlias = Callable[..., tuple[int, Any, str]]
"""The fixture ``ask``: runs a command with ``--json``; exit code, data or error of its document, and stderr."""
_started: list[subprocess.Popen[str]] = []


def start(argv: Sequence[str | Path], *, cold: bool = False, **options: Any) -> subprocess.Popen[str]:
    """``subprocess.Popen`` with text pipes for stdout and stderr unless ``options`` say otherwise.

    ``cold``: in a new interpreter, for tests of what it imports (:mod:`tests.warm`). What a test has started and not
    ended is killed when it ends (conftest.py).
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    popen = warm.ColdPopen if cold else warm.Popen
    process = popen([str(word) for word in argv], text=True, **pipes)
    _started.append(process)
    return process


def kill_what_was_started(before: int) -> None:
    """Kill what was started after the first ``before`` processes and lives still."""
    for process in _started[before:]:
        if process.poll() is None:
            process.kill()
            process.communicate()
    del _started[before:]


def number_started() -> int:
    """Return how many processes have been started and not been forgotten."""
    return len(_started)


def finish(process: subprocess.Popen[str], input: str | None = None) -> tuple[str, str]:  # noqa: A002
    """Return stdout and stderr of a process once it has ended; one that does not end is killed and fails the test."""
    try:
        return process.communicate(input, timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        found = scene()
        process.kill()
        stdout, stderr = process.communicate()
        said = f"stdout: {str(stdout)[-3000:]}\nstderr: {str(stderr)[-3000:]}"
        waited = f"waited {DEADLINE_SECONDS:g} s in vain for the end of {process.args!r}"
        pytest.fail(f"{waited}\n{said}\n\n{found}", pytrace=False)
    except BaseException:
        process.kill()
        process.communicate()
        raise


def next_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process's stdout, or "" if the process has ended without one."""
    stdout, lines = process.stdout, list[str]()
    assert stdout is not None
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(DEADLINE_SECONDS)
    if not lines:
        pytest.fail(f"waited {DEADLINE_SECONDS:g} s in vain for a line of {process.args!r}\n\n{scene()}", pytrace=False)
    return lines[0]


def run(argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it with its output; ``check=True`` demands exit code 0."""
    check = options.pop("check", False)
    process = start(argv, **options)
    stdout, stderr = finish(process)
    assert not check or process.returncode == 0, f"{argv} ended with {process.returncode}: {stderr}"
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def ask(words: Sequence[str], *, folder: Path, env: Mapping[str, str]) -> Any:
    """The data that the command line prints with ``--json`` in ``folder``, asked in this process.

    For looks that are taken again and again: a process for each would take the processors from what is waited for.
    """
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, env, clear=True),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        code = launch.main([*words, "--json"])
    document = json.loads(printed.getvalue())
    assert code == 0, document
    return document["data"]
