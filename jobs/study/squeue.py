"""Run SLURM's commands, and query the states of a study's jobs in at most two calls for any number of jobs.

The state of a run is read from its folder. SLURM adds only what no file has: that a job waits and why, that it runs on
another machine, or that it disappeared without a result. This works without accounting, while the controller does not
answer, and after the controller has purged a job.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from seqlm.errors import BackendError
from seqlm.state import FailureKind, View

CALL_SECONDS = 20.0
"""Timeout of a query."""
EVERY_SECONDS = 10.0
"""Minimum interval between queries for callers that poll."""
_LOGIN_NODE = "launch from a login node of the cluster"

_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_SUSPENDED = ("SUSPENDED", "STOPPED")
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING", *_SUSPENDED)
_KINDS: Mapping[str, FailureKind] = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "OUT_OF_MEMORY": "oom",
}
"""SLURM's job states (``man squeue``, JOB STATE CODES) -> kinds of failure; all others are of kind ``code``."""
_RELEASE, _ASK = "`scontrol release {job}`", "ask the cluster's administrators"
_ACCOUNT = "see `sacctmgr show assoc user=$USER`; set sbatch.account or sbatch.qos, and `run` again"
_OTHERS = "wait until other jobs end"
_SMALLER = "`run` again with fewer ranks, GPUs or minutes, or in another partition"
_PARTITION = "wait, or `run` again in another partition"
REASONS: Mapping[str, tuple[str, str]] = {
    "None": ("about to start", "wait a moment"),
    "Priority": ("other jobs have priority", _OTHERS),
    "Resources": ("it waits for free nodes", _OTHERS),
    "DependencyNeverSatisfied": ("a job that it depends on has failed", "`cancel` it, then `run` again"),
    "Dependency": ("another job has to end first", "`scontrol show job {job}` names that job"),
    "JobHeldUser": ("it is held by its user", _RELEASE),
    "JobHeldAdmin": ("it is held by an administrator", _ASK),
    "JobHoldMaxRequeue": ("it was requeued too often, and is held", _RELEASE),
    "launch_failed_requeued_held": ("it could not be started on its node, and is held", _RELEASE),
    "BeginTime": ("it may not begin before a time that was set", "`scontrol update JobId={job} StartTime=now`"),
    "JobArrayTaskLimit": ("as many runs are running as max_parallel allows", _OTHERS),
    "ReqNodeNotAvail": ("a node that it needs is down, drained or reserved", "see `sinfo -R`"),
    "Reservation": ("it waits for its reservation", "`scontrol show reservation` has its time"),
    "Licenses": ("a licence is in use", _OTHERS),
    "BadConstraints": ("no node has what it asks for", _SMALLER),
    "PartitionDown": ("its partition is down", _PARTITION),
    "PartitionInactive": ("its partition takes no jobs", _PARTITION),
    "PartitionNodeLimit": ("it asks for more nodes than its partition allows", _SMALLER),
    "PartitionTimeLimit": ("its time limit is longer than its partition allows", _SMALLER),
    "InvalidAccount": ("its account does not exist", _ACCOUNT),
    "InvalidQOS": ("its quality of service does not exist", _ACCOUNT),
    "AccountNotAllowed": ("its account may not use the partition", _ACCOUNT),
    "AssocGrp": ("your group uses as much as it may", f"{_OTHERS}; if the hours of your group are spent, {_ASK}"),
    "AssocMax": ("you use as much as your account allows", _OTHERS),
    "QOS": ("as much is used as its quality of service allows", _OTHERS),
}
"""Beginning of the reason of a waiting job (``man squeue``, JOB REASON CODES) -> what it means, and what to do."""
_NOTHING_TO_LEARN = ("Invalid job id", "accounting storage is disabled", "sacct is not on PATH")


def ask(*command: str, environ: Mapping[str, str] | None = None) -> str:
    """Run a SLURM command and return its output.

    It runs with ``environ``, or by default with this process's environment, but without the variables that would change
    the output of sinfo, and the format of times.

    Raises:
        BackendError: the command is missing, does not answer in time, or fails.
    """
    given = os.environ if environ is None else environ
    environ = {name: value for name, value in given.items() if not name.startswith("SINFO_")}
    environ["SLURM_TIME_FORMAT"] = "standard"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, env=environ, check=True)
    except FileNotFoundError:
        raise BackendError(f"{command[0]} is not on PATH; {_LOGIN_NODE}") from None
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"{command[0]} did not answer within {CALL_SECONDS:g} s; is slurmctld up?") from None
    except subprocess.CalledProcessError as error:
        line = complaint(error.stderr) or complaint(error.stdout) or f"exit code {error.returncode}"
        hint = f"; {_LOGIN_NODE}, or set SLURM_CONF" if "configuration source" in line else ""
        raise BackendError(f"{command[0]}: {line.removeprefix(f'{command[0]}: ')}{hint}") from None
    return done.stdout


