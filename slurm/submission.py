"""Submit runs as job arrays: group them, write one plan for all jobs and a script for each array, and call sbatch."""

import math
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.launch.job import LaunchOptions
from jobs.plan.limits import Limits
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources
from jobs.study.folder import ARRAY_FILE, PLAN_FILE, WITHDRAWN_FILE, study_name
from jobs.study.kept_code import Code
from seqlm.environment import STAGE
from seqlm.errors import BackendError, FileError
from seqlm.files import read_json, write_json
from seqlm.reading import exists
from seqlm.requests import Request, numbered
from slurm.environment import batch_script, plain_env, program_of, submit_script
from slurm.settings import SlurmSettings

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""
AGAIN = 76
"""Exit code of a job that is to be requeued."""
CHANGES = "requeue-{}"
"""File next to the plan: what to change of the job with this number when it is requeued."""
END_SECONDS = 10
"""How long the processes of a job on other nodes may take to end after that of its first node."""
TOO_MANY = ("accounting/QOS policy", "Invalid job array specification", "SubmitJob")
"""Words of sbatch if an array has more jobs than the user may submit (MaxSubmitJobs, a QOS, MaxArraySize)."""
KEYS = ("account", "qos", "partition", "reservation")
"""Settings that sbatch names if they are wrong."""


class NoRoomError(BackendError):
    """The user may submit no job now."""


