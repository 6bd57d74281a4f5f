"""SLURM's commands: submit, cancel and ask about jobs, in at most two calls for the states of any number of them.

The state of a run is read from its folder. SLURM adds only what no file has: that a job waits and why, that it runs on
another machine, or that it disappeared without a result. This works without accounting, while the controller does not
answer, and after the controller has purged a job.
"""

import contextlib
import functools
import json
import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import final

from jobs.study.scheduler import Allocation, Claim, Job, Scheduler, TooManyJobsError, Waiting, works_in
from seqlm.errors import BackendError, printable
from seqlm.state import FailureKind, View
from slurm.shell import SHELL

CALL_SECONDS = 20.0
"""Timeout of a query."""
SQUEUE = ("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%Z")
"""Lists jobs. The working directory is last, since it may contain a ``|``."""
_LOGIN_NODE = "launch from a login node of the cluster"
TOO_LARGE = "Invalid job array specification"
"""Words of sbatch if an array has more jobs than the cluster takes (MaxArraySize)."""
TOO_MANY = ("accounting/QOS policy", "SubmitJob", TOO_LARGE)
"""The same, or if an array has more jobs than the user may submit (MaxSubmitJobs, a QOS)."""
KEYS = ("account", "qos", "partition", "reservation")
"""Settings that sbatch names if they are wrong."""

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
    "Dependency": ("it waits for the canaries or earlier jobs of its launch", "`scontrol show job {job}` names them"),
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


# -- jobs ------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Row:
    """A job as SLURM lists it."""

    job: str
    view: View
    folder: str
    """Its working directory."""


def rows_of(claims: Iterable[Claim], rows: Iterable[Row]) -> dict[Claim, list[Row]]:
    """Return the rows about all jobs of the array of each claim that are those of its request.

    A claim without such a row is left out.
    """
    is_there = functools.cache(works_in)
    arrays = defaultdict[str, list[Row]](list)
    for row in rows:
        arrays[row.job.partition("_")[0]].append(row)

    @functools.cache
    def of_array(array: Claim) -> list[Row]:
        return [row for row in arrays.get(array.id, ()) if is_there(row.folder, array.folder)]

    return {claim: found for claim in claims if (found := of_array(claim.array))}


