"""A small file system of our own: mounted where this process and its children alone see it, gone when they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

INSIDE = "SEQLM_CHAOS_INSIDE"


def may_mount() -> bool:
    """Whether this process has the right to mount a file system for itself."""
    argv = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return os.geteuid() == 0 and subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def enter_own_mounts(module: str, arguments: list[str]) -> bool:
    """Start this program anew with mounts of its own; returns only where it has them already, or cannot (False)."""
    if os.environ.pop(INSIDE, None):
        return True
    if not may_mount():
        return False
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", module, *arguments])
    raise AssertionError("execvp does not return")


def mount_disk(folder: Path, megabytes: int) -> Path:
    """A tmpfs of that size at ``folder``."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=True)
    return folder
