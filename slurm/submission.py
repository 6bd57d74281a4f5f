"""Submit runs as job arrays: group them, write one plan for all jobs and a script for each array, and call sbatch."""

import contextlib
import functools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.launch.job import LaunchOptions
from jobs.plan.planned import PlannedRun
from jobs.study.folder import study_name
from jobs.study.kept_code import Code
from jobs.study.squeue import Claim, ask, cancel_jobs, live_jobs
from seqlm.environment import STAGE
from seqlm.errors import BackendError, FileError, UsageError
from seqlm.reading import timestamp
from seqlm.records.batch import ArrayPlan, Batch, Limits, Submitted
from seqlm.requests import numbered
from seqlm.resources import Resources
from seqlm.trust import table_digest
from slurm.environment import batch_script, plain_env, program_of, setup_lines, submit_script
from slurm.script import NOT_STARTED, job_lines
from slurm.settings import JobShape, SlurmSettings

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""
TOO_LARGE = "Invalid job array specification"
"""Words of sbatch if an array has more jobs than the cluster takes (MaxArraySize)."""
TOO_MANY = ("accounting/QOS policy", "SubmitJob", TOO_LARGE)
"""The same, or if an array has more jobs than the user may submit (MaxSubmitJobs, a QOS)."""
KEYS = ("account", "qos", "partition", "reservation")
"""Settings that sbatch names if they are wrong."""


class _NoRoomError(BackendError):
    """SLURM takes too few jobs of the user now."""


# -- the plan: what each job of a submission does, in one file next to the request ------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What the jobs of a submission do. In its file, the arrays are as SLURM has taken them."""

    options: LaunchOptions
    """Those of the launch, with the variables of the workers and the request. No ``tasks`` and no ``record``."""
    arrays: tuple[ArrayPlan, ...]
    code: Path
    """The archive of the code, or the folder of a working tree."""
    data: Mapping[str, Path]
    """Run id -> the path of its corpus, for runs that have one."""
    launched: Mapping[str, tuple[str, ...]]
    """Run id -> the fingerprints of the configurations whose models its worker may run."""
    signal_before_s: int
    must_have_nodes: bool
    """Whether the settings name the nodes of the jobs, so that none can be excluded."""
    grid: Path | None = None
    """The folder of the request whose jobs wait for these, which are canaries. ``None``: they are none."""

    @property
    def folder(self) -> Path:
        """The folder of the request of these jobs. A plan that is for display alone has none."""
        study_dir, request = self.options.study_dir, self.options.request
        return study_dir / "launches" / "REQUEST" if request is None else numbered(study_dir, request)

    def with_arrays(self, number: int, *arrays: ArrayPlan) -> Self:
        """Return the plan with these arrays in place of one."""
        return replace(self, arrays=(*self.arrays[:number], *arrays, *self.arrays[number + 1 :]))

    def to_batch(self) -> Batch:
        """Return the record of the plan, which :meth:`read` reads."""
        return Batch(
            options=asdict(self.options),
            arrays=self.arrays,
            code=str(self.code),
            data={run_id: str(path) for run_id, path in self.data.items()},
            launched=self.launched,
            signal_before_s=self.signal_before_s,
            must_have_nodes=self.must_have_nodes,
            grid=None if self.grid is None else str(self.grid),
        )

    @classmethod
    def read(cls, path: Path, sha256: str | None = None) -> Self:
        """Return the plan of the record in a file. ``sha256``: the digest that it must have. ``None``: any.

        Raises:
            FileError: it cannot be read.
            UsageError: it has another digest.
        """
        batch = Batch.read_file(path)
        if batch is None:
            raise FileError(f"cannot read {path}: No such file or directory")
        if sha256 not in (None, plan_sha256(batch)):
            raise UsageError(f"{path} has changed since its launch; launch again")
        return cls(
            options=_options_reader().validate_python(batch.options),
            arrays=batch.arrays,
            code=Path(batch.code),
            data={run_id: Path(place) for run_id, place in batch.data.items()},
            launched=batch.launched,
            signal_before_s=batch.signal_before_s,
            must_have_nodes=batch.must_have_nodes,
            grid=None if batch.grid is None else Path(batch.grid),
        )


@functools.cache
def _options_reader() -> "TypeAdapter[LaunchOptions]":
    from pydantic import TypeAdapter  # a launcher does without

    return TypeAdapter(LaunchOptions)


def plan_sha256(batch: Batch) -> str:
    """Return the digest of all of a plan but its arrays, whose ids SLURM gives later. The jobs' scripts have it."""
    return table_digest("plan", {key: value for key, value in batch.to_plain().items() if key != "arrays"})


