"""``doctor``: whether this machine can launch, train and report, and what to do if it cannot."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.backends.base import PROGRAM, Backend, BackendTable, Finding, torch_finding
from jobs.backends.local import LocalBackend
from jobs.cli.arguments import Arguments, read
from jobs.cli.tables import FINDINGS, show
from jobs.launch.prepare import find_data
from jobs.registry import BACKENDS, backend_class
from jobs.study.provenance import versions
from jobs.terminal import memory, program
from seqlm import machine
from seqlm.config import DataConfig
from seqlm.data.cache import cache_folder
from seqlm.data.corpus import load_corpus
from seqlm.errors import BackendError, SeqlmError, UsageError
from seqlm.reading import exists

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "jobs" / "manifests" / "calibration.toml"
LOW_DISK_BYTES = 2 * 1024**3
LOW_INODES = 10_000


def doctor(arguments: Arguments) -> tuple[Any, int]:
    """Print findings about this machine, and the cluster with ``--backend slurm``. Exit code 3: runs would fail."""
    findings = examine(arguments.runs_dir, find_data(arguments.data, None))
    for name in BACKENDS:
        kind: type[Backend] = backend_class(name)
        is_asked = name == arguments.backend
        findings += kind.doctor(runs_dir=arguments.runs_dir, is_asked=is_asked, wait_s=arguments.wait_s)
    if arguments.calibrate:
        findings += check_devices()
    show(FINDINGS, findings)
    data = {"findings": [vars(finding) for finding in findings]}
    if any(finding.level == "bad" for finding in findings):
        return data, BackendError.exit_code
    return data, calibrate(arguments) if arguments.calibrate else 0


def calibrate(arguments: Arguments) -> int:
    """Train one small run of each architecture on the whole machine, one by one; ``plan`` takes its speeds from them.

    Returns the exit code.
    """
    from jobs.cli.launching import train  # only this option launches
    from jobs.launch.job import LaunchOptions
    from jobs.manifests.load import load_manifest
    from jobs.plan.record import record_of

    manifest = load_manifest(CALIBRATION)
    words = ["run", str(CALIBRATION), "--runs-dir", str(arguments.runs_dir), *(["--json"] if arguments.json else [])]
    arguments_of_run = read(words)
    assert arguments_of_run is not None
    specs = [replace(spec, command=[*program().split(), "doctor", "--calibrate"]) for spec in manifest.runs]
    record = record_of(manifest, manifest.runs, None)
    options = LaunchOptions(study_dir=arguments.runs_dir / manifest.study, record=record)
    return train(arguments_of_run, specs, options, LocalBackend(BackendTable(max_parallel=1)))[1]


def examine(runs_dir: Path, data_path: Path | None) -> list[Finding]:
    """Check everything that a launch on this machine needs."""
    gpus: Sequence[machine.Gpu] = ()
    try:
        gpus = machine.gpus()
        devices = list(_devices(gpus))
    except UsageError as error:
        devices = [Finding("bad", "GPU", str(error))]
    has_git = shutil.which("git") is not None
    cores, load = machine.cpu_count(), os.getloadavg()[0]
    is_busy = load > 1.5 * cores
    busy = f"; busy (load average {load:.0f}): runs may train several times slower than estimated" if is_busy else ""
    bf16 = "bf16" if machine.has_bf16() else "no bf16"
    processor = f"{machine.cpu_model()}, {cores} cores, {bf16}, fp32 products by {machine.matmul_library()}{busy}"
    return [
        Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        _torch(gpus),
        Finding("note" if is_busy else "ok", "processor", processor),
        *devices,
        _folder("runs", runs_dir),
        *_file_system(runs_dir),
        _folder("cache", cache_folder()),
        Finding("ok", "git", "found; runs record their commit")
        if has_git
        else Finding("note", "git", "not found; runs will record no commit"),
        _penn_treebank(data_path),
    ]


def _answer(subject: str, fails: str, seconds: int, *words: str) -> Any:
    """Return the JSON in the last line that a program prints; a finding, which begins with ``fails``, if it fails."""
    command = [sys.executable, *words]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("bad", subject, f"{fails} ({last})")
    except subprocess.TimeoutExpired:
        return Finding("bad", subject, f"took more than {seconds // 60} minutes")


def _torch(gpus: Sequence[machine.Gpu]) -> Finding:
    advice = "install seqlm's requirements"
    answer = _answer("torch", f"cannot be imported; {advice}", 120, "-P", "-c", PROGRAM)
    has = f"the machine has {len(gpus)}" if gpus else None
    return answer if isinstance(answer, Finding) else torch_finding("torch", answer[1:], gpus=has, advice=advice)


def check_devices() -> list[Finding]:
    """Compare fused operations with their equations on this machine's devices; takes half a minute on a CPU."""
    answer = _answer("self-check", "cannot be computed", 600, "-m", "seqlm.training.self_check")
    return [answer] if isinstance(answer, Finding) else [Finding(**finding) for finding in answer]