def complaint(text: str) -> str:
    """Return the line of a command's output that says what is wrong: the last one that is not about ``--help``."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("Try ")]
    return lines[-1] if lines else ""


@final
class Scheduler:
    """Queries SLURM about jobs, and caches the answers for :data:`EVERY_SECONDS`."""

    def __init__(self) -> None:
        self._asked_at = -EVERY_SECONDS
        self._answers: dict[str, View] = {}

    def states(self, jobs: Iterable[str]) -> dict[str, View]:
        """Return the state of each job (``12_3``), or of an array (``12``) as a run that waits in it sees it."""
        wanted = frozenset(jobs)
        if not wanted:
            return {}
        now = time.monotonic()
        if now - self._asked_at >= EVERY_SECONDS or not wanted <= self._answers.keys():
            self._asked_at, self._answers = now, self._ask(wanted)
        return {job: self._answers[job] for job in wanted}

    def _ask(self, wanted: frozenset[str]) -> dict[str, View]:
        queue = self._call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(parents(wanted)))
        found = {} if queue is None else with_arrays(wanted, read_squeue(queue))
        missing = wanted - found.keys()
        if not missing:
            return found
        flags = ("-n", "-P", "-X", "-D", "-o", "JobID,State,ExitCode")
        account = self._call("sacct", *flags, "-j", ",".join(parents(missing)))
        accounted = {} if account is None else with_arrays(missing, read_sacct(account))
        reason = "SLURM no longer lists its job and no result was written; `run` resumes it"
        lost = View(stage="gone", reason=reason)
        if queue is None or account is None:
            silent = "slurmctld" if queue is None else "slurmdbd (accounting)"
            lost = View(stage="unknown", reason=f"{silent} does not answer; this is the last known state")
        return {**{job: accounted.get(job, lost) for job in missing}, **found}

    def _call(self, *command: str) -> str | None:
        """Return a command's output, or ``None`` if there is no answer.

        "No such job" and "no accounting" count as answers, since another query would add nothing.
        """
        try:
            return ask(*command)
        except BackendError as error:
            return "" if any(text in str(error) for text in _NOTHING_TO_LEARN) else None


def read_squeue(text: str) -> dict[str, View]:
    """Parse the output of ``squeue -h -r -t all -o "%i|%T|%r"``."""
    rows = (line.strip().split("|") for line in text.splitlines())
    return {row[0]: job_state(*row[1:]) for row in rows if len(row) == 3}


def read_sacct(text: str) -> dict[str, View]:
    """Parse the output of ``sacct -n -P -X -D -o JobID,State,ExitCode``. The last line of a requeued job counts.

    Lines about several waiting tasks (``12_[0-3%2]``) are no job's: squeue lists each task.
    """
    found: dict[str, View] = {}
    for name, state, code in (row for line in text.splitlines() if len(row := line.strip().split("|")) == 3):
        signal = code.partition(":")[2]
        found[name] = job_state(state, f"RaisedSignal:{signal}" if signal.strip("0") else "")
    return found


def job_state(state: str, reason: str = "") -> View:
    """Return a job's state from SLURM's state and reason, such as ``PENDING`` and ``Resources``."""
    word, plain = state.split()[0].rstrip("+") if state else "UNKNOWN", reason.strip("() ")
    if word in _QUEUED:
        return View(stage="queued", reason=meaning(plain)[0])
    if word in _RUNNING:
        suspended = "suspended: SLURM has stopped its processes for a while"
        return View(stage="running", reason=suspended if word in _SUSPENDED else "")
    if word == "COMPLETED":
        return View(stage="ended", reason="its job ended without writing a result; see its logs")
    text, kind = f"SLURM reports {word}", _KINDS.get(word, "code")
    if kind == "cancelled":
        text = "cancelled by scancel"
    elif plain.startswith("RaisedSignal"):  # of 53: the node could not write the job's log
        text, kind = f"{text} ({plain.partition('(')[0]})", _KINDS.get(word, "node")
    return View(stage="ended", reason=text, kind=kind)


def meaning(reason: str) -> tuple[str, str]:
    """Return what SLURM's reason of a waiting job means, and what to do."""
    unknown = (f"SLURM reports {reason}", "see `man squeue`, JOB REASON CODES")
    return next((found for word, found in REASONS.items() if (reason or "None").startswith(word)), unknown)


def with_arrays(wanted: Iterable[str], found: Mapping[str, View]) -> dict[str, View]:
    """Add the states of the arrays among ``wanted`` to those of their jobs."""
    tasks: dict[str, list[View]] = {}
    for job, view in found.items():
        array, _, index = job.partition("_")
        if index.isdigit():
            tasks.setdefault(array, []).append(view)
    return {**{job: _of_array(job, tasks[job]) for job in wanted if job in tasks}, **found}


def _of_array(array: str, jobs: Sequence[View]) -> View:
    """Return the state of an array from the states of its jobs."""
    if running := sum(job.stage == "running" for job in jobs):
        reason = f"waits for room in array {array} ({running} of {len(jobs)} jobs run)"
        return View(stage="queued", reason=reason)
    return min(jobs, key=lambda job: (job.stage != "queued", job.kind != "cancelled", job.kind is None))


def parents(jobs: Iterable[str]) -> list[str]:
    """Return the ids of the job arrays that jobs belong to, each once."""
    return sorted({job.partition("_")[0] for job in jobs}, key=int)
