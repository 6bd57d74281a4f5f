"""Small runs through real workers: killed and resumed, and several at once on one card, with and without MPS."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import WINDOWS, write_text
from benchmarks.gpu.folder import Budget
from benchmarks.shapes import Shape, by_name, tiny
from jobs.attempt.supervisor import start_rank
from seqlm.config import DataConfig
from seqlm.errors import BackendError
from seqlm.files import read_json
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import Position, load_checkpoint
from seqlm.training.records import OF_THE_DAY

ROOT = Path(__file__).resolve().parents[2]
RESUMED = ("rnn-2x256-b20", "gru-2x256-b20", "transformer-2x256-b20")
SHARING = "gru-2x256-b20"
"""The small shape of which several train at once."""
COUNTS = (1, 2, 4, 8)
EPOCHS = 3
"""Of a run that is killed in its second one."""
SAVES = {"cuda": (WINDOWS, "0.002"), "cpu": (100, "0.0005")}
"""Kind of device -> steps of an epoch of such a run, and minutes between two checkpoints."""
TRIES = 5
"""Runs that are killed at most: the end of an epoch may come between the look at one and its end."""
COUNTED_EPOCHS = 2
"""Whole epochs of each run, from when all of them train to when the first is stopped, that count for the throughput."""
POLL_SECONDS = 0.01
PART_SECONDS = 60.0
"""Time that has to be left before a measurement with one architecture or one number of runs begins."""
STOP_SECONDS = 60.0
"""How long a worker that was asked to stop may take to save."""
MPS_SECONDS = 60.0
"""How long MPS may take to start, to let a process use the card, or to quit."""
Say = Callable[[str], None]
Save = Callable[[], None]


# -- workers -------------------------------------------------------------------------------------------------------


def start_worker(run: RunDirectory, text: Path, device: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the next attempt of a run with one thread, as backends do; its log is in the attempt's folder."""
    attempt = run.last_attempt() + 1
    run.attempt_dir(attempt).mkdir(parents=True)
    env = {"OMP_NUM_THREADS": "1", "SEQLM_DATA": str(text), "SEQLM_DEVICE": device}
    env |= {"SEQLM_ATTEMPT": str(attempt), **variables}
    argv = [sys.executable, "-m", "seqlm.training.worker", str(run.path)]
    with run.stdout_log(attempt).open("wb") as out, run.stderr_log(attempt).open("wb") as err:
        return start_rank(argv, env, str(ROOT), out, err)


def _finish(run: RunDirectory, worker: subprocess.Popen[bytes]) -> None:
    """Wait for a worker's end.

    Raises:
        BackendError: it has failed; with the last line of its log.
    """
    try:
        code = worker.wait()
    except BaseException:
        worker.kill()
        worker.wait()
        raise
    if code:
        raise _failed(run, code)


def _failed(run: RunDirectory, code: int) -> BackendError:
    attempt = run.last_attempt()
    log = run.stderr_log(attempt).read_text("utf-8", "replace").strip().splitlines() or ["no output"]
    return BackendError(f"{run.id}: a worker ended with exit code {code}: {run.end(attempt).message or log[-1]}")


def _new_run(folder: Path, shape: Shape, *, epochs: int, seed: int = 1111) -> RunDirectory:
    train = replace(shape.config.train, epochs=epochs)
    run = RunDirectory(folder)
    run.create(
        replace(shape.config, data=DataConfig(corpus="files"), train=train, seed=seed), Provenance(name=folder.name)
    )
    return run


# -- killed and resumed --------------------------------------------------------------------------------------------


def resume(document: dict[str, Any], save: Save, budget: Budget, device: str, say: Say) -> None:
    """Train each architecture twice in deterministic mode: undisturbed, and killed in mid-epoch and resumed."""
    names = RESUMED if device == "cuda" else ("gru-2x16-b4",)
    done: dict[str, Any] = document.setdefault("runs", {})
    for name in names:
        if name in done and done[name]["error"] is None:
            continue
        if budget.seconds_left < PART_SECONDS:
            break
        try:
            with tempfile.TemporaryDirectory(prefix="seqlm-") as folder:
                done[name] = {**_killed_and_resumed(by_name()[name], Path(folder), device), "error": None}
            if found := done[name]["differences"]:
                done[name]["error"] = f"{len(found)} tensors or files differ, the first of them {found[0]}"
        except BackendError as error:  # of this architecture: the others are worth a try
            done[name] = {"resumed_from": None, "differences": None, "error": str(error)}
        say(f"{name}: {done[name]['error'] or 'equal bit for bit'}")
        save()
    document["complete"] = all(name in done and done[name]["differences"] is not None for name in names)
    document["failures"] = [f"{name}: {run['error']}" for name, run in done.items() if run["error"]]


