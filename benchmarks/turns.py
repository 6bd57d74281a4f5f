"""Turns in processes of their own, so that none inherits what another has left in memory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.interleave import Spread
from seqlm.errors import BackendError, UsageError

ROOT = Path(__file__).resolve().parent.parent


def take_turn(module: str, turn: Mapping[str, Any]) -> dict[str, Any]:
    """What ``python -m MODULE TURN.json`` prints last.

    Raises:
        BackendError: it has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "turn.json"
        file.write_text(json.dumps(turn), "utf-8")
        argv = [sys.executable, "-m", module, str(file)]
        answer = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise BackendError(f"{module} ended with exit code {answer.returncode}: {last}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def require_tune() -> None:
    """Raise UsageError where Ray Tune lacks the packages that Ray does not bring."""
    missing = [name for name in ("pyarrow", "tensorboardX") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"Ray Tune needs {' and '.join(missing)}: pip install -e '.[bench]'")


def rounded(spread: Spread, digits: int = 3) -> dict[str, float]:
    """For the document."""
    return {key: round(value, digits) for key, value in vars(spread).items()}


def load_average() -> list[float]:
    """Of the machine: other work on it lengthens everything."""
    return [round(load, 2) for load in os.getloadavg()]
