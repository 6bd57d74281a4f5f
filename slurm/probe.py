"""Run a job of one minute on a compute node, to check shared files, Python and torch there."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jobs.backends.base import Finding
from jobs.study.squeue import ask
from seqlm import machine
from seqlm.errors import BackendError, FileError
from seqlm.reading import listed
from slurm import node_probe
from slurm.environment import batch_script, submit_script
from slurm.settings import SlurmSettings

LOOK_EVERY_S = 2.0
"""Interval between queries of the controller."""
VISIBLE_WITHIN_S = 10.0
"""Seconds within which files of an ended job must become visible here."""
OLDEST_PYTHON = (3, 11)


Gpu: TypeAlias = Literal["real", "fake"] | None
"""The kind of GPU that a probe requests; a test cluster has fake ones. ``None`` means that it requests none."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a probe job."""

    answer: dict[str, Any] | None
    """Contents of the node's answer file. ``None`` means that no answer is visible here."""
    log: str | None
    """The job's output. ``None`` means that no output is visible here."""
    state: str
    """Last known state of the job, such as ``PENDING`` or ``RUNNING``, or ``over``."""
    reason: str
    """SLURM's reason why the job waits."""


def probe(settings: SlurmSettings, *, runs_dir: Path, gpu: Gpu, wait_s: float) -> list[Finding]:
    """Submit the job, wait for it, and return its findings. Cancel it if it takes longer than ``wait_s``.

    Raises:
        BackendError: the job cannot be submitted.
        FileError: ``runs_dir`` cannot be written.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".slurm-doctor-", dir=runs_dir.absolute()))
    except OSError as error:
        raise FileError.from_os_error("write", runs_dir, error) from None
    try:
        shutil.copyfile(node_probe.__file__, folder / "node_probe.py")
        job = submit_script(folder / "probe.sh", script(settings, folder, gpu=gpu, wait_s=wait_s), settings)
        try:
            outcome = _wait(job, folder, wait_s=wait_s)
        except BaseException:
            with contextlib.suppress(BackendError):  # the first error is more informative
                ask("scancel", job)
            raise
        # The job must end before its folder is removed. scancel reports as an error that a job has ended already.
        may_have_ended = outcome.answer or outcome.state == "over"
        with contextlib.suppress(BackendError) if may_have_ended else contextlib.nullcontext():
            ask("scancel", job)
        return findings(outcome, runs_dir=runs_dir, gpu=gpu, wait_s=wait_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def script(settings: SlurmSettings, folder: Path, *, gpu: Gpu, wait_s: float) -> str:
    """Return the batch script of a probe in ``folder``.

    Its time limit is a minute longer than the wait for it: SLURM may announce the limit so much earlier than asked, and
    the signal ends the probe.
    """
    options = {
        "job-name": "seqlm-doctor",
        "time": math.ceil(wait_s / 60) + 1,
        "signal": "USR2@1",
        "ntasks": 1,
        "output": str(folder / "log").replace("%", "%%"),
    }
    if gpu:
        options["gpus-per-node"] = 1
    python = settings.python or shlex.quote(sys.executable)
    start = shlex.join(["srun", *settings.srun_args])
    return batch_script(settings, options, f"{start} {python} {shlex.quote(str(folder / 'node_probe.py'))}")


def _wait(job: str, folder: Path, *, wait_s: float) -> Outcome:
    give_up_at = time.monotonic() + wait_s
    state, reason, look_at, over_at = "PENDING", "", 0.0, None
    while True:
        listed(folder)  # makes a network file system refresh its cache
        answer = json.loads(_read(folder / node_probe.ANSWER) or "null")
        now = time.monotonic()
        complete = answer is not None and answer["torch"] is not None
        hidden = over_at is not None and now - over_at > VISIBLE_WITHIN_S
        if complete or hidden or now > give_up_at:
            return Outcome(answer=answer, log=_read(folder / "log"), state=state, reason=reason)
        if over_at is None and now >= look_at:
            state, reason = _look(job)
            over_at = time.monotonic() if state == "over" else None
            look_at = time.monotonic() + LOOK_EVERY_S
        time.sleep(0.1)


def _look(job: str) -> tuple[str, str]:
    """Return a job's state and why it waits. The state is ``over`` once it is ended or no longer listed."""
    try:
        answer = ask("squeue", "-h", "-j", job, "-o", "%T|%r").strip()
    except BackendError as error:
        if "Invalid job id" in str(error):
            return "over", ""
        raise
    state, _, reason = answer.partition("|")
    return (state, reason) if state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") else ("over", reason)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None


