"""A Ray cluster on this machine with as many cores and GPUs as wanted, in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seqlm.errors import BackendError

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def fake_cluster(cpus: int, gpus: int) -> Iterator[str]:
    """One node; yields its address.

    Raises:
        BackendError: Ray does not start.
    """
    argv = [sys.executable, "-m", "tests.ray_nodes", json.dumps([[cpus, gpus]])]
    folder = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR"))
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": folder},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise BackendError(
                "cannot start a Ray cluster on this machine; `python -m tests.ray_nodes '[[2, 0]]'` says why"
            )
        yield address
    finally:
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)