def plan_jobs(
    todo: Sequence[PlannedRun],
    options: LaunchOptions,
    settings: SlurmSettings,
    code: Code,
    *,
    request: int | None,
    limits: Mapping[str, tuple[Limits, Limits]] = MappingProxyType({}),
) -> JobPlan:
    """Group runs into arrays, and return what their jobs do.

    The runs of the pool are one array. All others are arrays of equal resources and limits.

    ``todo`` is in queue order, and arrays keep that order. ``request`` is the number of their request, if there is one
    yet. ``limits``: by run id what the job asks for, and the most that it may ask for; without them, the limits of the
    settings.
    """
    groups: dict[tuple[JobShape, Resources | None, Limits, Limits | None], dict[str, Resources]] = {}
    for item in todo:
        wanted, kept = item.spec.resources, settings.limits
        shape, (asked, largest) = settings.shape(wanted), limits.get(item.run.id, (kept, None))
        group = (shape, None, kept, largest) if shape.at_once is None else (shape, wanted, asked, largest)
        groups.setdefault(group, {})[item.run.id] = wanted
    arrays = []
    for (shape, _, asked, largest), runs in groups.items():
        at_once, limit, jobs = shape.at_once, settings.max_parallel, settings.pool.jobs
        if at_once is not None:
            jobs = math.ceil(len(runs) / at_once)
        elif limit is not None:
            at_once = max(1, limit // jobs)
        size = vars(shape) | vars(asked) | {"jobs": min(jobs, len(runs)), "at_once": at_once, "most": largest}
        arrays.append(ArrayPlan(runs=runs, is_pool=shape.at_once is None, **size))
    stage = {STAGE.name: "1"} if settings.stage else {}
    env = {**stage, **plain_env(settings), **progress_variables(settings.progress_s), **options.env}
    study_dir = options.study_dir.absolute()
    return JobPlan(
        options=replace(options, study_dir=study_dir, env=env, request=request, tasks={}, record=None),
        arrays=tuple(arrays),
        code=code.archive or code.path,
        data={item.run.id: path.absolute() for item in todo if (path := item.spec.data_path) is not None},
        launched={item.run.id: item.spec.may_run() for item in todo},
        signal_before_s=settings.warning_s,
        must_have_nodes=bool(settings.nodelist or settings.reservation or "nodefile" in settings.sbatch),
    )


def pooled(plan: JobPlan, most: int | None = None) -> JobPlan:
    """Return a plan whose runs of one node are a pool for each type of GPUs.

    A pool has at most ``most`` jobs, each with room for each of its runs.
    """
    small: dict[str | None, list[ArrayPlan]] = {}
    for array in plan.arrays:
        if array.nodes == 1:
            small.setdefault(array.accelerator_type, []).append(array)
    pools = [_pool(arrays, most) for arrays in small.values()]
    return replace(plan, arrays=(*pools, *(array for array in plan.arrays if array.nodes > 1)))


def _pool(arrays: Sequence[ArrayPlan], most: int | None) -> ArrayPlan:
    runs = sorted((run for array in arrays for run in array.runs.items()), key=lambda run: -run[1].priority)
    at_once = [array.at_once for array in arrays]
    return replace(
        max(arrays, key=lambda array: (array.gpus, array.cpus)),
        runs=dict(runs),
        jobs=min(sum(array.jobs for array in arrays), most or len(runs)),
        cpus=max(array.cpus for array in arrays),
        at_once=None if None in at_once else max(filter(None, at_once)),
        timeout_min=max(array.timeout_min for array in arrays),
        mem_gb=max((array.mem_gb for array in arrays if array.mem_gb is not None), default=None),
        is_pool=True,
    )


# -- scripts ---------------------------------------------------------------------------------------------------------


def submit(plan: JobPlan, settings: SlurmSettings, canaries: JobPlan | None = None) -> list[str]:
    """Submit the arrays of a plan, and before them those of canaries, on which they depend; return the ids of the plan.

    The first jobs are held until everything is submitted and recorded. What a launcher leaves that is killed before
    cannot start (:func:`slurm.canary.withdraw_stuck`).

    If SLURM takes fewer jobs of the user, the runs of one node become a pool of half as many jobs, and so on. Runs of
    several nodes for which there is no job wait for the next launch.

    Raises:
        BackendError: sbatch rejected an array, or takes no job at all. Nothing is submitted.
        UsageError: a variable named by ``env_pass`` is not set.
    """
    plans = [plan] if canaries is None else [canaries, plan]
    try:
        return _submit(plans, settings)
    except _NoRoomError:  # a single job for all canaries leaves most room
        return _submit([pooled(one, 1 if one is canaries else None) for one in plans], settings)


def _submit(plans: Sequence[JobPlan], settings: SlurmSettings) -> list[str]:
    """Submit plans, all of which depend on the first, and record them; return the ids of the last.

    SLURM limits the jobs of one array alone. If runs at once are limited, each array waits for the one before.

    Raises:
        BackendError, FileError, UsageError: as :func:`submit`. What was submitted is cancelled.
    """
    ids: list[list[str]] = []
    try:
        for plan in plans:
            words, after = ([], [f"afterok:{':'.join(ids[0])}"]) if ids else (["--hold"], [])
            ids.append([])
            number = 0
            while number < len(plan.arrays):
                before = [f"afterany:{job}" for job in ids[-1][-1:] if settings.max_parallel is not None]
                found = _submit_array(plan, number, settings, ",".join([*after, *before]), words)
                ids[-1] += [found[0].job] if found[0].job is not None else []
                plan = plan.with_arrays(number, *found)
                number += 1
            left = [array for array in plan.arrays if array.job is None]
            if not ids[-1]:
                raise _NoRoomError(left[0].why)
            plan.to_batch().write(plan.folder)
        ask("scontrol", "release", ",".join(ids[0]))
        for plan in plans:
            Submitted(at=timestamp()).write(plan.folder, once=True)
    except BaseException:
        with contextlib.suppress(BackendError):  # a later launch cancels what this one cannot
            claims = [Claim(job, plan.folder) for plan, jobs in zip(plans, ids, strict=False) for job in jobs]
            cancel_jobs(live_jobs(claims))
        raise
    if left:
        terminal.tell(f"warning: {sum(len(array.runs) for array in left)} runs wait for the next `run`: {left[0].why}")
    return ids[-1]


def _submit_array(
    plan: JobPlan, number: int, settings: SlurmSettings, dependency: str, words: Sequence[str]
) -> list[ArrayPlan]:
    """Submit an array with as many of its jobs as SLURM takes; return it, and an array of runs that have no job yet.

    Raises:
        BackendError: sbatch rejected the array.
        _NoRoomError: SLURM takes fewer jobs, and each has runs of its own.
    """
    array, why = plan.arrays[number], ""
    runs, jobs = list(array.runs.items()), array.jobs
    while jobs:
        count = jobs if array.nodes > 1 else len(runs)  # a job with several nodes has one run
        part = replace(array, jobs=jobs, runs=dict(runs[:count]))
        text = script(plan.with_arrays(number, part), number, settings, dependency)
        try:
            part = replace(part, job=submit_script(plan.folder / f"array-{number}.sh", text, settings, *words))
        except BackendError as error:
            why = f"sbatch rejected the job: {error}"
            if not any(known in why for known in TOO_MANY):
                raise BackendError(why + "".join(f"; set {key}" for key in KEYS if f"nvalid {key}" in why)) from None
            if array.nodes == 1 and not array.is_pool and TOO_LARGE not in why:
                raise _NoRoomError(why) from None
            jobs, array = jobs // 2, replace(array, is_pool=array.nodes == 1)
        else:
            rest = runs[count:]
            return [part, *([replace(array, jobs=len(rest), runs=dict(rest))] if rest else [])]
    why += (
        "; the cluster may take no job arrays (MaxArraySize); ask the administrator to allow some"
        if TOO_LARGE in why
        else ""
    )
    return [replace(array, jobs=0, why=why)]


def script(plan: JobPlan, number: int, settings: SlurmSettings, dependency: str = "") -> str:
    """Return the script of an array. ``dependency``: the jobs that it waits for, as sbatch has them."""
    array, limit, folder = plan.arrays[number], settings.max_parallel, plan.folder
    at_once = f"%{max(1, limit // (array.at_once or 1))}" if limit is not None else ""
    options: dict[str, Any] = {
        "array": f"0-{array.jobs - 1}{at_once}",
        "job-name": f"seqlm-{study_name(plan.options.study_dir).replace('/', '-')}",
        "time": array.timeout_min,
        "nodes": array.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": array.cpus,
        **settings.gpu_options(array.gpus, array.accelerator_type),
        "mem": None if array.mem_gb is None else f"{round(array.mem_gb * 1024)}M",
        "signal": f"USR2@{plan.signal_before_s}",
        "requeue": True,
        "chdir": folder,
        "output": folder / f"array-{number}_%a.out",
        "nice": _nice(plan, array, settings),
        "dependency": dependency or None,
    }
    # Whatever ends on one node ends the job's start on all of them, and none ends because another one has ended well.
    words = ["env", f"SLURM_EXIT_ERROR={NOT_STARTED}", "srun", f"--cpus-per-task={array.cpus}", "--wait=0"]
    srun = shlex.join([*words, "--kill-on-bad-exit=1", *settings.srun_args])
    digest = "DIGEST" if plan.options.request is None else plan_sha256(plan.to_batch())
    program = f"{plan_program(folder / Batch.FILE, digest, plan.code, settings)} {number}"
    launch = [*setup_lines(settings), f'{srun} {program} "$1" $SLURMD_NODENAME']
    body = job_lines(folder / f"job-{number}", launch, may_avoid=not plan.must_have_nodes)
    given = {key: value for key, value in options.items() if value is not None}
    return batch_script(settings, given, body, setup=())


def plan_program(path: Path, digest: str, code: Path, settings: SlurmSettings) -> str:
    """Return the command that does a part of the plan in a file, but for the words that say which."""
    return f"{program_of(code, 'slurm.job', settings)} {shlex.quote(str(path))} {digest}"


def _nice(plan: JobPlan, array: ArrayPlan, settings: SlurmSettings) -> int | None:
    """Return by how much the priority of an array is lowered. ``None``: the settings say."""
    lower = min(max(one.priority for one in plan.arrays) - array.priority, 10_000)
    own = settings.sbatch.get("nice", 0)
    return lower + (DEFAULT_NICE if own is True else int(own)) if lower else None
