"""A scheduler as a backend: submit runs as job arrays, which need no launcher.

Each job runs a dispatcher on its allocation (:mod:`jobs.scheduled.job`). ``status`` reads the run directories, and asks
the scheduler for what these do not have (:class:`jobs.study.scheduler.Views`).
"""

import functools
import os
import shlex
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs import registry, terminal
from jobs.backends.base import Backend, Room
from jobs.launch import canary
from jobs.launch.canary import Canaries
from jobs.launch.job import StudySettings
from jobs.launch.prepare import Work
from jobs.plan.capacity import Capacity, Node, with_noun
from jobs.plan.limits import advice, fitting, more_memory_gb
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.scheduled.canary import plan_canaries, withdraw_stuck
from jobs.scheduled.environment import program_of, setup_lines, submission_environment
from jobs.scheduled.settings import ScheduledTable
from jobs.scheduled.site import Site
from jobs.scheduled.submission import (
    Asked,
    JobPlan,
    Submitter,
    plan_jobs,
    plan_program,
    plan_sha256,
    script,
    submit,
    take_turns,
)
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, is_behaviour_study, open_jobs, read_jobs
from jobs.study.kept_code import Code, live_code
from jobs.study.scheduler import Scheduler, Waiting
from seqlm.errors import BackendError
from seqlm.records.batch import Batch, Limits
from seqlm.requests import Request
from seqlm.resources import Resources
from seqlm.rundir import CANARY_FOLDER, RunDirectory

LAST_MINUTES = 30
"""Time limit of the job that follows a study, without the behaviour of models."""


