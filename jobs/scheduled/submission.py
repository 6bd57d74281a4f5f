"""Submit runs as job arrays: group them, write one plan for all jobs and a script for each array, and submit these."""

import contextlib
import math
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from jobs import terminal
from jobs.attempt.supervisor import progress_variables
from jobs.launch.job import StudySettings
from jobs.manifests.policy import Notify, Policy
from jobs.plan.planned import PlannedRun
from jobs.scheduled.environment import plain_env, program_of, setup_lines, submission_environment
from jobs.scheduled.script import job_lines
from jobs.scheduled.settings import JobShape, ScheduledTable
from jobs.scheduled.slot import SLOT
from jobs.study.folder import study_name
from jobs.study.kept_code import Code
from jobs.study.scheduler import Claim, Scheduler, TooManyJobsError
from seqlm.environment import STAGE
from seqlm.errors import BackendError, FileError, UsageError
from seqlm.files import write_text
from seqlm.reading import exists, timestamp
from seqlm.records.base import Record
from seqlm.records.batch import ArrayPlan, Batch, Limits, Submitted
from seqlm.requests import numbered
from seqlm.resources import Resources
from seqlm.search import Search
from seqlm.trust import table_digest


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a job or an array asks a scheduler for."""

    name: str
    folder: Path | None
    """In which it works. ``None``: where it is submitted, so that it is none of the jobs of a request."""
    output: Path
    """The file that its output goes to. ``{index}`` in its name is the place of a job in its array."""
    minutes: int
    """Its time limit."""
    array: ArrayPlan | None = None
    """What its jobs have. ``None``: it is one job, of one core."""
    at_once: int | None = None
    """Most jobs of the array that run at once. ``None``: any number."""
    signal_before_s: int | None = None
    """How long before its time limit SIGUSR2 is sent to all its processes. ``None``: it is not."""
    lower_priority: int = 0
    """By how much its priority is lowered."""
    can_return: bool = True
    """Whether the scheduler may start it again, such as after its node has failed."""
    after: Sequence[str] = ()
    """The ids of jobs and arrays that end before it starts, however they end."""


class Submitter(ABC):
    """Submits to a scheduler with the settings of a launch."""

    settings: ScheduledTable

    @property
    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The scheduler."""

    @abstractmethod
    def script(self, asked: Asked, body: str) -> str:
        """Return a script of bash that asks for something, and does ``body``.

        Raises:
            BackendError: this is no machine of a cluster.
        """

    def launch_words(self, array: ArrayPlan) -> str:
        """Return the words before a command that start it once on each node of a job. Exit code 77: nothing started.

        Whatever ends with another code than 0 on one node ends the command on all of them. None ends because another
        one has ended well.
        """
        return ""

    def submit_script(self, path: Path, text: str, *, is_held: bool = False) -> str:
        """Write a script, submit it, and return the id of its job.

        Raises:
            BackendError: it is rejected.
            FileError: it cannot be written.
            UsageError: as :func:`jobs.scheduled.environment.submission_environment`.
        """
        write_text(path, text)
        environ = submission_environment(self.settings, self.scheduler, os.environ)
        return self.scheduler.submit(path, environ, is_held=is_held)


MOST_LOWER = 10_000
"""The most by which a priority is lowered."""

