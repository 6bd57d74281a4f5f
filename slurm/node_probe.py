"""Runs on a compute node for ``doctor`` and writes, beside itself, what it finds there.

Copied into the folder that node and launcher share and started as a file, so that it needs nothing but some Python.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

ANSWER = "answer.json"


def main() -> None:
    """Write the answer twice: what Python says at once, and torch, which may take long or fail, afterwards."""
    folder = Path(__file__).absolute().parent
    answer: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "clock": time.time(),
        "file_clock_s": file_clock_s(folder / "node-clock"),
        "torch": None,
    }
    _write(folder, answer)
    _write(folder, {**answer, "torch": _torch()})


def file_clock_s(path: Path) -> float:
    """By how much the time that a new file gets is ahead of this machine's clock, in seconds.

    On a network file system files get the server's time, so that two machines learn from it how far they are apart,
    however long either takes to see the other's file.
    """
    before = time.time()
    with path.open("w", encoding="utf-8") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_mtime - (before + time.time()) / 2


def _torch() -> dict[str, Any]:
    try:
        import torch

        count = torch.cuda.device_count()
        names = [torch.cuda.get_device_name(device) for device in range(count)]
    except Exception as error:  # a broken installation may raise anything
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"version": str(torch.__version__), "devices": names}


def _write(folder: Path, answer: dict[str, Any]) -> None:
    beside = folder / f"{ANSWER}.new"
    beside.write_text(json.dumps(answer), encoding="utf-8")
    beside.replace(folder / ANSWER)


if __name__ == "__main__":
    main()
