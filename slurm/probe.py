"""One tiny job on a compute node, to learn what only a job can: whether files are shared, and what is there.

probe(settings, ...)
  submit       a script of one minute with the settings' options and setup
  _wait        the answer's file, or what becomes of the job, or the end of patience
  findings     what the answer means
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jobs.backends.base import Finding
from seqlm.errors import BackendError, FileError
from slurm import node_probe
from slurm.environment import first_lines, sbatch_environment
from slurm.settings import SlurmSettings
from slurm.site import ask

LOOK_EVERY_S = 2.0
"""How often the controller is asked about the probe."""
VISIBLE_WITHIN_S = 10.0
"""How long a file may take to be seen here once the job that wrote it is over."""
SKEW_S = 5.0
"""Clocks that are further apart are worth a word: times in files would mislead."""
OLDEST_PYTHON = (3, 11)


Gpu: TypeAlias = Literal["real", "fake"] | None
"""The GPU that a probe asks for: that of a test cluster is fake. ``None``: it asks for none."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a probe."""

    answer: dict[str, Any] | None
    """What the node wrote; none: nothing that can be seen here."""
    log: str | None
    """What the job printed; none: nothing that can be seen here."""
    state: str
    """Of the job at the last look: ``PENDING``, ``RUNNING``, ``over``."""
    reason: str
    """Why it waits, in SLURM's words."""
    waiting_at: float
    """When it was last seen waiting, or was submitted, by this machine's clock."""
    seen_at: float
    """When its answer was seen, or it was given up."""


def probe(settings: SlurmSettings, *, runs_dir: Path, gpu: Gpu, wait_s: float) -> list[Finding]:
    """Submit the job, wait for it, say what it found; it is cancelled where it takes too long.

    Raises:
        BackendError: it cannot be submitted.
        FileError: ``runs_dir`` cannot be written.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".slurm-doctor-", dir=runs_dir.absolute()))
    except OSError as error:
        raise FileError.from_os_error("write", runs_dir, error) from None
    try:
        own_file_clock_s = node_probe.file_clock_s(folder / "own-clock")
        outcome = _run(settings, folder, gpu=gpu, wait_s=wait_s)
        return findings(outcome, runs_dir=runs_dir, gpu=gpu, own_file_clock_s=own_file_clock_s, wait_s=wait_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def script(settings: SlurmSettings, folder: Path, *, gpu: Gpu) -> str:
    """The batch script of a probe in ``folder``."""
    options = settings.placement()
    options |= {"job-name": "seqlm-doctor", "time": 1, "ntasks": 1, "output": str(folder / "log").replace("%", "%%")}
    if gpu:
        options["gpus-per-node"] = 1
    lines = [f"#SBATCH --{key}" + ("" if v is True else f"={shlex.quote(str(v))}") for key, v in options.items()]
    start = shlex.join(["srun", *settings.srun_args])
    python = settings.python or shlex.quote(sys.executable)
    command = f"{start} {python} {shlex.quote(str(folder / 'node_probe.py'))}"
    return "\n".join(["#!/bin/bash", *lines, "", *first_lines(settings), *settings.setup, command, ""])


def _run(settings: SlurmSettings, folder: Path, *, gpu: Gpu, wait_s: float) -> Outcome:
    shutil.copyfile(node_probe.__file__, folder / "node_probe.py")
    batch = folder / "probe.sh"
    batch.write_text(script(settings, folder, gpu=gpu), "utf-8")
    submitted_at = time.time()
    environ = sbatch_environment(settings, os.environ)  # what jobs of runs get
    job = ask("sbatch", "--parsable", str(batch), environ=environ).strip().partition(";")[0]
    if not job.isdigit():
        raise BackendError(f'sbatch answers "{job}", which is no job id')
    try:
        outcome = _wait(job, folder, submitted_at=submitted_at, wait_s=wait_s)
    except BaseException:
        with contextlib.suppress(BackendError):  # the first error says more
            ask("scancel", job)
        raise
    # A job that has answered ends by itself, but its folder is about to go: then it may be gone already.
    with contextlib.suppress(BackendError) if outcome.answer or outcome.state == "over" else contextlib.nullcontext():
        ask("scancel", job)
    return outcome


def _wait(job: str, folder: Path, *, submitted_at: float, wait_s: float) -> Outcome:
    give_up_at = time.monotonic() + wait_s
    state, reason, waiting_at, look_at, over_at = "PENDING", "", submitted_at, 0.0, None
    while True:
        answer = _read_answer(folder)
        now = time.monotonic()
        complete = answer is not None and answer["torch"] is not None
        hidden = over_at is not None and now - over_at > VISIBLE_WITHIN_S
        if complete or hidden or now > give_up_at:
            log = _read(folder / "log")
            return Outcome(
                answer=answer, log=log, state=state, reason=reason, waiting_at=waiting_at, seen_at=time.time()
            )
        if over_at is None and now >= look_at:
            asked_at = time.time()
            state, reason = _look(job)
            waiting_at = asked_at if state == "PENDING" else waiting_at
            over_at = time.monotonic() if state == "over" else None
            look_at = time.monotonic() + LOOK_EVERY_S
        time.sleep(0.1)


def _look(job: str) -> tuple[str, str]:
    """State of a job and why it waits; ``over`` once the controller does not list it any more, or lists it as ended."""
    try:
        answer = ask("squeue", "-h", "-j", job, "-o", "%T|%r").strip()
    except BackendError as error:
        if "Invalid job id" in str(error):
            return "over", ""
        raise
    state, _, reason = answer.partition("|")
    return (state, reason) if state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") else ("over", reason)


def _read_answer(folder: Path) -> dict[str, Any] | None:
    list(folder.iterdir())  # makes a network file system look anew
    text = _read(folder / node_probe.ANSWER)
    return json.loads(text) if text else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None


# -- what it means ---------------------------------------------------------------------------------------------------


def findings(outcome: Outcome, *, runs_dir: Path, gpu: Gpu, own_file_clock_s: float, wait_s: float) -> list[Finding]:
    """What a probe's outcome tells a user; ``gpu``: the kind that it asked for."""
    answer = outcome.answer
    if answer is None:
        return [_silence(outcome, runs_dir, wait_s)]
    shared = f"{runs_dir} is seen by node {answer['host']} and by this machine"
    found = [Finding(level="ok", subject="shared folder", text=shared), _python(answer), _torch(answer["torch"], gpu)]
    return [*found, _clock(clock_skew_s(outcome, answer, own_file_clock_s))]


