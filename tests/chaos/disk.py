"""A small file system of our own: mounted where a helper process alone sees it, and gone with that process."""

import os
import subprocess
import time
from pathlib import Path
from typing import final

BUSY_TRIES = 100

SCRIPT = 'mount -t tmpfs -o size="$1" none "$0" && echo mounted && exec sleep infinity'


def may_mount() -> bool:
    """Whether this process has the right to mount a file system for itself."""
    try:
        argv = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
        return os.geteuid() == 0 and subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@final
class Disk:
    """A tmpfs of some megabytes. Everybody reaches it by :attr:`path`, which leads through the helper's mounts."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir()
        argv = ["unshare", "--mount", "sh", "-c", SCRIPT, str(folder), f"{megabytes}m"]
        self._helper = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._helper.stdout is not None
        assert self._helper.stdout.readline() == "mounted\n", f"no file system could be mounted at {folder}"
        self._folder = folder
        self.path = Path(f"/proc/{self._helper.pid}/root{folder}")

    def fill(self, but_bytes: int = 0) -> None:
        """Leave no byte free, or this many and the rest of a page."""
        size = 2**20
        with (self.path / "ballast").open("ab", buffering=0) as ballast:
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2
            ballast.truncate(ballast.tell() - but_bytes)

    def make_room(self) -> None:
        """Take back what :meth:`fill` has done."""
        (self.path / "ballast").unlink(missing_ok=True)

    def make_read_only(self, folder: Path) -> None:
        """From now on nothing below ``folder`` can be changed, by root neither; files that are open stay writable."""
        inside = str(self._inside(folder))
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                self._in_helper("mount", "--bind", "-o", "ro", inside, inside)
            except subprocess.CalledProcessError:  # busy: a file has been opened to write in this very moment
                self.make_writable(folder)
                if not tries_left:
                    raise
                time.sleep(0.05)
            else:
                return

    def make_writable(self, folder: Path) -> None:
        """Take back what :meth:`make_read_only` has done."""
        self._in_helper("umount", "--lazy", str(self._inside(folder)))

    def close(self) -> None:
        """Everything on it is gone."""
        self._helper.kill()
        self._helper.communicate()

    def _inside(self, folder: Path) -> Path:
        return self._folder / folder.relative_to(self.path)

    def _in_helper(self, *argv: str) -> None:
        subprocess.run(["nsenter", f"--mount=/proc/{self._helper.pid}/ns/mnt", *argv], check=True)
