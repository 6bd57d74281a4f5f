"""``doctor``: whether this machine can launch, train and report, and what to do if it cannot."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import seqlm
from jobs.backends.base import PROGRAM, Backend, Finding, torch_finding
from jobs.cli.arguments import Arguments, read
from jobs.launch.prepare import find_data
from jobs.registry import BACKENDS, backend_class
from jobs.terminal import FINDINGS, memory, show
from seqlm import machine
from seqlm.config import DataConfig
from seqlm.data.cache import cache_folder
from seqlm.data.corpus import load_corpus
from seqlm.errors import BackendError, SeqlmError, UsageError
from seqlm.reading import exists

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "jobs" / "manifests" / "calibration.toml"
PACKAGES = ("torch", "pandas", "matplotlib", "ray", "tokenizers")
"""Packages whose versions are shown if they are installed."""
LOW_DISK_BYTES = 2 * 1024**3


def doctor(arguments: Arguments) -> tuple[Any, int]:
    """Print findings about this machine, and the cluster with ``--backend slurm``. Exit code 3: runs would fail."""
    if (arguments.write_site or arguments.record) and not backend_class(arguments.backend or "local").is_scheduled:
        raise UsageError("--write-site and --record: expected --backend slurm with them")
    findings = examine(arguments.runs_dir, find_data(arguments.data, None))
    for name in BACKENDS:
        kind: type[Backend] = backend_class(name)
        is_asked = name == arguments.backend
        files = {"site": arguments.write_site, "record": arguments.record}
        findings += kind.doctor(runs_dir=arguments.runs_dir, is_asked=is_asked, wait_s=arguments.wait_s, **files)
    show(FINDINGS, findings)
    data = {"findings": [vars(finding) for finding in findings]}
    if any(finding.level == "bad" for finding in findings):
        return data, BackendError.exit_code
    return data, calibrate(arguments) if arguments.calibrate else 0


def calibrate(arguments: Arguments) -> int:
    """Train one small run of each architecture on the whole machine, one by one; ``plan`` takes its speeds from them.

    Returns the exit code.
    """
    from jobs.cli.launching import run_manifest  # only this option launches

    words = ["run", str(CALIBRATION), "--backend", "local", "--runs-dir", str(arguments.runs_dir)]
    arguments_of_run = read([*words, *(["--json"] if arguments.json else [])])
    assert arguments_of_run is not None
    return run_manifest(arguments_of_run)[1]


def examine(runs_dir: Path, data_path: Path | None) -> list[Finding]:
    """Check everything that a launch on this machine needs."""
    gpus: Sequence[machine.Gpu] = ()
    try:
        gpus = machine.gpus()
        devices = list(_devices(gpus))
    except (BackendError, UsageError) as error:
        devices = [Finding("bad", "GPU", str(error))]
    has_git = shutil.which("git") is not None
    cores, load = machine.cpu_count(), os.getloadavg()[0]
    is_busy = load > 1.5 * cores
    busy = f"; busy (load average {load:.0f}): runs may train several times slower than estimated" if is_busy else ""
    bf16 = "bf16" if machine.has_bf16() else "no bf16"
    processor = f"{machine.cpu_model()}, {cores} cores, {bf16}, fp32 products by {machine.matmul_library()}{busy}"
    return [
        Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in _versions().items())),
        _torch(gpus),
        Finding("note" if is_busy else "ok", "processor", processor),
        *devices,
        _folder("runs", runs_dir),
        _folder("cache", cache_folder()),
        Finding("ok", "git", "found; runs record their commit")
        if has_git
        else Finding("note", "git", "not found; runs will record no commit"),
        _penn_treebank(data_path),
    ]


def _versions() -> dict[str, str]:
    """Return the versions of seqlm, Python and the installed packages of ``PACKAGES``, without importing them."""
    found = {"seqlm": seqlm.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _torch(gpus: Sequence[machine.Gpu]) -> Finding:
    """Return what a process of its own says of torch."""
    advice = "install seqlm's requirements"
    command = [sys.executable, "-P", "-c", PROGRAM]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("bad", "torch", f"cannot be imported; {advice} ({last})")
    except subprocess.TimeoutExpired:
        return Finding("bad", "torch", "took more than 2 minutes")
    has = f"the machine has {len(gpus)}" if gpus else None
    return torch_finding("torch", json.loads(done.stdout.splitlines()[-1])[1:], gpus=has, advice=advice)


def _devices(gpus: Sequence[machine.Gpu]) -> Iterator[Finding]:
    """Yield the GPUs for runs, and whether runs that share a GPU compute at the same time."""
    for gpu in gpus:
        yield Finding("ok", machine.short_name(gpu.id), gpu.name)
    if not gpus:
        yield Finding("note", "GPU", "none; runs will train on the CPU")
        return
    folder = machine.mps_directory(os.environ)
    if folder is not None:
        text = f"the MPS daemon of {folder} lets runs that share a GPU compute at the same time"
    elif exclusive := machine.exclusive_gpus():
        names = ", ".join(machine.short_name(device) for device, _ in exclusive)
        text = f"refused without an MPS daemon: one process at a time may use {names}"
    else:
        text = "no MPS daemon: runs that share a GPU take turns; docs/guides/ray.md says how to start one"
    yield Finding("note" if folder is None else "ok", "shares of a GPU", text)


def _folder(subject: str, path: Path) -> Finding:
    """Check that ``path``, or its nearest existing parent, takes files."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if exists(folder))
    try:
        with tempfile.NamedTemporaryFile(prefix=".seqlm-doctor-", dir=existing):
            pass
    except OSError as error:
        return Finding("bad", subject, f"cannot write in {existing}: {error.strerror or error}")
    free = shutil.disk_usage(existing).free
    text = f"{path} is writable, {memory(free)} free"
    return Finding("note" if free < LOW_DISK_BYTES else "ok", subject, text)


def _penn_treebank(data_path: Path | None) -> Finding:
    try:
        tokens = load_corpus(DataConfig(corpus="ptb"), data_path).tokens
    except SeqlmError as error:
        return Finding("note", "Penn Treebank", str(error).splitlines()[0])
    return Finding("ok", "Penn Treebank", f"found, {sum(tokens.values()):,} tokens, verified")
