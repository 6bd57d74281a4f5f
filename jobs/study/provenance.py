"""The contents of ``provenance.json``, written when a run is launched: code, machine, versions and command."""

import contextlib
import getpass
import importlib.metadata
import os
import platform
import socket
from typing import Any

import seqlm
from jobs.spec import RunSpec
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.reading import timestamp

PACKAGES = ("torch", "pandas", "matplotlib", "ray", "tokenizers")
"""Packages whose versions are recorded if they are installed."""

ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION")
"""The only environment variables whose values are recorded, since others might be secrets."""


def launch_record(study: str, code: Code) -> dict[str, Any]:
    """Return the part of the record that all runs of a launch share: machine, code and versions."""
    user = None
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    return {
        "study": study,
        "launched_at": timestamp(),
        "host": socket.gethostname(),
        "user": user,
        "devices": machine.devices(),
        "git": {"commit": code.commit, "dirty": code.dirty},
        "code": {"path": str(code.path), "live": code.live},
        "versions": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def run_record(spec: RunSpec) -> dict[str, Any]:
    """Return the part of the record for one run."""
    return {
        "name": spec.name,
        "entry": spec.entry,
        "order": spec.order,
        "command": list(spec.command),
        "resources": spec.resources.to_dict(),
        "data": str(spec.data_path.absolute()) if spec.data_path else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of seqlm, Python and the installed packages of ``PACKAGES``, without importing them."""
    found = {"seqlm": seqlm.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