def _devices(gpus: Sequence[machine.Gpu]) -> Iterator[Finding]:
    """Yield the GPUs for runs, what an index means, and whether runs that share a GPU compute at the same time."""
    for gpu in gpus:
        yield Finding("ok", machine.short_name(gpu.id), gpu.name)
    for card in machine.cards():
        if card.has_mig and not card.instances:
            text = f"{card.whole.name} has MIG on and no instance; `nvidia-smi mig -cgi PROFILE -C` makes one"
            yield Finding("note", f"GPU {card.index}", text)
    if not gpus:
        yield Finding("note", "GPU", "none; runs will train on the CPU")
        return
    if note := machine.order_note():
        yield Finding("note", "GPU", note)
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
    """Check that files can be created in ``path``, or in its nearest existing parent folder."""
    existing = _existing(path)
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return Finding("bad", subject, f"cannot write in {existing}: {error.strerror or error}")
    free = shutil.disk_usage(existing).free
    return Finding("note" if free < LOW_DISK_BYTES else "ok", subject, f"{path} is writable, {memory(free)} free")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if exists(folder))


def _file_system(runs_dir: Path) -> list[Finding]:
    """Return what is not protected on the file system of the runs."""
    works = Finding("ok", "file system", "locks, links, renaming and flushing of folders work on this host")
    try:
        return [Finding("note", "file system", line) for line in unprotected(_existing(runs_dir))] or [works]
    except OSError:  # _folder has reported it
        return []


def _penn_treebank(data_path: Path | None) -> Finding:
    try:
        tokens = load_corpus(DataConfig(corpus="ptb"), data_path).tokens
    except SeqlmError as error:
        return Finding("note", "Penn Treebank", str(error).splitlines()[0])
    return Finding("ok", "Penn Treebank", f"found, {sum(tokens.values()):,} tokens, verified")


# -- what the file system of the runs supports ----------------------------------------------------------------------


def unprotected(folder: Path) -> list[str]:
    """Return a line for each feature that the file system of ``folder`` lacks, with the consequence.

    Whether other hosts see the locks of this host is not tested.

    Raises:
        OSError: nothing can be written in ``folder``.
    """
    lines = []

    @contextlib.contextmanager
    def trial(what: str, consequence: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            lines.append(f"{what}: {error.strerror or error}; {consequence}")

    with tempfile.TemporaryDirectory(prefix=".seqlm-doctor-", dir=folder) as name:
        file, link, other = (Path(name) / part for part in ("file", "link", "other"))
        file.write_text("new")
        other.write_text("old")
        only_leases = "only leases keep two workers from one run, and two launchers of a study may both submit"
        with trial("locks (flock)", only_leases), file.open() as first, file.open() as second:
            fcntl.flock(first, fcntl.LOCK_EX)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raise OSError("two at the same time")
        with trial("hard links", "last.pt is missing for an instant whenever a checkpoint is written"):
            os.link(file, link)
        with trial("renaming over a file", "no run can be saved"):
            file.replace(other)
            if other.read_text() != "new":
                raise OSError("the old file stays")
        with trial("flushing a folder (fsync)", "a crash of the machine may undo the files written last"):
            handle = os.open(name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    state = os.statvfs(folder)
    if state.f_files and state.f_favail < LOW_INODES:  # some file systems do not count them
        lines.append(f"free inodes: {state.f_favail:,} left; a run needs one for each of its files, some 30")
    return lines