# -- the plan: what each job of a submission does, in one file next to the request ------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Options(Record):
    """The ``options`` of a :class:`seqlm.records.batch.Batch`. An earlier version has written more of them."""

    study_dir: str
    worker: tuple[str, ...]
    policy: Policy
    notify: Notify | None = None
    search: Search | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    request: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What the jobs of a submission do. In its file, the arrays are as the scheduler has taken them."""

    study: StudySettings
    env: Mapping[str, str]
    """Variables of the workers."""
    request: int | None
    """The number of their request. ``None``: there is none yet."""
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
    scheduler: str
    """Its name."""
    grid: Path | None = None
    """The folder of the request whose jobs wait for these, which are canaries. ``None``: they are none."""
    canaries: Path | None = None
    """The folder of the request of the canaries that must have passed. ``None``: there are none."""

    @property
    def folder(self) -> Path:
        """The folder of the request of these jobs. A plan that is for display alone has none."""
        if self.request is None:
            return self.study.path / "launches" / "REQUEST"
        return numbered(self.study.path, self.request)

    def note_submitted(self) -> None:
        """Record that all jobs are submitted. A job that starts does so too: the launcher may have been killed.

        Raises:
            FileError: that cannot be written.
        """
        for folder in filter(None, (self.folder, self.grid)):
            if not exists(folder / Submitted.FILE):
                Submitted(at=timestamp()).write(folder, once=True)

    def with_array(self, number: int, array: ArrayPlan) -> Self:
        """Return the plan with this array in place of one."""
        return replace(self, arrays=(*self.arrays[:number], array, *self.arrays[number + 1 :]))

    def to_batch(self) -> Batch:
        """Return the record of the plan, which :meth:`read` reads."""
        options = Options(
            study_dir=str(self.study.path),
            worker=self.study.worker,
            policy=self.study.policy,
            notify=self.study.notify,
            search=self.study.search,
            env=self.env,
            request=self.request,
        )
        return Batch(
            options=options.to_plain(),
            arrays=self.arrays,
            code=str(self.code),
            data={run_id: str(path) for run_id, path in self.data.items()},
            launched=self.launched,
            signal_before_s=self.signal_before_s,
            must_have_nodes=self.must_have_nodes,
            scheduler=self.scheduler,
            grid=None if self.grid is None else str(self.grid),
            canaries=None if self.canaries is None else str(self.canaries),
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
        options = Options.from_plain(batch.options, path)
        return cls(
            study=StudySettings(
                path=Path(options.study_dir),
                policy=options.policy,
                notify=options.notify,
                search=options.search,
                worker=options.worker,
            ),
            env=options.env,
            request=options.request,
            arrays=batch.arrays,
            code=Path(batch.code),
            data={run_id: Path(place) for run_id, place in batch.data.items()},
            launched=batch.launched,
            signal_before_s=batch.signal_before_s,
            must_have_nodes=batch.must_have_nodes,
            scheduler=batch.scheduler,
            grid=None if batch.grid is None else Path(batch.grid),
            canaries=None if batch.canaries is None else Path(batch.canaries),
        )


def plan_sha256(batch: Batch) -> str:
    """Return the digest of all of a plan but its arrays, which get their ids later. The scripts of the jobs have it.

    It covers options that this version does not know.
    """
    return table_digest("plan", {key: value for key, value in batch.to_plain().items() if key != "arrays"})


def plan_jobs(
    todo: Sequence[PlannedRun],
    study: StudySettings,
    settings: ScheduledTable,
    code: Code,
    *,
    scheduler: str,
    request: int | None,
    limits: Mapping[str, tuple[Limits, Limits]] = MappingProxyType({}),
) -> JobPlan:
    """Group runs into arrays of equal jobs, and return what these do.

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
        jobs = settings.pool.jobs if shape.at_once is None else math.ceil(len(runs) / shape.at_once)
        size = vars(shape) | vars(asked) | {"jobs": min(jobs, len(runs)), "most": largest}
        arrays.append(ArrayPlan(runs=runs, **size))
    stage = {STAGE.name: "1"} if settings.stage else {}
    return JobPlan(
        study=replace(study, path=study.path.absolute()),
        env={**stage, **plain_env(settings), **progress_variables(settings.progress_s)},
        request=request,
        arrays=limited(arrays, settings.max_parallel),
        code=code.archive or code.path,
        data={item.run.id: path.absolute() for item in todo if (path := item.spec.data_path) is not None},
        launched={item.run.id: item.spec.may_run() for item in todo},
        signal_before_s=settings.warning_s,
        must_have_nodes=settings.must_have_nodes,
        scheduler=scheduler,
    )


def divided(wanted: Sequence[int], places: int) -> list[int]:
    """Return shares of a number of places, near in proportion to what is ``wanted``. Each share is 1 or more.

    No share is larger than what is wanted. With fewer places than shares, the sum of the shares exceeds the places.
    """
    shares = [1] * len(wanted)
    while sum(shares) < min(places, sum(wanted)):
        neediest = max(range(len(wanted)), key=lambda one: wanted[one] / shares[one])
        shares[neediest] += 1
    return shares