# -- the plan: what each job of a submission does, in one file next to the request ------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """An array: equal jobs, and the runs that they share out (:mod:`slurm.share`)."""

    runs: Mapping[str, Resources]
    """Run id -> its resources, in the order in which the runs start."""
    jobs: int
    """The number of jobs. SLURM may accept fewer."""
    nodes: int
    """Nodes of each job. A job with several nodes has one run."""
    cpus: int
    """Cores of each node. Likewise ``gpus``."""
    gpus: int
    at_once: int | None
    """Maximum number of runs of a job at once. ``None``: as many as there is room for."""
    timeout_min: int
    mem_gb: float | None = None
    """Memory of each node. ``None``: the cluster's default."""
    most: Limits | None = None
    """The most that a job may ask for after one of its limits has ended it. ``None``: no more."""
    is_pool: bool = False

    @property
    def priority(self) -> int:
        return max(resources.priority for resources in self.runs.values())

    def is_shared(self, jobs: int) -> bool:
        """Whether each of ``jobs`` jobs takes runs of the others once it has room."""
        return self.is_pool or (self.nodes == 1 and jobs * (self.at_once or 1) < len(self.runs))


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What the jobs of a submission do."""

    options: LaunchOptions
    """Those of the launch, with the variables of the workers and the request. No ``tasks`` and no ``record``."""
    arrays: tuple[ArrayPlan, ...]
    code: Path
    """The archive of the code, or the folder of a working tree."""
    data: Mapping[str, str]
    """Run id -> the path of its corpus, for runs that have one."""
    signal_before_s: int
    exclude: str | None
    """Nodes that the jobs must not get, as a SLURM host list. ``None``: no node is excluded."""
    must_have_nodes: bool
    """Whether the settings name the nodes of the jobs, so that none can be excluded."""
    grid: Path | None = None
    """The folder of the request whose jobs wait for these, which are canaries. ``None``: they are none."""

    @property
    def is_withdrawn(self) -> bool:
        """Whether the request of these jobs is withdrawn, so that none is to start."""
        return exists(self.folder / WITHDRAWN_FILE)

    @property
    def folder(self) -> Path:
        """The folder of the request of these jobs."""
        assert self.options.request is not None, "a plan without a request is for display alone"
        return numbered(self.options.study_dir, self.options.request)

    def write(self, path: Path) -> None:
        """Write the plan for :meth:`read`."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan that :meth:`write` wrote.

        Raises:
            FileError: it cannot be read.
        """
        from pydantic import TypeAdapter  # a launcher does without

        if (raw := read_json(path)) is None:
            raise FileError(f"cannot read {path}: No such file or directory")
        return TypeAdapter(cls).validate_python(raw)


def plan_jobs(
    todo: Sequence[PlannedRun],
    options: LaunchOptions,
    settings: SlurmSettings,
    code: Code,
    *,
    request: int | None,
    most: int,
    limits: Mapping[str, Limits] = MappingProxyType({}),
) -> JobPlan:
    """Group runs into arrays, and return what their jobs do.

    The runs of the pool are one array. All others are arrays of equal resources and limits.

    ``todo`` is in queue order, and arrays keep that order. ``request`` is the number of their request, if there is one
    yet. ``most`` is the cluster's MaxArraySize, the maximum number of jobs of an array. ``limits`` are those of runs,
    by run id, that do not have the limits of the settings.

    Raises:
        BackendError: the cluster takes no job arrays.
    """
    if most < 1:
        raise BackendError("this cluster takes no job arrays (MaxArraySize is 0); ask its administrator to allow some")
    groups: dict[tuple[Resources | None, Limits], dict[str, Resources]] = {}
    for item in todo:
        wanted, kept = item.spec.resources, settings.limits
        asked = limits.get(item.run.id, kept)
        group = (None, kept) if settings.is_for_pool(wanted) else (wanted, asked)
        groups.setdefault(group, {})[item.run.id] = wanted
    arrays = [
        array for (wanted, asked), runs in groups.items() for array in _arrays(runs, wanted, asked, settings, most)
    ]
    stage = {STAGE.name: "1"} if settings.stage else {}
    env = {**stage, **plain_env(settings), **progress_variables(settings.progress_s)}
    study_dir = options.study_dir.absolute()
    return JobPlan(
        options=replace(options, study_dir=study_dir, env=env, request=request, tasks={}, record=None),
        arrays=tuple(arrays),
        code=code.archive or code.path,
        data={item.run.id: str(path.absolute()) for item in todo if (path := item.spec.data_path) is not None},
        signal_before_s=settings.warning_s,
        exclude=settings.exclude,
        must_have_nodes=bool(settings.nodelist or settings.reservation or "nodefile" in settings.sbatch),
    )


def _arrays(
    runs: Mapping[str, Resources], wanted: Resources | None, asked: Limits, settings: SlurmSettings, most: int
) -> Iterator[ArrayPlan]:
    """Yield the arrays of runs that all want the same. ``wanted`` ``None``: the pool."""
    pool, limit = settings.pool, settings.max_parallel
    at_once: int | None
    if wanted is None:
        jobs, nodes, cpus, gpus = pool["jobs"], 1, pool["cpus"], pool.get("gpus", 0)
        at_once = None if limit is None else max(1, limit // jobs)
    else:
        nodes, ranks = settings.nodes(wanted)
        at_once = settings.runs_per_job(wanted)
        cpus, gpus = (wanted.cpus or 1) * ranks * at_once, math.ceil(ranks * (wanted.gpus or 0))
        jobs = math.ceil(len(runs) / at_once)
    step = most if nodes > 1 else len(runs)  # a job with several nodes takes no further run
    for start in range(0, len(runs), step):
        part = dict(list(runs.items())[start : start + step])
        size = {"jobs": min(jobs, len(part), most), "nodes": nodes, "cpus": cpus, "gpus": gpus}
        yield ArrayPlan(runs=part, at_once=at_once, is_pool=wanted is None, **size, **vars(asked))


# -- scripts ---------------------------------------------------------------------------------------------------------


def submit(
    plan: JobPlan,
    settings: SlurmSettings,
    request: Request,
    *,
    hold: bool = False,
    after_ok: Sequence[str] = (),
) -> list[str]:
    """Write the plan and submit its arrays one after the other; return their ids.

    Of an array that is more than the user may submit, half the jobs are submitted, and so on. Its runs share these
    jobs. Runs for which there is no job wait for the next launch.
    With ``hold``, the arrays wait to be released. ``after_ok`` are jobs that have to end well first.

    Raises:
        BackendError: sbatch rejected an array. The arrays before it are submitted; the message says so.
        UsageError: a variable named by ``env_pass`` is not set.
    """
    plan.write(request.folder / PLAN_FILE)
    ids: list[str] = []
    left, why = 0, ""
    for number, array in enumerate(plan.arrays):
        job, jobs, refusal = None, array.jobs, None
        while job is None and jobs:
            folder, after = request.folder, ids[-1] if ids else None
            text = script(plan, number, settings, folder, jobs=jobs, after=after, hold=hold, after_ok=after_ok)
            try:
                job = submit_script(request.folder / f"array-{number}.sh", text, settings)
            except BackendError as error:
                if not any(words in str(error) for words in TOO_MANY):
                    raise _rejected(error, plan, number) from None
                jobs, refusal = jobs // 2, error
        without = 0 if job is not None and array.nodes == 1 else len(array.runs) - jobs
        record: dict[str, Any] = {"id": job, "jobs": jobs, "shared": array.is_shared(jobs)}
        if without:
            left, why = left + without, str(refusal)
            record["why"] = f"SLURM takes no more jobs of yours now ({why}); the next `run` submits it"
        write_json(request.folder / ARRAY_FILE.format(number), record)
        ids += [job] if job is not None else []
    if left and not ids:
        raise NoRoomError(f"sbatch rejected the job: {why}")
    if left:
        terminal.tell(f"warning: {left} runs wait for the next `run`: SLURM takes no more jobs of yours now ({why})")
    return ids


def _rejected(error: BackendError, plan: JobPlan, number: int) -> BackendError:
    """Return the error of a launch of whose arrays sbatch has rejected one for good."""
    text = f"sbatch rejected the job: {error}"
    text += "".join(f"; set {key}" for key in KEYS if f"nvalid {key}" in str(error))
    if number:
        counts = [len(array.runs) for array in plan.arrays]
        text += f"; {sum(counts[:number])} of {sum(counts)} runs were submitted before and go on"
        text += "; `run` submits the others"
    return BackendError(text)


def script(
    plan: JobPlan,
    number: int,
    settings: SlurmSettings,
    folder: Path,
    *,
    jobs: int | None = None,
    after: str | None = None,
    hold: bool = False,
    after_ok: Sequence[str] = (),
) -> str:
    """Return the script of an array. ``folder`` is that of the request, ``after`` the id of the array before it.

    ``jobs``: how many of its jobs; ``None``: all. SLURM limits the jobs of one array alone. If runs at once are
    limited, each array therefore waits for the one before. ``hold`` and ``after_ok`` are as in :func:`submit`.
    """
    array, limit = plan.arrays[number], settings.max_parallel
    at_once = f"%{max(1, limit // (array.at_once or 1))}" if limit is not None else ""
    follows = [f"afterok:{':'.join(after_ok)}"] if after_ok else []
    follows += [f"afterany:{after}"] if after is not None and limit is not None else []
    options: dict[str, Any] = {
        "array": f"0-{(jobs or array.jobs) - 1}{at_once}",
        "job-name": f"seqlm-{study_name(plan.options.study_dir).replace('/', '-')}",
        "time": array.timeout_min,
        "nodes": array.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": array.cpus,
        **settings.gpu_options(array.gpus),
        "mem": None if array.mem_gb is None else f"{round(array.mem_gb * 1024)}M",
        "signal": f"USR2@{settings.warning_s}",
        "requeue": True,
        "chdir": folder,
        "output": folder / f"array-{number}_%a.out",
        "nice": _nice(plan, array, settings),
        "hold": hold or None,
        "dependency": ",".join(follows) or None,
    }
    srun = shlex.join(["srun", f"--cpus-per-task={array.cpus}", f"--wait={END_SECONDS}", *settings.srun_args])
    program = f"{program_of(plan.code, 'slurm.job', settings)} {shlex.quote(str(folder / PLAN_FILE))} {number}"
    changes = f"{shlex.quote(str(folder))}/{CHANGES.format('$SLURM_JOB_ID')}"
    given = {key: value for key, value in options.items() if value is not None}
    return batch_script(
        settings, given, f"code=0\n{srun} {program} on $SLURMD_NODENAME || code=$?", last_lines(program, changes)
    )


def last_lines(program: str, changes: str) -> str:
    """Return what a job's script does when ``program`` has ended with ``$code``, in bash: SLURM's commands are there.

    If SIGTERM has ended the program although SLURM knows of no signal, which on a node that comes back may be meant for
    the job's start before, the program says what follows. A program that a signal ended may leave no word. Then the
    script's end by the same signal is the only one. ``changes`` is a file with a change of the job in each line.
    """
    return f"""\
again=$code state= job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID changes={changes}
if [ $code -eq {128 + signal.SIGTERM} ]; then
    for seconds in 1 2 4 8; do state=$(squeue -h -j $SLURM_JOB_ID -o %T) && break; sleep $seconds; done
    [ "$state" != RUNNING ] || {program} ended || again=$?
fi
if [ $again -eq {AGAIN} ]; then
    trap '' TERM INT  # which a requeue sends
    code=137  # unless SLURM requeues it, as if its node were lost: `run` resumes its runs
    for seconds in 1 2 4 8; do scontrol requeue $job && code=0 && break; sleep $seconds; done
    [ $code -gt 0 ] || while read -r change; do scontrol update JobId=$job $change || :; done < "$changes"
    rm -f "$changes"
fi
[ $code -le 128 ] || kill -$((code - 128)) $$
exit $code"""


def _nice(plan: JobPlan, array: ArrayPlan, settings: SlurmSettings) -> int | None:
    """Return by how much the priority of an array is lowered. ``None``: the settings say."""
    lower = min(max(one.priority for one in plan.arrays) - array.priority, 10_000)
    own = settings.sbatch.get("nice", 0)
    return lower + (DEFAULT_NICE if own is True else int(own)) if lower else None
