"""``doctor --backend slurm``: check whether this cluster can run seqlm, and say what to change if it cannot."""

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

from jobs.backends.base import MARK, PROGRAM, Finding, Level, torch_finding
from jobs.plan.capacity import with_noun
from jobs.spec import Resources
from jobs.study.squeue import ask
from seqlm.errors import BackendError, FileError
from seqlm.reading import listed
from slurm.environment import batch_script, submit_script
from slurm.settings import SlurmSettings
from slurm.site import PartitionFacts, controller_config, partition_facts

WAIT_S = 120.0
"""Seconds that the trial job may take, waiting included."""
LOOK_EVERY_S = 1.0
"""Interval between two looks at the trial job."""
VISIBLE_WITHIN_S = 10.0
"""Seconds within which files of an ended job must become visible here."""
OLDEST_PYTHON = (3, 11)

Gpu: TypeAlias = Literal["real", "fake"] | None
"""The kind of GPU that the trial job requests; a test cluster has fake ones. ``None`` means that it requests none."""


def examine(settings: SlurmSettings, *, runs_dir: Path, wait_s: float = WAIT_S) -> list[Finding]:
    """Check the cluster from a login node, then from a compute node. Stop at a problem that prevents further checks."""
    found: list[Finding] = []
    try:
        found.append(Finding("ok", "sbatch", ask("sbatch", "--version").strip()))
        found += _limits(settings)
        facts = partition_facts(settings.partition)
    except BackendError as error:
        return [*found, Finding("bad", "SLURM", str(error))]
    found.append(_partition(facts))
    fit = _fit(facts, settings)
    found.append(fit)
    if fit.level == "bad" or not facts.up:
        return found
    try:
        gpu: Gpu = "fake" if any(kind.fakes for kind in facts.kinds) else "real" if facts.gpus_per_node else None
        return [*found, *_try(settings, runs_dir=runs_dir, gpu=gpu, wait_s=wait_s)]
    except (BackendError, FileError) as error:
        return [*found, Finding("bad", "compute node", str(error))]


def _limits(settings: SlurmSettings) -> list[Finding]:
    config = controller_config()
    size = config.max_array_size
    level: Level = "ok"
    text = f"up to {size:,} tasks in an array (MaxArraySize), {config.max_job_count:,} jobs of all users"
    if size == 0:
        level, text = "bad", "the cluster takes no job arrays (MaxArraySize is 0)"
    elif settings.max_parallel is not None and settings.max_parallel > size:
        level, text = "note", f"{text}; max_parallel {settings.max_parallel} is more than one array can hold"
    accounting = Finding("note", "accounting", "off; how a job ended is read from its run's files only")
    if config.accounting:
        accounting = Finding("ok", "accounting", "on")
    return [Finding(level, "job arrays", text), accounting]


def _partition(facts: PartitionFacts) -> Finding:
    limit = "no time limit" if facts.time_limit_min is None else f"jobs of up to {facts.time_limit_min:,} min"
    has = f"{with_noun(facts.gpus_per_node, 'GPU')} and {with_noun(facts.cpus_per_node, 'core')} on a node"
    text = f"{facts.name}: {facts.usable_nodes} of {facts.nodes} nodes usable, up to {has}, {limit}"
    if not facts.up:
        return Finding("bad", "partition", f"{text}; it starts no jobs now")
    return Finding("ok" if facts.usable_nodes else "note", "partition", text)


def _fit(facts: PartitionFacts, settings: SlurmSettings) -> Finding:
    """Return whether a run that fills a node, as far as the settings allow, could start."""
    try:
        gets = facts.resolve(Resources(ranks=settings.ranks_per_node or 1), settings)
    except BackendError as error:
        return Finding("bad", "settings", str(error))
    memory = f"{settings.mem_gb:g} GB of memory, " if settings.mem_gb else ""
    each = f"{with_noun(gets.gpus or 0, 'GPU')} and {with_noun(gets.cpus or 1, 'core')}"
    ranks = with_noun(gets.ranks, "rank")
    return Finding("ok", "settings", f"{ranks} on a node, {each} each, {memory}{settings.timeout_min} min")


# -- a trial job on a compute node -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of the trial job."""

    answers: list[list[Any]]
    """The lines of :data:`PROGRAM`, as far as they are visible here."""
    log: str | None
    """The job's output. ``None`` means that no output is visible here."""
    state: str
    """Last known state of the job, such as ``PENDING`` or ``RUNNING``, or ``over``."""
    reason: str
    """SLURM's reason why the job waits."""

    @property
    def last_line(self) -> str:
        """The last line of the job's output besides answers."""
        lines = [line for line in (self.log or "").splitlines() if line.strip() and MARK not in line]
        return lines[-1] if lines else "no output"