def limited(arrays: Sequence[ArrayPlan], most: int | None) -> tuple[ArrayPlan, ...]:
    """Return arrays that have at most ``most`` runs at once. ``None``: any number.

    A scheduler limits the jobs of one array alone. So the arrays divide the number, or, if that ends sooner, each has
    all of it and they take turns (:func:`take_turns`). That is so for a large array and several small ones, or for
    more arrays than runs at once.
    """
    if most is None:
        return tuple(arrays)
    numbers = [len(array.runs) for array in arrays]
    shares = divided(numbers, most)
    rounds = max(math.ceil(number / share) for number, share in zip(numbers, shares, strict=True))
    if sum(shares) > most or rounds > sum(math.ceil(number / most) for number in numbers):
        shares = [most] * len(arrays)
    return tuple(_limited(array, share) for array, share in zip(arrays, shares, strict=True))


def _limited(array: ArrayPlan, most: int) -> ArrayPlan:
    if array.at_once is not None:
        return replace(array, most_runs=most, at_once=min(array.at_once, most))
    jobs = min(array.jobs, most)
    return replace(array, most_runs=most, jobs=jobs, at_once=most // jobs)


def take_turns(arrays: Sequence[ArrayPlan], most: int | None) -> bool:
    """Return whether each array waits for the one before: together they would have more than ``most`` runs at once."""
    return most is not None and sum(array.most_runs or 0 for array in arrays) > most


def merged(plan: JobPlan, most_runs: int | None) -> JobPlan:
    """Return a plan whose runs of one node are one array for each type of GPUs, with room for each of its runs."""
    small: dict[str | None, list[ArrayPlan]] = {}
    for array in plan.arrays:
        if array.nodes == 1:
            small.setdefault(array.accelerator_type, []).append(array)
    arrays = [*map(_merged, small.values()), *(array for array in plan.arrays if array.nodes > 1)]
    return replace(plan, arrays=limited(arrays, most_runs))


def _merged(arrays: Sequence[ArrayPlan]) -> ArrayPlan:
    runs = sorted((run for array in arrays for run in array.runs.items()), key=lambda run: -run[1].priority)
    at_once = [array.at_once for array in arrays]
    return replace(
        max(arrays, key=lambda array: (array.gpus, array.cpus)),
        runs=dict(runs),
        jobs=sum(array.jobs for array in arrays),
        cpus=max(array.cpus for array in arrays),
        at_once=None if None in at_once else max(filter(None, at_once)),
        timeout_min=max(array.timeout_min for array in arrays),
        mem_gb=max((array.mem_gb for array in arrays if array.mem_gb is not None), default=None),
    )


def fitted(plan: JobPlan, places: int, most_runs: int | None) -> JobPlan:
    """Return a plan whose arrays together have this number of jobs.

    With fewer places than arrays, the runs of one node are one array. Each array keeps at least one job.
    """
    if len(plan.arrays) > places:
        plan = merged(plan, most_runs)
    jobs = divided([array.jobs for array in plan.arrays], places)
    return replace(plan, arrays=tuple(replace(one, jobs=few) for one, few in zip(plan.arrays, jobs, strict=True)))


# -- scripts ---------------------------------------------------------------------------------------------------------


def submit(plan: JobPlan, place: Submitter, canaries: JobPlan | None = None) -> list[str]:
    """Submit the arrays of a plan, and before them those of canaries, which they wait for; return the ids of the plan.

    The first jobs are held until everything is submitted and recorded. What a launcher leaves that is killed before
    cannot start (:func:`jobs.scheduled.canary.withdraw_stuck`).

    If the scheduler takes fewer jobs of the user, the arrays share those that it takes. Runs of an array for which
    there is none wait for the next launch.

    Raises:
        BackendError: the scheduler rejected an array, or takes no job at all. Nothing is submitted.
        UsageError: a variable named by ``env_pass`` is not set.
    """
    plans = [plan] if canaries is None else [canaries, plan]
    try:
        return _submit(plans, place)
    except _NoRoomError as error:
        places, most = error.taken, place.settings.max_parallel
    # A single job for the canaries of each kind of GPUs leaves most room.
    few = [] if canaries is None else [fitted(canaries, 0, most)]
    places -= sum(len(one.arrays) for one in few)
    return _submit([*few, fitted(plan, places, most)], place, is_last=True)


class _NoRoomError(TooManyJobsError):
    """The scheduler takes no job of an array."""

    def __init__(self, why: str, taken: int) -> None:
        """``taken``: the number of jobs that it has taken of the arrays before."""
        super().__init__(why)
        self.taken = taken


def _submit(plans: Sequence[JobPlan], place: Submitter, *, is_last: bool = False) -> list[str]:
    """Submit plans, all of which wait for the end of the first, and record them; return the ids of the last.

    With ``is_last``, an array of the last plan of which no job is taken is left to the next launch, unless that plan
    then has none.

    Raises:
        _NoRoomError: the scheduler takes no job of an array. What was submitted is cancelled.
        BackendError, FileError, UsageError: as :func:`submit`. What was submitted is cancelled.
    """
    ids: list[list[str]] = []
    most, taken = place.settings.max_parallel, 0
    try:
        for plan in plans:
            is_held, may_lack = not ids, is_last and plan is plans[-1]
            canaries = [] if is_held else ids[0]
            ids.append([])
            takes_turns = take_turns(plan.arrays, most)
            for number in range(len(plan.arrays)):
                after = [*canaries, *(ids[-1][-1:] if takes_turns else [])]
                array = _submit_array(plan, number, place, after, is_held=is_held)
                if array.job is not None:
                    ids[-1].append(array.job)
                    taken += array.jobs
                elif not may_lack:
                    raise _NoRoomError(array.why, taken)
                plan = plan.with_array(number, array)
            left = [array for array in plan.arrays if array.job is None]
            if not ids[-1]:
                raise TooManyJobsError(left[0].why)
            plan.to_batch().write(plan.folder)
        place.scheduler.release(ids[0])
        for plan in plans:
            plan.note_submitted()
    except BaseException:
        with contextlib.suppress(BackendError):  # a later launch cancels what this one cannot
            named = [(plan, job) for plan, jobs in zip(plans, ids, strict=False) for job in jobs]
            claims = [Claim(job, plan.folder, plan.scheduler) for plan, job in named]
            place.scheduler.cancel(place.scheduler.live(claims))
        raise
    if left:
        terminal.tell(f"warning: {sum(len(array.runs) for array in left)} runs wait for the next `run`: {left[0].why}")
    return ids[-1]


def _submit_array(plan: JobPlan, number: int, place: Submitter, after: Sequence[str], *, is_held: bool) -> ArrayPlan:
    """Submit an array with about as many of its jobs as are taken, and return it. It may have none.

    Raises:
        BackendError: the scheduler rejected the array.
    """
    array, why = plan.arrays[number], ""
    jobs = array.jobs
    while jobs:
        part = replace(array, jobs=jobs)
        text = script(plan.with_array(number, part), number, place, after=after)
        try:
            return replace(part, job=place.submit_script(plan.folder / f"array-{number}.sh", text, is_held=is_held))
        except TooManyJobsError as error:
            why = str(error)
            jobs -= math.ceil(jobs / 10)
    return replace(array, jobs=0, why=why)


def script(plan: JobPlan, number: int, place: Submitter, *, after: Sequence[str] = ()) -> str:
    """Return the script of an array. ``after``: the jobs that it waits for."""
    array, folder, settings = plan.arrays[number], plan.folder, place.settings
    asked = Asked(
        name=f"seqlm-{study_name(plan.study.path).replace('/', '-')}",
        folder=folder,
        output=folder / f"array-{number}_{{index}}.out",
        minutes=array.timeout_min,
        array=array,
        at_once=None if array.most_runs is None else max(1, array.most_runs // (array.at_once or 1)),
        signal_before_s=plan.signal_before_s,
        lower_priority=min(max(one.priority for one in plan.arrays) - array.priority, MOST_LOWER),
        after=after,
    )
    digest = "DIGEST" if plan.request is None else plan_sha256(plan.to_batch())
    program = f"{plan_program(plan.scheduler, plan.code, folder, digest, settings)} {number}"
    command = f'{place.launch_words(array)} {program} "$1" $2'.strip()
    slot = folder / f"{SLOT}{number}"
    launch = [*setup_lines(settings, place.scheduler), command]
    return place.script(asked, job_lines(place.scheduler.SHELL, slot, launch, may_avoid=not plan.must_have_nodes))


def plan_program(scheduler: str, code: Path, folder: Path, digest: str, settings: ScheduledTable) -> str:
    """Return the command that does a part of the plan in the folder of a request, but for the words that say which."""
    words = shlex.join([scheduler, str(folder / Batch.FILE), digest])
    return f"{program_of(code, 'jobs.scheduled.job', settings)} {words}"
