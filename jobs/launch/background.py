"""The process of a launcher: the signals that end it, and its life in the background, also after a logout."""

from __future__ import annotations

import contextlib
import getpass
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import final

from jobs import terminal
from jobs.study.folder import launcher_of
from seqlm.errors import BackendError
from seqlm.files import append_to, make_directory
from seqlm.reading import listed

STOP_SECONDS = 60.0
"""Time that workers have to stop before they are killed. A step at the published sizes takes seconds on a CPU."""
CGROUP = Path("/proc/self/cgroup")
ANSWER_SECONDS = 5.0
START_SECONDS = 120.0
"""How long a background launcher may read data before the command returns without it."""


@final
class Interrupts:
    """The signals that ask a launcher to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP. Its loop acts on them."""

    def __init__(self) -> None:
        self.stop = False
        """Whether the workers are to stop between two steps."""
        self.kill = False
        """Whether the workers are to be killed: SIGINT or SIGTERM came after an earlier request."""
        self._asked = False

    def request(self) -> None:
        """Ask for the end of the launch, as the first Ctrl-C does."""
        self.stop = self._asked = True

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals while the block runs. No signal raises an exception in it."""
        # A signal that the caller has set to be ignored (nohup) stays ignored.
        known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        numbers = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if number != signal.SIGHUP:  # of a terminal that closes, kernel and shell both send it
            self.kill = self._asked
            self._asked = True


def detach(argv: Sequence[str], study_dir: Path) -> int:
    """Start a background launcher that outlives this process (``--no-wait``), and return its pid.

    Its output goes to ``launch-NNNN.log`` in the study's folder. Return once it has checked everything and lists its
    runs; after ``START_SECONDS``, say that it has not done so yet. An interrupt before that ends the launcher too.

    Raises:
        BackendError: it exited before that. The message has the last line of its log.
    """
    make_directory(study_dir)
    logs = (re.fullmatch(r"launch-([0-9]+)\.log", path.name) for path in listed(study_dir))
    log = study_dir / f"launch-{max((int(log[1]) for log in logs if log), default=0) + 1:04d}.log"
    with append_to(log) as output:
        child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    try:
        while child.poll() is None:
            holder = launcher_of(study_dir)
            if holder is not None and holder.pid == child.pid and holder.has_listed:
                return child.pid
            if time.monotonic() > deadline:
                terminal.tell(f"warning: the launcher is still preparing after {START_SECONDS:g} s; see {log}")
                return child.pid
            time.sleep(0.05)
    except BaseException:
        child.terminate()
        raise
    if child.returncode:
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        raise BackendError(f"the launcher exited at once: {lines[-1] if lines else 'no output'} (see {log})")
    return child.pid  # it finished before its queue was seen


def logout_advice(argv: Sequence[str]) -> str | None:
    """Return advice for a user whose launcher is killed at logout, or ``None`` if it is not, as far as is known.

    With ``KillUserProcesses``, systemd-logind kills every process of a login session when the session ends, even those
    with a session id of their own. ``argv`` is the command that started the background launcher.
    """
    if not _in_login_session() or not _logind_kills(getpass.getuser()):
        return None
    command = shlex.join(["systemd-run", "--user", "--scope", *argv])
    return (
        "the launcher ends when you log out (KillUserProcesses=yes on this machine); to keep it, cancel, run "
        f"`loginctl enable-linger` once, then launch with: {command} "
        "(or start tmux that way and launch in it, or use --backend slurm)"
    )


def _in_login_session() -> bool:
    """Return whether this process is in a login session's scope, not in a separate one as systemd-run makes it."""
    try:
        return re.search(r"/session-[^/]+\.scope(/|$)", CGROUP.read_text("utf-8"), flags=re.MULTILINE) is not None
    except OSError:
        return False


def _logind_kills(user: str) -> bool:
    """Return whether logind kills this user's processes (``man logind.conf``); false if it does not answer."""
    names = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")
    command = ["loginctl", "show-session", *(f"--property={name}" for name in names)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    found = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    only, excluded = found.get("KillOnlyUsers", "").split(), found.get("KillExcludeUsers", "").split()
    return found.get("KillUserProcesses") == "yes" and user not in excluded and (not only or user in only)