@final
class Slurm(Scheduler):
    """SLURM, version 22.05 or newer."""

    name = "slurm"
    title = "SLURM"
    SHELL = SHELL
    PASSED = ("SLURM_*", "SLURMD_*", "SBATCH_*", "SRUN_*")
    TOKEN = "SLURM_JWT"  # SLURM passes every `SLURM_*` to the job
    CANCELLED = "cancelled by scancel"
    THROTTLE = "on SLURM, `scontrol update JobId=ARRAY ArrayTaskThrottle={most}` limits the jobs of an array"
    NO_GPUS = "see gres.conf (File=)"

    def submit(self, script: Path, environ: Mapping[str, str], *, is_held: bool = False) -> str:
        """Submit a script.

        Raises:
            TooManyJobsError: MaxSubmitJobs, a quality of service, or MaxArraySize allows fewer jobs.
            BackendError: sbatch rejects it, or does not answer.
        """
        try:
            answer = ask("sbatch", "--parsable", *(["--hold"] if is_held else []), str(script), environ=environ)
        except BackendError as error:
            why = f"sbatch rejected the job: {error}"
            if not any(known in why for known in TOO_MANY):
                raise BackendError(why + "".join(f"; set {key}" for key in KEYS if f"nvalid {key}" in why)) from None
            if TOO_LARGE in why:
                why += "; the cluster may take no job arrays (MaxArraySize); ask the administrator to allow some"
            raise TooManyJobsError(why) from None
        job = answer.strip().partition(";")[0]
        if not job.isdigit():
            raise BackendError(f'sbatch: expected a job id, got "{job}"')
        return job

    def release(self, ids: Collection[str]) -> None:
        """Let held jobs start."""
        ask("scontrol", "release", ",".join(ids))

    def cancel(self, jobs: Iterable[Job]) -> None:
        """End jobs."""
        if ids := sorted({job.id for job in jobs}):
            ask("scancel", "--quiet", *ids)

    def live(self, claims: Collection[Claim]) -> list[Job]:
        """Return those of the claimed jobs that wait or run, and are this user's."""
        if not claims:
            return []
        text = ""
        try:
            text = ask(*SQUEUE, "-u", str(os.geteuid()), "-j", ",".join(parents(claims)))
        except BackendError as error:
            if not _is_answer(error):
                raise
        found = rows_of(claims, read_squeue(text))
        return [Job(claim.id, claim.folder) for claim, rows in found.items() if any(_is_live(row.view) for row in rows)]

    def waiting_in(self, folders: Collection[Path]) -> list[Job]:
        """Return the waiting jobs of this user that work in the folders of requests."""
        if not folders:
            return []
        text = ask("squeue", "-h", "-a", "-t", "PD", "-u", str(os.geteuid()), "-o", "%F|%Z")
        rows = [row for line in text.split("\n") if len(row := line.split("|", 1)) == 2]
        return [Job(job, one) for job, folder in rows for one in folders if works_in(folder, one)]

    def views(self, claims: Collection[Claim]) -> dict[Claim, View]:
        """Return the state of each job (``12_3``), or of an array (``12``) as a run that waits in it sees it.

        A job that has ended is as its array while others of that are live: they share out its runs.
        """
        wanted = frozenset(claims)
        queue = _answer(*SQUEUE, "-j", ",".join(parents(wanted)))
        listed = [] if queue is None else read_squeue(queue)
        found = views_of(wanted, listed)
        missing = wanted - found.keys()
        if not missing:
            return found
        flags = ("-n", "-P", "-X", "-D", "-o", "JobID,State,ExitCode,WorkDir")
        account = _answer("sacct", *flags, "-j", ",".join(parents(missing)))
        found |= views_of(missing, [] if account is None else read_sacct(account))
        reason = "SLURM no longer lists its job and no result was written; `run` resumes it"
        lost = View(stage="gone", reason=reason)
        if queue is None or account is None:
            silent = "slurmctld" if queue is None else "slurmdbd (accounting)"
            lost = View(stage="unknown", reason=f"{silent} does not answer; this is the last known state")
        folders = {row.job: row.folder for row in listed} | {row.job.partition("_")[0]: row.folder for row in listed}
        for claim in missing - found.keys():
            found[claim] = lost if claim.id not in folders else _of_others(claim, folders[claim.id])
        return found

    def waiting(self, claims: Mapping[str, Claim]) -> dict[str, Waiting]:
        """Return the jobs that wait, by run id; none if SLURM does not answer."""
        from slurm.waiting import waiting_jobs  # for `why` alone

        return waiting_jobs(claims)

    # -- in a job --------------------------------------------------------------------------------------------------

    def allocation(self, environ: Mapping[str, str]) -> Allocation:
        """Read SLURM's variables."""
        array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        end = environ.get("SLURM_JOB_END_TIME", "")
        return Allocation(
            job=f"{array}_{task}" if array else environ["SLURM_JOB_ID"],
            number=environ["SLURM_JOB_ID"],
            array=array or environ["SLURM_JOB_ID"],
            index=int(task or 0),
            jobs=int(environ.get("SLURM_ARRAY_TASK_COUNT") or 1),
            end_time=float(end) if end.isdigit() else None,
            devices=tuple(device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device),
            host=environ.get("SLURMD_NODENAME") or socket.gethostname(),
            nodes=int(environ.get("SLURM_JOB_NUM_NODES") or 1),
            node_rank=int(environ.get("SLURM_NODEID") or 0),
            memory_mb=int(environ.get("SLURM_MEM_PER_NODE") or 0) or None,
        )

    def is_cancelled(self, allocation: Allocation) -> bool:
        """Return whether SLURM's flags of the job have ``CANCELLED``.

        Uses the JSON output, the only one that shows why a job is completing: plain output shows a requeued job as
        ``PENDING``. False if SLURM does not answer or is too old for JSON.
        """
        try:
            jobs = json.loads(ask("scontrol", "--json", "show", "job", allocation.number))["jobs"]
            (words,) = [job["job_state"] for job in jobs if str(job["job_id"]) == allocation.number]
        except (BackendError, ValueError, KeyError, TypeError):
            return False
        return "CANCELLED" in ([words] if isinstance(words, str) else words)

    def has_other_jobs(self, allocation: Allocation) -> bool:
        """Return whether squeue lists other jobs of the array that do not end."""
        states = "PENDING,RUNNING,SUSPENDED"
        try:
            lines = ask("squeue", "-h", "-r", "-t", states, "-o", "%i|%T", "-j", allocation.array).split()
        except BackendError:
            return True
        return any(line.partition("|")[0] != allocation.job for line in lines)

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the controller's clock is ahead of this machine's; 0 if it does not answer."""
        asked_at = time.time()
        with contextlib.suppress(BackendError, ValueError, IndexError):
            answer = ask("scontrol", "show", "config")
            at = datetime.fromisoformat(answer.removeprefix("Configuration data as of ").split()[0])  # in our time zone
            return at.timestamp() - (asked_at + time.time()) / 2
        return 0.0


# -- states ----------------------------------------------------------------------------------------------------------


def _answer(*command: str) -> str | None:
    """Return a command's output, or ``None`` if there is no answer.

    "No such job" and "no accounting" count as answers, since another query would add nothing.
    """
    try:
        return ask(*command)
    except BackendError as error:
        return "" if _is_answer(error) else None


def _is_answer(error: BackendError) -> bool:
    return any(text in str(error) for text in _NOTHING_TO_LEARN)


def _of_others(claim: Claim, folder: str) -> View:
    """Return the state of a claimed job that is another folder's: a study that was copied or moved claims such jobs."""
    reason = f"job {claim.id} works in {printable(folder)}, not in this study; `run` starts or resumes the run"
    return View(stage="gone", reason=reason)