# -- findings --------------------------------------------------------------------------------------------------------


def findings(outcome: Outcome, *, runs_dir: Path, gpu: Gpu, wait_s: float) -> list[Finding]:
    """Return the findings of a probe. ``gpu`` is the kind of GPU that it requested."""
    answer = outcome.answer
    if answer is None:
        return [_silence(outcome, runs_dir, wait_s)]
    shared = Finding("ok", "shared folder", f"{runs_dir} is visible on node {answer['host']} and on this machine")
    text = f"Python {answer['python']}, {answer['executable']}"
    python = Finding("ok", "Python on node", text)
    if tuple(map(int, answer["python"].split(".")[:2])) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        python = Finding("bad", "Python on node", f"{text}; expected {oldest} or newer; set python or setup")
    return [shared, python, _torch(outcome, gpu, wait_s)]


def _silence(outcome: Outcome, runs_dir: Path, wait_s: float) -> Finding:
    subject, over = "compute node", outcome.state == "over"
    if outcome.state == "PENDING":
        why = f" ({outcome.reason})" if outcome.reason not in ("", "None") else ""
        text = f"still queued after {wait_s:g} s{why}; the trial job was cancelled; --wait-s sets a longer wait"
        return Finding("note", subject, text)
    if outcome.log is None and over:
        text = f"a job there wrote no file visible in {runs_dir}; set --runs-dir to a file system that nodes share"
        return Finding("bad", "shared folder", text)
    if over:
        return Finding("bad", subject, f"Python did not start there: {_last_line(outcome)}")
    text = f"Python of the running trial job had not answered after {wait_s:g} s: {_last_line(outcome)}"
    return Finding("note", subject, f"{text}; --wait-s sets a longer wait")


def _last_line(outcome: Outcome) -> str:
    return next((line for line in reversed((outcome.log or "").splitlines()) if line.strip()), "no output")


def _torch(outcome: Outcome, gpu: Gpu, wait_s: float) -> Finding:
    assert outcome.answer is not None, "a node without an answer is reported elsewhere"
    subject, torch = "torch on node", outcome.answer["torch"]
    if torch is None and outcome.state == "over":
        return Finding("bad", subject, f"the trial job ended while importing it: {_last_line(outcome)}")
    if torch is None:
        text = (
            f"still being imported {wait_s:g} s after the trial job was submitted; is the node busy, or its disk slow?"
        )
        return Finding("note", subject, f"{text} --wait-s sets a longer wait")
    if "error" in torch:
        return Finding("bad", subject, f"cannot be imported ({torch['error']}); set python or setup")
    version, devices = torch["version"], torch["devices"]
    if gpu == "fake":
        text = f"{version} sees no CUDA device: the GPUs of this test cluster are fake; train on the CPU "
        return Finding("note", subject, text + 'with resources.gpus = 0 or env = {SEQLM_DEVICE = "cpu"}')
    if gpu and not devices:
        text = f"{version} sees no CUDA device, yet the job was given a GPU; install a CUDA build of torch"
        return Finding("bad", subject, text)
    if lacking := machine.lacking_code(devices, torch["built_for"]):
        return Finding("bad", subject, f"{version} {lacking}")
    return Finding("ok", subject, f"{version}, sees {devices[0][0]}" if devices else f"{version}, no GPU requested")