class ScheduledBackend(Backend, Submitter):
    """A scheduler as a backend. Its subclass has its settings, what its cluster has, and its scripts.

    A subclass has ``name``, ``TABLE`` (a subclass of :class:`jobs.scheduled.settings.ScheduledTable`), ``site`` and
    ``script``, and may have ``launch_words``, ``ran_here``, ``read``, ``doctor`` and ``require_path``.
    """

    TABLE = ScheduledTable
    is_scheduled = True

    @property
    def scheduler(self) -> Scheduler:
        found: Scheduler = registry.scheduler(self.name)
        return found

    @abstractmethod
    def site(self) -> Site:
        """Return what jobs with these settings may use.

        Raises:
            BackendError: the scheduler does not answer, or has no such place.
        """

    def ran_here(self, variables: Mapping[str, str]) -> bool:
        """Return whether a worker with these variables was on nodes like those of the settings."""
        return True

    def require_path(self, path: Path) -> None:
        """Check that the scheduler can use a folder.

        Raises:
            UsageError: it cannot.
        """

    @functools.cached_property
    def _site(self) -> Site:
        return self.site()

    def describe(self) -> str:
        facts = self._site
        gpus = f", {facts.gpus_per_node} GPUs each" if facts.gpus_per_node else ""
        return f"{self.scheduler.title}, partition {facts.name} ({facts.nodes} nodes{gpus})"

    def capacity(self) -> Capacity:
        facts, pool = self._site, self.settings.pool
        kinds = [(kind.count, kind.cpus, kind.gpus) for kind in facts.kinds]
        if pool.jobs:
            kinds = [(pool.jobs, pool.cpus, pool.gpus)]
        nodes = [
            Node(name=f"{number}-{place}", cpus=cpus, gpus={str(index): 1.0 for index in range(gpus)})
            for number, (count, cpus, gpus) in enumerate(kinds)
            for place in range(count)
        ]
        return Capacity(nodes, where=f"partition {facts.name}")

    def summary(self, todo: Sequence[PlannedRun]) -> str:
        pool = self.settings.pool
        inside = sum(self.settings.shape(item.spec.resources).at_once is None for item in todo)
        if not inside:
            return ""
        room = with_noun(pool.gpus, "GPU") if pool.gpus else with_noun(pool.cpus, "core")
        jobs = with_noun(min(pool.jobs, inside), "pool job")
        larger = len(todo) - inside
        ordinary = "ordinary jobs" if larger > 1 else "an ordinary job"
        others = f"; {with_noun(larger, 'larger run')} as {ordinary}" if larger else ""
        return f"{with_noun(inside, 'run')} in {jobs} of {room}{others}"

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        site = self._site  # outside the try: a missing cluster is not an error of this run
        try:
            return site.resolve(spec.resources, self.settings)
        except BackendError as error:
            raise BackendError(f"{spec.name}: {error}") from None

    def room(self, resources: Resources) -> Room | None:
        mem_gb, nodes = self.settings.mem_gb, self.settings.shape(resources).nodes
        if mem_gb is None or resources.gpus:  # the cluster does not say how much memory a GPU has
            return None
        return Room(mem_gb * 2**30 * nodes / resources.ranks, f"a job with mem_gb = {mem_gb:g}")

    def check(self, study_dir: Path) -> None:
        self.require_path(study_dir.absolute())
        submission_environment(self.settings, self.scheduler, os.environ)

    def tidy(self, study_dir: Path) -> None:
        withdraw_stuck(study_dir, self.scheduler)

    def carry(self, work: Work) -> list[str]:
        """Submit what is to do of a launch, and return the ids of the jobs. Canaries go before them.

        The caller owns the study.

        Raises:
            BackendError: a job was rejected. Nothing is submitted.
        """
        study, order = work.study, work.order
        if work.spent is not None:
            terminal.tell(f"nothing starts: {work.spent}")
            return []
        canaries = canary.requested(work.todo, study.path, self.name) if work.has_canaries else None
        jobs = self.submit(work.todo, study, work.code, work.request, canaries)
        tells = study.notify is not None and "over" in study.notify.on
        if tells or order.then_report:
            self.submit_last(
                study.path,
                work.request.folder,
                jobs,
                work.code,
                message=tells,
                report=order.then_report,
                behaviour=order.behaviour,
            )
        return jobs

    def submit(
        self,
        todo: Sequence[PlannedRun],
        study: StudySettings,
        code: Code,
        request: Request,
        canaries: Canaries | None = None,
    ) -> list[str]:
        """Submit prepared runs, and return the ids of the jobs. They wait for the canaries, if there are any.

        The caller owns the study.

        Raises:
            BackendError: a job was rejected. Nothing is submitted.
        """
        plan = self._plan(todo, study, code, request.number)
        if canaries is None:
            return submit(plan, self)
        tried = plan_canaries(canaries, plan, self.settings, study, code)
        return submit(replace(plan, canaries=tried.folder), self, tried)

    def _plain_script(self, asked: Asked, *commands: str) -> str:
        """Return the script of a job that trains nothing."""
        return self.script(asked, "\n".join([*setup_lines(self.settings, self.scheduler), *commands]))

    def _plan(self, todo: Sequence[PlannedRun], study: StudySettings, code: Code, request: int | None) -> JobPlan:
        """Return what the jobs of these runs do."""
        place = places(todo)
        # The jobs of an array start in this order.
        ordered = sorted(todo, key=lambda item: place[item.run.id])
        limits = self._limits(todo, study)
        return plan_jobs(ordered, study, self.settings, code, scheduler=self.name, request=request, limits=limits)

    def _limits(self, todo: Sequence[PlannedRun], study: StudySettings) -> dict[str, tuple[Limits, Limits]]:
        """Return by run id what its job asks for, and the most that it may. A line says if that is far too much."""
        settings, asked = self.settings, self.settings.limits
        found = fitting(
            study.path.parent,
            [] if is_behaviour_study(study.path) else todo,
            self.name,
            self.ran_here,
            asked,
            save_seconds=settings.signal_before_s,
            sharing=lambda resources: settings.shape(resources).at_once or 1,
        )
        if not settings.fit_limits:
            if line := advice(found.values(), asked):
                terminal.tell(line)
            found = {}
        limits = {}
        for item in todo:
            limit, most = found.get(item.run.id, asked), settings.mem_gb if settings.fit_limits else None
            if most is None:  # that of a node
                kinds = self._site.fitting(settings.shape(item.spec.resources), settings.mem_gb)
                most = max((kind.memory_mb / 1024 for kind in kinds), default=None)
            if needs := max(limit.mem_gb or 0, more_memory_gb(item.run)):
                limit = replace(limit, mem_gb=min(needs, most or needs))
            limits[item.run.id] = limit, replace(asked, mem_gb=most)
        return limits

    def scripts(self, todo: Sequence[PlannedRun], study: StudySettings) -> list[str]:
        """Return the scripts that :meth:`submit` would submit, one for each array, with ``--live-code``.

        ``REQUEST`` stands for the number of the request, ``DIGEST`` for that of the plan, and ``ARRAY_N`` for the id of
        the N-th array in one that waits for it.
        """
        self.require_path(study.path.absolute())
        plan = self._plan(todo, study, live_code(), None)
        waits = take_turns(plan.arrays, self.settings.max_parallel)
        follows = [[f"ARRAY_{number}"] if number and waits else [] for number in range(len(plan.arrays))]
        return [script(plan, number, self, after=after) for number, after in enumerate(follows)]

    def submit_last(
        self,
        study_dir: Path,
        folder: Path,
        jobs: Sequence[str],
        code: Code,
        *,
        message: bool,
        report: bool,
        behaviour: bool | None = None,
    ) -> None:
        """Submit a job for what is left to do once all of ``jobs`` have ended, however they ended. A refusal is a line.

        It sends the ``message`` that the study is over, and writes the ``report``. Unless ``behaviour`` is false, it
        then computes the behaviour of the models and writes the report again. If it is true, it computes the behaviour
        in another user's study as well. ``folder``: of the request.
        """
        settings, place = self.settings, code.archive or code.path
        minutes, does, commands = LAST_MINUTES, [], []
        if message:
            does.append("sends the message that the study is over")
            batch = Batch.read(folder) or Batch()
            commands.append(f"{plan_program(self.name, place, folder, plan_sha256(batch), settings)} over")
        if report:
            does.append("writes the report")
            command = f"{program_of(place, 'launch', settings)} report {shlex.quote(str(study_dir.absolute()))}"
            commands.append(f"{command} --no-behaviour")
            if behaviour is not False:
                commands.append(f"{command} --behaviour" if behaviour else command)
                minutes = max(minutes, settings.timeout_min)
        asked = Asked(
            name=f"seqlm-{study_dir.name}-last",
            folder=None,
            output=folder / "last.log",
            minutes=minutes,
            after=jobs,
            can_return=False,
        )
        try:
            job = self.submit_script(folder / "last.sh", self._plain_script(asked, *commands))
            terminal.tell(f"after the last run, job {job} {' and '.join(does)}")
        except BackendError as error:
            terminal.tell(f"warning: no job {' and '.join(does)} after the last run: {error}")

    @classmethod
    def waiting(cls, study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
        jobs = {run_id: job for run_id, job in read_jobs(study_dir).items() if run_id in run_ids}
        found: dict[str, Waiting] = registry.scheduler(cls.name).waiting(jobs)
        return found

    @classmethod
    def cancel(cls, study_dir: Path, marked: Sequence[ObservedRun]) -> dict[Path, str]:
        """Cancel the arrays of runs that were marked as cancelled. One that has other live runs is kept.

        Return the folder of each run whose job could not be cancelled, and why. A job that is not this user's goes on
        until it sees the mark.
        """
        jobs = {run_id: job.array for run_id, job in read_jobs(study_dir).items()}
        scheduler = registry.scheduler(cls.name)
        wanted = {one.run.id: jobs[one.run.id] for one in marked if one.run.id in jobs}
        live = {job for run_id, job in jobs.items() if not RunDirectory(study_dir / run_id).has_ended()}
        canaries = (
            [] if live else [job.array for job, _ in open_jobs(study_dir / CANARY_FOLDER).values() if job is not None]
        )
        try:
            scheduler.cancel(scheduler.live({*set(wanted.values()) - live, *canaries}))
        except BackendError as error:
            line = f"marked as cancelled, but its job runs until it sees the mark: {error}"
            return {study_dir / run_id: line for run_id in wanted}
        return {}
