"""The file system that studies are disturbed on."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from tests.chaos.disk import Disk, may_mount

pytestmark = pytest.mark.process


@pytest.mark.skipif(not may_mount(), reason="mounting is not allowed here")
def test_a_folder_becomes_read_only_while_files_in_it_are_written_all_the_time(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", 4)
    folder = disk.path / "study"
    folder.mkdir()
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            with contextlib.suppress(OSError), (folder / "file").open("ab") as file:
                file.write(b"x")
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            disk.make_read_only(folder)
            with pytest.raises(OSError, match="Read-only"):
                (folder / "other").touch()
            disk.make_writable(folder)
            (folder / "other").touch()
    finally:
        enough.set()
        writer.join()
        disk.close()
