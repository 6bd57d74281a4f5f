"""Submit runs as job arrays: group them, write one plan for all jobs and a script for each array, and call sbatch."""

import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from jobs.attempt.supervisor import progress_variables
from jobs.launch.job import LaunchOptions
from jobs.plan.limits import Limits
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources
from jobs.study.folder import ARRAY_FILE, PLAN_FILE, study_name
from jobs.study.kept_code import Code
from seqlm.environment import STAGE
from seqlm.errors import BackendError, FileError
from seqlm.files import read_json, write_json
from seqlm.requests import Request
from slurm.environment import batch_script, plain_env, program_of, submit_script
from slurm.settings import SlurmSettings

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""
END_SECONDS = 10
"""How long the processes of a job on other nodes may take to end after that of its first node."""

# -- the plan: what each job of a submission does, in one file next to the request ------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """The jobs of one array: runs of equal resources, in the order in which they start."""

    jobs: tuple[tuple[str, ...], ...]
    """The ids of the runs of each job: one, or several that share a GPU."""
    resources: Resources
    """Of each run."""
    timeout_min: int
    mem_gb: float | None = None
    """Memory of each node. ``None``: the cluster's default."""
    most: Limits | None = None
    """The most that a job may ask for after one of its limits has ended it. ``None``: no more."""

    @property
    def runs_per_job(self) -> int:
        return max(map(len, self.jobs))


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
    """Group runs of equal resources and limits into arrays, and return what their jobs do.

    ``todo`` is in queue order, and arrays keep that order. ``request`` is the number of their request, if there is one
    yet. ``most`` is the cluster's MaxArraySize, the maximum number of jobs of an array. ``limits`` are those of runs,
    by run id, that do not have the limits of the settings.

    Raises:
        BackendError: the cluster takes no job arrays.
    """
    if most < 1:
        raise BackendError("this cluster takes no job arrays (MaxArraySize is 0); ask its administrator to allow some")
    groups: dict[tuple[Resources, Limits], list[str]] = {}
    for item in todo:
        groups.setdefault((item.spec.resources, limits.get(item.run.id, settings.limits)), []).append(item.run.id)
    arrays = [
        ArrayPlan(jobs=jobs, resources=wanted, **vars(asked))
        for (wanted, asked), ids in groups.items()
        for jobs in _chunks(_chunks(ids, settings.runs_per_job(wanted)), most)
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


def _chunks(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


# -- scripts ---------------------------------------------------------------------------------------------------------


def submit(plan: JobPlan, settings: SlurmSettings, request: Request) -> list[str]:
    """Write the plan and submit its arrays one after the other; return their ids.

    Raises:
        BackendError: sbatch rejected an array. The arrays before it are submitted; the message says so.
        UsageError: a variable named by ``env_pass`` is not set.
    """
    plan.write(request.folder / PLAN_FILE)
    ids: list[str] = []
    for number in range(len(plan.arrays)):
        text = script(plan, number, settings, request.folder, after=ids[-1] if ids else None)
        try:
            job = submit_script(request.folder / f"array-{number}.sh", text, settings)
        except BackendError as error:
            error = BackendError(f"sbatch rejected the job: {error}")
            if not ids:
                raise error from None
            started = sum(len(runs) for array in plan.arrays[:number] for runs in array.jobs)
            before = f"{started} of {len(request.runs)} runs were submitted before and go on"
            raise BackendError(f"{error}; {before}; `run` submits the others") from None
        write_json(request.folder / ARRAY_FILE.format(number), {"id": job})
        ids.append(job)
    return ids


def script(plan: JobPlan, number: int, settings: SlurmSettings, folder: Path, *, after: str | None = None) -> str:
    """Return the script of an array. ``folder`` is that of the request, ``after`` the id of the array before it.

    SLURM limits the jobs of one array alone. If runs at once are limited, each array therefore waits for the one
    before.
    """
    array, limit = plan.arrays[number], settings.max_parallel
    resources, runs = array.resources, array.runs_per_job
    nodes, ranks_per_node = settings.nodes(resources)
    cpus = (resources.cpus or 1) * runs * ranks_per_node
    gpus = ranks_per_node if resources.gpus == 1 else 1  # runs that share a GPU are in the same job
    at_once = f"%{max(1, limit // runs)}" if limit is not None else ""
    options: dict[str, Any] = {
        "array": f"0-{len(array.jobs) - 1}{at_once}",
        "job-name": f"seqlm-{study_name(plan.options.study_dir).replace('/', '-')}",
        "time": array.timeout_min,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus,
        **settings.gpu_options(gpus if resources.gpus else 0),
        "mem": None if array.mem_gb is None else f"{round(array.mem_gb * 1024)}M",
        "signal": f"USR2@{settings.warning_s}",
        "requeue": True,
        "chdir": folder,
        "output": folder / f"array-{number}_%a.out",
        "nice": _nice(plan, array, settings),
        "dependency": f"afterany:{after}" if after is not None and limit is not None else None,
    }
    srun = shlex.join(["srun", f"--cpus-per-task={cpus}", f"--wait={END_SECONDS}", *settings.srun_args])
    program = f"{program_of(plan.code, 'slurm.job', settings)} {shlex.quote(str(folder / PLAN_FILE))} {number}"
    # A program that a signal ended may leave no word. Then the script's end by the same signal is the only one.
    again = f"[ $code -ne {128 + signal.SIGTERM} ] || {program} ended; [ $code -le 128 ] || kill -$((code - 128)) $$"
    command = f"{srun} {program} || {{ code=$?; {again}; exit $code; }}"
    given = {key: value for key, value in options.items() if value is not None}
    return batch_script(settings, given, command)


def _nice(plan: JobPlan, array: ArrayPlan, settings: SlurmSettings) -> int | None:
    """Return by how much the priority of an array is lowered. ``None``: the settings say."""
    lower = min(max(one.resources.priority for one in plan.arrays) - array.resources.priority, 10_000)
    own = settings.sbatch.get("nice", 0)
    return lower + (DEFAULT_NICE if own is True else int(own)) if lower else None
