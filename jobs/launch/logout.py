"""Check whether a background launcher is killed when its user logs out, and say how to prevent it."""

from __future__ import annotations

import getpass
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
ANSWER_SECONDS = 5.0


def advice(argv: Sequence[str]) -> str | None:
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
