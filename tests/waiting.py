"""Wait for facts. Every test that waits does it here, with one deadline that no healthy machine reaches.

A test that waits too long fails with what it waited for, the last state, and the stacks of all that the session runs.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

Seen = TypeVar("Seen")

DEADLINE_SECONDS = 1200.0
"""How long any wait may take. Generous: under load, a command that takes a second alone may take minutes."""
POLL_SECONDS = 0.02
MOST_POLL_SECONDS = 1.0
SESSION_VARIABLE = "PYTEST_SESSION_MARK"
"""Marks every process that a test run starts, directly or not; set once by conftest.py."""


def wait_for(
    look: Callable[[], Seen],
    what: str,
    *,
    until: Callable[[Seen], object] = bool,
    by: subprocess.Popen[str] | None = None,
) -> Seen:
    """Call ``look`` until ``until`` accepts what it returns, and return that. ``by``: fail if this process has ended.

    ``what`` completes the sentence "waited for ..." in the message of a failure, which shows the last value of
    ``look`` too. So let ``look`` return a state and ``until`` judge it. A look that takes long is taken less often: the
    processors are for what is waited for.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        begun = time.monotonic()
        has_ended = by is not None and by.poll() is not None
        seen = look()
        if until(seen):
            return seen
        if by is not None and has_ended:
            stdout, stderr = by.communicate()
            pytest.fail(f"{by.args!r} has ended without {what}: {by.returncode}\n{stdout}\n{stderr}", pytrace=False)
        now = time.monotonic()
        if now > deadline:
            waited = f"waited {DEADLINE_SECONDS:g} s in vain for {what}; last seen: {seen!r}"
            pytest.fail(f"{waited}\n\n{scene()}", pytrace=False)
        time.sleep(min(max(POLL_SECONDS, 9 * (now - begun)), MOST_POLL_SECONDS))


# -- the scene -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A live process of this test session."""

    pid: int
    parent: int
    state: str
    """As in /proc: R, S, D, T; a zombie is no live process."""
    words: str
    where: str
    """What the kernel waits for in it."""

    @property
    def is_python(self) -> bool:
        return "python" in self.words.split(" ")[0] or self.words.startswith("ray::")


def processes() -> Iterator[Process]:
    """The live processes that this test session has started, by process number."""
    if sys.platform != "linux":
        return
    mark = f"{SESSION_VARIABLE}={os.environ.get(SESSION_VARIABLE, 'none')}".encode()
    for entry in sorted((e for e in Path("/proc").iterdir() if e.name.isdigit()), key=lambda e: int(e.name)):
        try:
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            where = (entry / "wchan").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if state not in "ZX":
            yield Process(int(entry.name), int(parent), state, words, where)


def scene() -> str:
    """List the processes of this test session and the stack of each one that runs Python."""
    spy = Path(sys.executable).parent / "py-spy"  # comes with ray[default]
    lines, stacks = ["processes of this test session (pid, parent, state, kernel function, command):"], []
    for process in processes():
        lines.append(f"{process.pid:8} {process.parent:8} {process.state} {process.where:20} {process.words[:160]}")
        if process.is_python and spy.exists() and process.pid != os.getpid():
            try:
                dump = subprocess.run(
                    [spy, "dump", "--nonblocking", "--pid", str(process.pid)],
                    capture_output=True, text=True, timeout=20, check=False,
                )  # fmt: skip
                stacks += ["", (dump.stdout or dump.stderr).strip()]
            except subprocess.TimeoutExpired:
                stacks += ["", f"no stack of {process.pid} within 20 s"]
    return "\n".join([*lines, *stacks])