def _killed_and_resumed(shape: Shape, folder: Path, device: str) -> dict[str, Any]:
    windows, minutes = SAVES[device]
    text = write_text(folder / "text", shape, windows)
    variables = {"SEQLM_DETERMINISTIC": "1"}
    quiet = _new_run(folder / "quiet", shape, epochs=EPOCHS)
    _finish(quiet, start_worker(quiet, text, device, variables))
    for number in range(TRIES):
        killed = _new_run(folder / f"killed{number}", shape, epochs=EPOCHS)
        position = _kill_in_mid_epoch(killed, text, device, {**variables, "SEQLM_CHECKPOINT_MINUTES": minutes})
        if position.step > 0:
            break
    else:
        raise BackendError(f"{shape.name}: {TRIES} workers were killed, none of them within an epoch")
    _finish(killed, start_worker(killed, text, device, variables))
    saved = {"epoch": position.epoch, "step": position.step}
    return {"resumed_from": saved, "differences": _differences(quiet, killed)}


def _kill_in_mid_epoch(run: RunDirectory, text: Path, device: str, variables: Mapping[str, str]) -> Position:
    """Kill a worker once it has saved within its second epoch; return what its last checkpoint holds."""
    worker = start_worker(run, text, device, variables)
    try:
        while True:
            position = read_json(run.position_file) or {}
            if position.get("epoch") == 1 and position.get("step", 0) > 0:
                break
            if worker.poll() is not None:
                raise _failed(run, worker.returncode)
            time.sleep(POLL_SECONDS)
    finally:
        worker.kill()
        worker.wait()
    return load_checkpoint(run.last_checkpoint, run.read_config().fingerprint()).position


def _differences(one: RunDirectory, other: RunDirectory) -> list[str]:
    """Return the names of what differs between two runs of a configuration that are done."""
    found = []
    for file in ("last.pt", "best.pt"):
        states = []
        for run in (one, other):
            checkpoint = load_checkpoint(run.path / "checkpoints" / file, run.read_config().fingerprint())
            states.append(dict(_leaves({"model": checkpoint.model, "optimizer": checkpoint.optimizer})))
        names = sorted(states[0].keys() | states[1].keys())
        found += [f"{file} {name}" for name in names if not _is_same(states[0].get(name), states[1].get(name))]
    epochs = [[{k: v for k, v in e.items() if k not in OF_THE_DAY} for e in r.read_metrics()[0]] for r in (one, other)]
    return found + ["metrics.jsonl"] * (epochs[0] != epochs[1])


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


# -- several at once -----------------------------------------------------------------------------------------------


def sharing(document: dict[str, Any], save: Save, budget: Budget, device: str, say: Say) -> None:
    """Train 1, 2, 4 and 8 small runs at once, without and with MPS, and count tokens per second over all of them."""
    counts = COUNTS if device == "cuda" else COUNTS[:2]
    shape = by_name()[SHARING] if device == "cuda" else tiny()[1]
    windows = 800 if device == "cuda" else 30
    document |= {"shape": shape.name, "windows_per_epoch": windows}
    done: dict[str, Any] = document.setdefault("modes", {})
    document["complete"] = False
    with tempfile.TemporaryDirectory(prefix="seqlm-") as folder:
        text = write_text(Path(folder) / "text", shape, windows)
        for mode, server in (("without MPS", no_mps), ("with MPS", mps)):
            figures: dict[str, Any] = done.setdefault(mode, {"unavailable": None, "runs": {}})
            figures["failed"] = {}
            missing = [count for count in counts if str(count) not in figures["runs"]]
            try:
                with server(device) as variables:
                    figures["unavailable"] = None
                    for count in missing:
                        if budget.seconds_left < PART_SECONDS:
                            return
                        place = Path(folder) / f"{mode} {count}"
                        try:
                            found = _at_once(place, shape, text, count, device, variables)
                        except BackendError as error:  # perhaps they do not fit
                            figures["failed"][str(count)] = str(error)
                            say(f"{count} {mode}: {error}")
                        else:
                            figures["runs"][str(count)] = found
                            say(f"{count} {mode}: {found['train_tokens_per_second']:,.0f} tokens/s in all")
                        save()
            except MpsUnavailable as error:
                figures["unavailable"] = str(error)
                say(f"{mode}: {error}")
    document["failures"] = [
        f"{count} {mode}: {problem}" for mode, figures in done.items() for count, problem in figures["failed"].items()
    ]
    document["complete"] = not document["failures"]


