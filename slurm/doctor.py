"""``doctor --backend slurm``: check whether this cluster can run seqlm, and say what to change if it cannot."""

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jobs.backends.base import MARK, PROGRAM, Finding, torch_finding
from jobs.plan.capacity import with_noun
from jobs.scheduled.environment import setup_lines, submission_environment
from jobs.scheduled.site import Site
from jobs.study.scheduler import Claim
from seqlm.errors import BackendError, FileError, file_errors
from seqlm.files import write_text
from seqlm.reading import listed
from seqlm.resources import Resources
from slurm.scheduler import Slurm, ask
from slurm.scripts import batch_script
from slurm.settings import SlurmSettings
from slurm.site import max_array_size, partition_facts

WAIT_S = 120.0
"""Seconds that the trial job may take, waiting included."""
LOOK_EVERY_S = 1.0
"""Interval between two looks at the log of the trial job."""
OLDEST_PYTHON = (3, 11)
OVER = f"{MARK} is over"
"""The last line of the trial job's log."""


def examine(settings: SlurmSettings, *, runs_dir: Path, wait_s: float = WAIT_S) -> list[Finding]:
    """Check the cluster from a login node, then from a compute node. Stop at a problem that prevents further checks."""
    found, subject = [], "SLURM"
    try:
        found.append(Finding("ok", "sbatch", ask("sbatch", "--version").strip()))
        size = max_array_size()
        found.append(Finding("ok" if size else "bad", "job arrays", f"up to {size:,} tasks in an array (MaxArraySize)"))
        facts = partition_facts(settings.partition)
        found += [*_partition(facts, settings), *_options(settings)]
        subject = "compute node"
        found += _try(settings, runs_dir=runs_dir, has_gpus=facts.has_gpus, wait_s=wait_s)
    except (BackendError, FileError) as error:
        found.append(Finding("bad", subject, str(error)))
    return found


def _partition(facts: Site, settings: SlurmSettings) -> list[Finding]:
    """Return what the partition has, and what a run that fills a node, as far as the settings allow, gets of it.

    Raises:
        BackendError: such a run could never start.
    """
    limit = "no time limit" if facts.time_limit_min is None else f"jobs of up to {facts.time_limit_min:,} min"
    gets = facts.resolve(Resources(ranks=settings.ranks_per_node or 1), settings)
    memory = f"{settings.mem_gb:g} GB of memory, " if settings.mem_gb else ""
    each = f"{with_noun(gets.gpus or 0, 'GPU')} and {with_noun(gets.cpus or 1, 'core')}"
    ranks = with_noun(gets.ranks, "rank")
    return [
        Finding("ok", "partition", f"{facts.name}: {facts.about()}, {limit}"),
        Finding("ok", "settings", f"{ranks} on a node, {each} each, {memory}{settings.timeout_min} min"),
    ]


def _options(settings: SlurmSettings) -> list[Finding]:
    """Return a finding for each option of the table ``sbatch`` that ``sbatch --help`` does not list here."""
    known = ask("sbatch", "--help") if settings.sbatch else ""
    lacking = (option for option in settings.sbatch if f"--{option}" not in known)
    text = "`sbatch --help` does not list it here; is its plugin missing?"
    return [Finding("note", f"sbatch.{option}", text) for option in lacking]


# -- a trial job on a compute node -----------------------------------------------------------------------------------


def _try(settings: SlurmSettings, *, runs_dir: Path, has_gpus: bool, wait_s: float) -> list[Finding]:
    """Submit the job, wait for its log at most ``wait_s``, and return its findings.

    Raises:
        BackendError: the job cannot be submitted.
        FileError: ``runs_dir`` cannot be written.
    """
    with file_errors("write", runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".slurm-doctor-", dir=runs_dir.absolute()))
    try:
        path = folder / "trial.sh"
        write_text(path, script(settings, folder, has_gpus=has_gpus, wait_s=wait_s))
        job = Slurm().submit(path, submission_environment(settings, Slurm(), os.environ))
        try:
            give_up_at, log = time.monotonic() + wait_s, ""
            while OVER not in log and time.monotonic() < give_up_at:
                time.sleep(LOOK_EVERY_S)
                listed(folder)  # makes a network file system refresh its cache
                with contextlib.suppress(OSError):
                    log = (folder / "log").read_text("utf-8", errors="replace")
            state = ""
            with contextlib.suppress(BackendError):  # it is not listed any more
                state = ask("squeue", "-h", "-j", job, "-o", "%T (%r)").strip() if not log else ""
            return findings(log, state, runs_dir=runs_dir, has_gpus=has_gpus, wait_s=wait_s)
        finally:  # it must end before its folder is removed
            with contextlib.suppress(BackendError):
                Slurm().cancel(Slurm().live([Claim(job, folder, Slurm.name)]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def script(settings: SlurmSettings, folder: Path, *, has_gpus: bool, wait_s: float) -> str:
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
        **settings.gpu_options(int(has_gpus)),
    }
    python = settings.python or shlex.quote(sys.executable)
    command = f"{shlex.join(['srun', *settings.srun_args])} {python} -c {shlex.quote(PROGRAM)}"
    lines = [*setup_lines(settings, Slurm()), command, f"echo {shlex.quote(OVER)}"]
    return batch_script(settings, options, "\n".join(lines))


def findings(log: str, state: str, *, runs_dir: Path, has_gpus: bool, wait_s: float) -> list[Finding]:
    """Return the findings of a trial job from its log. ``state``: that of a job whose log is not visible here."""
    wait = f"after {wait_s:g} s; --wait-s sets a longer wait"
    lines = [line for line in log.splitlines() if line.strip()]
    answers = [json.loads(line[line.index("[") :])[1:] for line in lines if MARK in line and line.endswith("]")]
    said = [line for line in lines if MARK not in line]
    last = said[-1] if said else "no output"
    if state.startswith("PENDING"):
        return [Finding("note", "compute node", f"the trial job was still queued, {state}, {wait}")]
    if not log:
        text = (
            f"a job there wrote no file visible in {runs_dir} {wait}; set --runs-dir to a file system that nodes share"
        )
        return [Finding("bad", "shared folder", text)]
    if not answers:
        return [Finding("bad", "compute node", f"Python did not start there: {last}")]
    (host, version, executable), *found = answers
    python = Finding("ok", "Python on node", f"Python {version}, {executable}")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        python = Finding("bad", python.subject, f"{python.text}; expected {oldest} or newer; set python or setup")
    if found:
        torch = torch_finding(
            "torch on node",
            found[0],
            gpus="the job was given a GPU" if has_gpus else None,
            advice="set python or setup",
        )
    elif OVER in log:
        torch = Finding("bad", "torch on node", f"the trial job ended while importing it: {last}")
    else:
        torch = Finding("note", "torch on node", f"still being imported {wait}")
    return [Finding("ok", "shared folder", f"{runs_dir} is visible on node {host} and on this machine"), python, torch]