def read_squeue(text: str) -> list[Row]:
    """Parse the output of :data:`SQUEUE`. A folder may have a ``|`` in its name."""
    rows = (line.split("|", 3) for line in text.split("\n"))
    return [Row(row[0], job_state(row[1], row[2]), row[3]) for row in rows if len(row) == 4]


def read_sacct(text: str) -> list[Row]:
    """Parse the output of ``sacct -n -P -X -D -o JobID,State,ExitCode,WorkDir``. A requeued job has several rows.

    Lines about several waiting tasks (``12_[0-3%2]``) are no job's: squeue lists each task.
    """
    found = []
    for name, state, code, folder in (row for line in text.split("\n") if len(row := line.split("|", 3)) == 4):
        signal = code.partition(":")[2]
        if "[" not in name:
            found.append(Row(name, job_state(state, f"RaisedSignal:{signal}" if signal.strip("0") else ""), folder))
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
        text = Slurm.CANCELLED
    elif plain.startswith("RaisedSignal"):  # of 53: the node could not write the job's log
        text, kind = f"{text} ({plain.partition('(')[0]})", _KINDS.get(word, "node")
    return View(stage="ended", reason=text, kind=kind)


def meaning(reason: str) -> tuple[str, str]:
    """Return what SLURM's reason of a waiting job means, and what to do."""
    unknown = (f"SLURM reports {reason}", "see `man squeue`, JOB REASON CODES")
    return next((found for word, found in REASONS.items() if (reason or "None").startswith(word)), unknown)


def views_of(claims: Iterable[Claim], rows: Iterable[Row]) -> dict[Claim, View]:
    """Return the states of the claimed jobs and arrays that are those of their requests. The last row of a job counts.

    Claims that are not are left out.
    """
    found = {}
    for claim, its in rows_of(claims, rows).items():
        jobs = {row.job: row.view for row in its}
        array, own = claim.array.id, jobs.get(claim.id)
        is_live = any(_is_live(view) for view in jobs.values())
        if own is None and (is_live or claim.id == array):
            found[claim] = _of_array(array, list(jobs.values()))
        elif own is not None:
            found[claim] = own if _is_live(own) or not is_live else _of_array(array, list(jobs.values()))
    return found


def _is_live(view: View) -> bool:
    return view.stage in ("queued", "running")


def _of_array(array: str, jobs: Sequence[View]) -> View:
    """Return the state of an array from the states of its jobs."""
    if running := sum(job.stage == "running" for job in jobs):
        reason = f"waits for room in array {array} ({running} of {len(jobs)} jobs run)"
        return View(stage="queued", reason=reason)
    return min(jobs, key=lambda job: (job.stage != "queued", job.kind != "cancelled", job.kind is None))


def parents(claims: Iterable[Claim]) -> list[str]:
    """Return the ids of the job arrays that claimed jobs belong to, each once."""
    return sorted({claim.id.partition("_")[0] for claim in claims}, key=int)