def _at_once(
    folder: Path, shape: Shape, text: Path, count: int, device: str, variables: Mapping[str, str]
) -> dict[str, Any]:
    """Return the tokens per second of ``count`` runs while all of them train.

    Each run's speed is the median over the epochs that it began after every run had finished its first one.

    Raises:
        BackendError: a worker has failed.
    """
    runs = [_new_run(folder / f"run{n}", shape, epochs=10_000, seed=n + 1) for n in range(count)]
    workers = [start_worker(run, text, device, variables) for run in runs]
    try:
        first = _epochs_done(runs, workers, [1] * count)
        last = _epochs_done(runs, workers, [number + 1 + COUNTED_EPOCHS for number in first])
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
    speeds, seconds, memory = [], [], []
    for run, begin, end in zip(runs, first, last, strict=True):
        epochs = run.read_metrics()[0][begin + 1 : end]
        speeds.append(statistics.median(epoch["train_tokens_per_second"] for epoch in epochs))
        seconds.append(statistics.median(epoch["epoch_seconds"] for epoch in epochs))
        memory.append(max(epoch["peak_memory_bytes"] for epoch in epochs))
    return {
        "train_tokens_per_second": round(sum(speeds), 1),
        "of_each": [round(speed, 1) for speed in speeds],
        "epoch_seconds": [round(value, 4) for value in seconds],
        "peak_memory_mb": [round(value / 1e6, 1) for value in memory],
    }


def _epochs_done(runs: list[RunDirectory], workers: list[subprocess.Popen[bytes]], wanted: list[int]) -> list[int]:
    """Wait until each run has this many epochs in ``metrics.jsonl``; return how many each has by then."""
    while True:
        found = [len(run.read_metrics()[0]) for run in runs]
        if all(have >= want for have, want in zip(found, wanted, strict=True)):
            return found
        for run, worker in zip(runs, workers, strict=True):
            if worker.poll() is not None:
                raise _failed(run, worker.returncode)
        time.sleep(5 * POLL_SECONDS)


# -- MPS -----------------------------------------------------------------------------------------------------------


class MpsUnavailable(Exception):  # noqa: N818 -- not a fault: the machine has none, or forbids it
    """There is no MPS here; the text says why."""


@contextlib.contextmanager
def no_mps(device: str) -> Iterator[dict[str, str]]:
    """Yield no variables, for processes that take turns on the card."""
    if device == "cuda" and os.environ.get("CUDA_MPS_PIPE_DIRECTORY"):
        raise MpsUnavailable("CUDA_MPS_PIPE_DIRECTORY is set, so every process here uses MPS; unset it")
    yield {}


@contextlib.contextmanager
def mps(device: str) -> Iterator[dict[str, str]]:
    """Run an MPS server of our own while the block runs; yield the variables with which processes reach it.

    Its pipes are in a private folder, so that a server of somebody else is left alone
    (https://docs.nvidia.com/deploy/mps).

    Raises:
        MpsUnavailable: there is no ``nvidia-cuda-mps-control``, it does not start, or a process cannot use the card
            through it.
    """
    program = shutil.which("nvidia-cuda-mps-control")
    if device != "cuda" or program is None:
        raise MpsUnavailable("no GPU" if device != "cuda" else "there is no nvidia-cuda-mps-control on this machine")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in variables.values():
            Path(path).mkdir()
        env = {**os.environ, **variables}
        try:
            _require_success([program, "-d"], env, "nvidia-cuda-mps-control does not start")
            probe = "import torch; torch.ones(1, device='cuda').sum().item()"
            _require_success([sys.executable, "-c", probe], env, "a process cannot use the card through MPS")
            yield variables
        finally:
            _quit_mps(program, env)


def _require_success(argv: list[str], env: Mapping[str, str], problem: str) -> None:
    """Run a command; raise MpsUnavailable with its last line if it fails or does not end."""
    with tempfile.TemporaryFile("w+") as output:  # no pipe, which a daemon would hold open
        try:
            code = subprocess.run(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=MPS_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise MpsUnavailable(f"{problem}: no end within {MPS_SECONDS:g} s") from None
        output.seek(0)
        if code:
            raise MpsUnavailable(f"{problem}: {(output.read().strip().splitlines() or ['no output'])[-1]}")


def _quit_mps(program: str, env: Mapping[str, str]) -> None:
    """Ask our MPS server to quit, and kill it by its process number if it does not."""
    pid_file = Path(env["CUDA_MPS_PIPE_DIRECTORY"]) / "nvidia-cuda-mps-control.pid"
    pid = pid_file.read_text().strip() if pid_file.exists() else ""
    null = subprocess.DEVNULL
    try:
        subprocess.run([program], input=b"quit\n", env=env, stdout=null, stderr=null, timeout=MPS_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        if pid.isdecimal():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