def clock_skew_s(outcome: Outcome, answer: dict[str, Any], own_file_clock_s: float) -> float:
    """By how many seconds the node's clock is ahead of this machine's, as far as can be told.

    From the times that each side's files get. That shows nothing on a file system that takes the writer's clock; but
    the node wrote after the job was last seen waiting and before its answer was seen, so what lies outside counts.
    """
    by_files = own_file_clock_s - answer["file_clock_s"]
    ahead = max(0.0, answer["clock"] - outcome.seen_at)
    behind = max(0.0, outcome.waiting_at - answer["clock"])
    return float(max((by_files, ahead, -behind), key=abs))


def _silence(outcome: Outcome, runs_dir: Path, wait_s: float) -> Finding:
    subject = "compute node"
    if outcome.state == "PENDING":
        why = f" ({outcome.reason})" if outcome.reason not in ("", "None") else ""
        text = f"still queued after {wait_s:g} s{why}; the trial job is cancelled, --wait-s waits longer"
        return Finding(level="note", subject=subject, text=text)
    if outcome.log is None and outcome.state == "over":
        text = f"a job there has left no file in {runs_dir}; put --runs-dir on a file system that nodes share"
        return Finding(level="bad", subject="shared folder", text=text)
    last = next((line for line in reversed((outcome.log or "").splitlines()) if line.strip()), "it printed nothing")
    if outcome.state == "over":
        return Finding(level="bad", subject=subject, text=f"Python did not start there: {last}")
    return Finding(level="note", subject=subject, text=f"no answer within {wait_s:g} s of a running job: {last}")


def _python(answer: dict[str, Any]) -> Finding:
    version = tuple(int(part) for part in answer["python"].split(".")[:2])
    text = f"Python {answer['python']}, {answer['executable']}"
    if version < OLDEST_PYTHON:
        text += f"; seqlm needs {'.'.join(map(str, OLDEST_PYTHON))} or newer, set python or setup"
    return Finding(level="bad" if version < OLDEST_PYTHON else "ok", subject="Python on node", text=text)


def _torch(torch: dict[str, Any] | None, gpu: Gpu) -> Finding:
    subject = "torch on node"
    if torch is None:
        return Finding(level="bad", subject=subject, text="importing it took longer than the trial job had")
    if "error" in torch:
        text = f"cannot be imported ({torch['error']}); set python or setup"
        return Finding(level="bad", subject=subject, text=text)
    devices = torch["devices"]
    if gpu == "fake":
        text = (
            f"{torch['version']} sees no CUDA device: the GPUs of this test cluster are fake; train on its processors "
        )
        text += 'with resources.gpus = 0 or env = {SEQLM_DEVICE = "cpu"}'
        return Finding(level="note", subject=subject, text=text)
    if gpu and not devices:
        text = f"{torch['version']} sees no CUDA device, yet the job was given a GPU; install a CUDA build of torch"
        return Finding(level="bad", subject=subject, text=text)
    seen = f"sees {devices[0]}" if devices else "no GPU asked for"
    return Finding(level="ok", subject=subject, text=f"{torch['version']}, {seen}")


def _clock(skew_s: float) -> Finding:
    if abs(skew_s) <= SKEW_S:
        return Finding(level="ok", subject="clock of node", text=f"{abs(skew_s):.1f} s from this machine's")
    direction = "ahead of" if skew_s > 0 else "behind"
    text = f"{abs(skew_s):.1f} s {direction} this machine's; times in runs' files will mislead"
    return Finding(level="note", subject="clock of node", text=text)
