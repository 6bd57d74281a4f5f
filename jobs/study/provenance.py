"""Where a run came from: what ``provenance.json`` records when it is launched."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import seqlm
from jobs.spec import RunSpec
from jobs.study.kept_code import Code
from seqlm import machine

PACKAGES = ("torch", "pandas", "matplotlib", "ray", "submitit")
"""Packages whose versions are recorded where they are installed."""

ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION")
"""The only variables whose values are recorded; anything else might be a secret."""


def launch_record(study: str, code: Code) -> dict[str, Any]:
    """What a launch records with each of its runs: machine, code and versions."""
    return {
        "study": study,
        "launched_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "user": _user(),
        "devices": machine.devices(),
        "git": {"commit": code.commit, "dirty": code.dirty},
        "code": {"path": str(code.path), "live": code.live},
        "versions": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def run_record(spec: RunSpec, *, command: Sequence[str], data_path: Path | None) -> dict[str, Any]:
    """The record of one run beside that. ``command`` is the command line that launches this run alone."""
    return {
        "name": spec.name,
        "order": spec.order,
        "command": list(command),
        "resources": spec.resources.to_dict(),
        "data": str(data_path.absolute()) if data_path else None,
    }


def versions() -> dict[str, str]:
    """Versions of seqlm, Python and the packages that matter, without importing them."""
    found = {"seqlm": seqlm.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