def _try(settings: SlurmSettings, *, runs_dir: Path, gpu: Gpu, wait_s: float) -> list[Finding]:
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
        job = submit_script(folder / "trial.sh", script(settings, folder, gpu=gpu, wait_s=wait_s), settings)
        try:
            outcome = _wait(job, folder / "log", wait_s=wait_s)
        finally:  # it must end before its folder is removed
            with contextlib.suppress(BackendError):  # that it has ended already is an error
                ask("scancel", job)
        return findings(outcome, runs_dir=runs_dir, gpu=gpu, wait_s=wait_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def script(settings: SlurmSettings, folder: Path, *, gpu: Gpu, wait_s: float) -> str:
    """Return the batch script of a trial job with its log in ``folder``.

    Its time limit is a minute longer than the wait for it: SLURM may announce the limit so much earlier than asked, and
    the signal ends the job.
    """
    options = {
        "job-name": "seqlm-doctor",
        "time": math.ceil(wait_s / 60) + 1,
        "signal": "USR2@1",
        "ntasks": 1,
        "chdir": folder,  # Python imports from it
        "output": str(folder / "log").replace("%", "%%"),
        **({"gpus-per-node": 1} if gpu else {}),
    }
    python = settings.python or shlex.quote(sys.executable)
    return batch_script(
        settings, options, f"{shlex.join(['srun', *settings.srun_args])} {python} -c {shlex.quote(PROGRAM)}"
    )


def _wait(job: str, log: Path, *, wait_s: float) -> Outcome:
    """Poll until the job has answered, takes too long, or ended so long ago that its log must be visible."""
    give_up_at, over_at = time.monotonic() + wait_s, math.inf
    while True:
        now, (state, reason) = time.monotonic(), _look(job)
        over_at = min(over_at, now) if state == "over" else math.inf
        listed(log.parent)  # makes a network file system refresh its cache
        text = None
        with contextlib.suppress(OSError):
            text = log.read_text("utf-8", errors="replace")
        lines = [line for line in (text or "").splitlines(keepends=True) if MARK in line and line.endswith("]\n")]
        answers = [json.loads(line[line.index("[") :])[1:] for line in lines]  # a step may label its lines
        if len(answers) == 2 or now > give_up_at or now - over_at > VISIBLE_WITHIN_S:
            return Outcome(answers=answers, log=text, state=state, reason=reason)
        time.sleep(LOOK_EVERY_S)


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


def findings(outcome: Outcome, *, runs_dir: Path, gpu: Gpu, wait_s: float) -> list[Finding]:
    """Return the findings of a trial job. ``gpu`` is the kind of GPU that it requested."""
    if not outcome.answers:
        return [_silence(outcome, runs_dir, wait_s)]
    host, version, executable = outcome.answers[0]
    shared = Finding("ok", "shared folder", f"{runs_dir} is visible on node {host} and on this machine")
    python = Finding("ok", "Python on node", f"Python {version}, {executable}")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        python = Finding("bad", python.subject, f"{python.text}; expected {oldest} or newer; set python or setup")
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
        return Finding("bad", subject, f"Python did not start there: {outcome.last_line}")
    text = f"Python of the running trial job had not answered after {wait_s:g} s: {outcome.last_line}"
    return Finding("note", subject, f"{text}; --wait-s sets a longer wait")


def _torch(outcome: Outcome, gpu: Gpu, wait_s: float) -> Finding:
    subject, found = "torch on node", outcome.answers[1:]
    if not found and outcome.state == "over":
        return Finding("bad", subject, f"the trial job ended while importing it: {outcome.last_line}")
    if not found:
        text = f"still being imported {wait_s:g} s after the trial job was submitted"
        return Finding("note", subject, f"{text}; is the node busy, or its disk slow? --wait-s sets a longer wait")
    if gpu == "fake" and len(found[0]) > 1:
        text = f"{found[0][0]} sees no CUDA device: the GPUs of this test cluster are fake; train on the CPU "
        return Finding("note", subject, text + 'with resources.gpus = 0 or env = {SEQLM_DEVICE = "cpu"}')
    has = "the job was given a GPU" if gpu else None
    return torch_finding(subject, found[0], gpus=has, advice="set python or setup")
