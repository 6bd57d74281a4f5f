"""A study's folder, ``runs/<study>/``: its runs and their states, its launcher, its queue and its jobs."""

import contextlib
import functools
import os
import re
import socket
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.manifests.filters import RESULTS, Origin, facts_of
from jobs.manifests.load import load_manifest
from jobs.manifests.policy import Policy
from jobs.registry import SCHEDULERS
from jobs.spec import RunSpec
from jobs.study.budget import Budget
from jobs.study.record import KeptManifests
from jobs.study.scheduler import Claim, Views
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.errors import FileError, SeqlmError, UnfitFileError, UsageError
from seqlm.files import remove
from seqlm.lease import claim, kept, live_owner
from seqlm.model_files import read_model_files
from seqlm.reading import confine, exists, finite, is_file, is_folder, listed, one_look, status, timestamp
from seqlm.records.attempts import LauncherProcess, Start
from seqlm.records.batch import Batch, Submitted, Withdrawn
from seqlm.records.requests import RequestFile
from seqlm.records.runs import Provenance
from seqlm.records.studies import QueueFile
from seqlm.requests import Request, Requests, file_request
from seqlm.rundir import (
    AUDITS_FOLDER,
    BEHAVIOUR_FOLDER,
    CANARY_FOLDER,
    UPGRADE_FOLDER,
    Observation,
    RunDirectory,
    require_format,
    study_record_file,
)
from seqlm.state import View

OLD_SECONDS = 3600.0
"""Age of a temporary file whose writer is not known to be gone, from which on it is."""
LAST = ("train_ppl", "val_ppl", "train_tokens_per_second")
"""Numbers of a run's last epoch that are shown while it trains."""


@dataclass(frozen=True, kw_only=True)
class ObservedRun:
    """One run of a study, as read from its folder."""

    name: str
    run: RunDirectory
    observation: Observation
    config: RunConfig | None
    """``None`` means that ``config.json`` is damaged. The observation's reason then says so."""
    provenance: Provenance
    origin: Origin | None = None
    """How it belongs to the study's plan. ``None``: unknown."""

    def facts(self) -> dict[str, Any]:
        """Return the facts on which filters can select this run."""
        config, resources = self.config, self.provenance.resources
        facts = facts_of(name=self.name, id=self.run.id, config=config, resources=resources)
        return {**facts, **self.observed()}

    def observed(self) -> dict[str, Any]:
        """Return the facts for filters that the folder of the run says: :data:`OBSERVED`."""
        seen, result = self.observation, None
        with contextlib.suppress(FileError):
            result = self.run.read_result() if seen.state == "done" else None
        found = {key: None if result is None else getattr(result, field) for key, field in RESULTS.items()}
        states = {"state": seen.state, "kind": seen.kind, "origin": self.origin}
        return {**states, "epochs_done": seen.epochs_done, **found, "val_ppl": seen.best_val_ppl}

    def epochs(self) -> Sequence[Mapping[str, Any]]:
        """Read the epochs that it has finished; empty if they cannot be read. Many runs have too many to keep."""
        with contextlib.suppress(FileError):
            return self.run.read_metrics()[0]
        return []

    @functools.cached_property
    def pace(self) -> tuple[float | None, Mapping[str, float]]:
        """The median time of its epochs in seconds, ``None`` if it has none, and the numbers of the last one."""
        epochs = self.epochs()
        durations = [found for epoch in epochs if (found := finite(epoch.get("epoch_seconds"))) is not None]
        last = epochs[-1] if epochs else {}
        numbers = {key: found for key in LAST if (found := finite(last.get(key))) is not None}
        return statistics.median(durations) if durations else None, numbers

    def values(self, metric: str) -> list[float]:
        """Return a metric of its epochs, without values that are no finite number."""
        return [value for epoch in self.epochs() if (value := finite(epoch.get(metric))) is not None]

    @property
    def epochs_total(self) -> int | None:
        """Number of epochs requested. ``None`` for a damaged configuration, a behaviour job and an audit."""
        if self.config is None or is_behaviour_study(self.run.path.parent) or is_audit(self.run.path.parent):
            return None
        return self.config.train.epochs

    def to_dict(self) -> dict[str, Any]:
        """Return the run's entry in ``status --json``. ``epoch`` is the last finished epoch, counted from 0."""
        seen, total = self.observation, self.epochs_total
        return {
            "name": self.name,
            "id": self.run.id,
            "state": seen.state,
            "kind": seen.kind,
            "epoch": seen.epoch,
            "epochs_done": None if total is None else seen.epochs_done,
            "epochs_total": total,
            "best_val_ppl": seen.best_val_ppl,
            "reason": seen.reason,
            "origin": self.origin,
        }

    def to_spec(self) -> RunSpec:
        """Return the run as a launcher needs it, from its folder alone.

        Raises:
            ModelError: the files of its model have changed.
        """
        assert self.config is not None, "damaged runs are not launched"
        recorded, data, model = self.provenance, self.config.data, self.config.model
        return RunSpec(
            name=self.name,
            config=self.config,
            resources=recorded.resources,
            order=recorded.order or 0,
            data_path=Path(recorded.data) if recorded.data else None,
            tokenizer=None if data.tokenizer_sha256 is None else self.run.tokenizer_source(data.tokenizer_sha256),
            command=recorded.command,
            entry=recorded.entry or "",
            first_seed=recorded.first_seed,
            model_files=(
                read_model_files(model, self.run.model_source(model)) if isinstance(model, CustomConfig) else None
            ),
        )


def find_study(argument: str, runs_dir: Path) -> Path:
    """Return the folder of a study that this version reads, given as for :func:`find_any_study`.

    Raises:
        UsageError: there is no such study, or it is of another format.
        FileError: the folder cannot be read.
    """
    found = find_any_study(argument, runs_dir)
    require_format(found)
    return found


def find_any_study(argument: str, runs_dir: Path) -> Path:
    """Return the folder of a study given by its folder, by its manifest, or by its name below ``runs_dir``.

    From then on, no link below it is followed (:func:`seqlm.reading.confine`).

    Raises:
        UsageError: there is no such study. The message lists the existing studies.
        FileError: the folder cannot be read.
    """
    path = Path(argument)
    folders = [folder for folder in (path, runs_dir / argument) if is_folder(folder)]
    for folder in folders:
        confine(folder)
        is_study = is_file(study_record_file(folder)) or exists(folder / UPGRADE_FOLDER)
        # A launcher that has just started makes these files in a moment.
        if is_study or RunDirectory.any_in(folder) or launcher_of(folder) is not None:
            return folder
    if is_file(path):
        folder = runs_dir / load_manifest(path).study
        confine(folder)
        if not is_folder(folder):
            raise UsageError(
                f"{path}: this study has not been launched yet (no folder {folder}); "
                f"`seqlm plan {path}` shows its runs, `seqlm run {path}` starts them"
            )
        return folder
    if folders:
        raise UsageError(f"{folders[0]}: expected a manifest (.toml) or a study's folder, found no runs in it")
    known = [folder.name for folder in study_folders(runs_dir)]
    there = f" (found: {', '.join(known)})" if known else f"; {runs_dir} has no study yet"
    raise UsageError(f"{argument}: expected a study's folder, a manifest, or a study in {runs_dir}{there}")


def study_folders(runs_dir: Path) -> list[Path]:
    """Return the folders below ``runs_dir`` that may be studies: all but hidden ones and reports.

    Raises:
        FileError: ``runs_dir`` cannot be listed.
    """
    return [path for path in listed(runs_dir, "[!.]*") if is_folder(path) and not is_file(path / "report.md")]


def is_behaviour_study(study_dir: Path) -> bool:
    """Return whether this is the folder of a study's behaviour jobs rather than of training runs."""
    folder = study_dir.absolute()
    return folder.name == BEHAVIOUR_FOLDER and RunDirectory.any_in(folder.parent)


def is_audit(study_dir: Path) -> bool:
    """Return whether this is the folder of an audit of a study."""
    return study_dir.absolute().parent.name == AUDITS_FOLDER


def study_name(study_dir: Path) -> str:
    """Return the name of a study: its folder's name, or ``<study>/behaviour`` for its behaviour jobs."""
    folder = study_dir.absolute()
    if is_audit(folder):
        return "/".join(folder.parts[-3:])
    is_below = is_behaviour_study(folder) or (folder.name == CANARY_FOLDER and exists(study_record_file(folder.parent)))
    return f"{folder.parent.name}/{folder.name}" if is_below else folder.name


@final
class Seen:
    """What a caller that polls a study keeps from one look to the next, so that it reads no run again that is over."""

    def __init__(self, study_dir: Path) -> None:
        """Nothing is read yet."""
        self.views = Views()
        self.budget = Budget(study_dir, Policy())
        self._study_dir = study_dir
        self._over: dict[str, tuple[Request | None, ObservedRun]] = {}
        """Run id -> its newest request when it was seen to be over, and what was seen."""

    def over(self, requests: Requests) -> dict[str, ObservedRun]:
        """Return, by id, the runs that are over: their folders are still there, and no later request names them."""
        there = {path.name for path in listed(self._study_dir)} if self._over else set()
        return {
            run_id: one
            for run_id, (request, one) in self._over.items()
            if run_id in there and requests.newest(run_id) is request
        }

    def note(self, one: ObservedRun, request: Request | None) -> None:
        """Remember a run if it is over. ``request``: its newest."""
        seen = one.observation
        # A final seed without an epoch is trained after all if its first seed goes on.
        is_over = seen.state == "done" or (seen.state == "stopped" and seen.epochs_done > 0)
        if is_over and one.config is not None:
            self._over[one.run.id] = (request, one)


@one_look()
def observe_study(
    study_dir: Path,
    views: Views | None = None,
    ids: Collection[str] | None = None,
    *,
    seen: Seen | None = None,
) -> list[ObservedRun]:
    """Return every run of the study with its state, in manifest order. A damaged run has the damage as its reason.

    The arguments are as in :class:`Observer`.
    """
    observer, plan = Observer(study_dir, views, ids, seen=seen), KeptManifests(study_dir)
    why_not_started = functools.cache(lambda: _failed_canary(study_dir))
    observed = []
    for run in RunDirectory.unordered_in(study_dir, observer.over):
        if ids is None or run.id in ids:
            one = observer.over.get(run.id) or observer.look_at(run)
            found = one.observation
            if (found.state, found.reason) == ("pending", None):
                found = replace(found, reason=why_not_started())
            origin = plan.origin(run.id, one.config, one.provenance)
            if (found, origin) != (one.observation, one.origin):
                one = replace(one, observation=found, origin=origin)
            if seen is not None:
                seen.note(one, run.request())
            observed.append(one)
    return sorted(observed, key=lambda one: one.run.place(one.provenance))


def _failed_canary(study_dir: Path) -> str | None:
    """Return why runs were not started that wait for nothing else: a canary failed. ``None``: none has."""
    try:
        observer, runs = Observer(study_dir / CANARY_FOLDER), [*RunDirectory.unordered_in(study_dir / CANARY_FOLDER)]
    except UnfitFileError as error:  # a link
        return str(error)
    canaries = map(observer.look_at, runs)
    for one in canaries:
        is_told = one.observation.state == "cancelled" and one.run.is_cancelled()  # with all runs, by its user
        if one.observation.state in ("failed", "cancelled") and one.config is not None and not is_told:
            log = one.run.stderr_log(max(1, one.run.last_attempt()))
            why = f"canary {pair_of(one.config)} failed: {one.observation.reason}"
            return f"held back: {why}; run again after the fix (see {log})"
    return None


def pair_of(config: RunConfig) -> str:
    """Return architecture and optimizer, such as ``gru-adam``."""
    return f"{config.model.kind}-{config.optim.optimizer}"


@final
class Observer:
    """Observes runs of a study, with what its launcher, its jobs and its budget say at one moment."""

    def __init__(
        self,
        study_dir: Path,
        views: Views | None = None,
        ids: Collection[str] | None = None,
        *,
        seen: Seen | None = None,
    ) -> None:
        """Query schedulers about the jobs of these runs. ``ids`` ``None``: of all runs.

        Callers that look at several studies keep one ``views``, which asks schedulers less often. Callers that poll a
        study keep what they have ``seen``.
        """
        self._requests = Requests(study_dir)
        self.over: Mapping[str, ObservedRun] = {} if seen is None else seen.over(self._requests)
        """The runs that a caller has seen to be over, by id. They are not read again."""
        views = views or (Views() if seen is None else seen.views)
        jobs = open_jobs(study_dir, ids, self.over)
        states = views.of(job for job, _ in jobs.values() if job is not None)
        self.jobs: Mapping[str, View] = {
            run_id: View(reason=why) if job is None else states[job] for run_id, (job, why) in jobs.items()
        }
        """Run id -> its job, for the runs whose job matters."""
        self.launcher = launcher_of(study_dir)

        def is_spent() -> str | None:
            budget = Budget(study_dir, Policy()) if seen is None else seen.budget
            budget.renew()
            return budget.is_spent()

        self._is_spent = functools.cache(is_spent)  # read when it is first needed

    def observe(self, run: RunDirectory, config: RunConfig | None = None) -> Observation:
        """Return the state of a run. ``config``: its configuration, if the caller has read it.

        Raises:
            FileError: a file of it cannot be read, or is damaged.
        """
        view, launcher = self.jobs.get(run.id), self.launcher
        if view is None and launcher is not None and (run.id in launcher.waiting or launcher.serves(run)):
            view = View(stage="queued", reason=launcher.waiting.get(run.id, "its worker starts"))
        return RunDirectory(run.path, run.seen or self._requests).observe(view, self._is_spent, config)

    def look_at(self, run: RunDirectory) -> ObservedRun:
        """Return a run, as read from its folder. A damaged run has the damage as its reason, and its id as its name."""
        provenance = Provenance()
        config: RunConfig | None = None
        try:
            now = RunDirectory(run.path, run.seen or self._requests)
            provenance, config = now.read_provenance(), now.read_config()
            observation = self.observe(now, config)
        except SeqlmError as error:
            config = None
            observation = Observation.damaged(error)
        name = run.id if config is None else (provenance.name or run.id)
        run = RunDirectory(run.path)  # callers keep it, and file requests that it has to see
        return ObservedRun(name=name, run=run, observation=observation, config=config, provenance=provenance)


# -- launching -----------------------------------------------------------------------------------------------------


def launcher_dir(study_dir: Path) -> Path:
    """Return the folder of the leases of this study's launchers."""
    return study_dir / "launcher"


@contextlib.contextmanager
def launching(study_dir: Path) -> Iterator[None]:
    """Own the study while the block runs, so that two launchers never start the same run.

    Raises:
        RunBusyError: another launcher is running on this study.
    """
    busy = f"study {study_name(study_dir)} is already being launched; `status` shows it, `cancel` stops its runs"
    with kept(claim(launcher_dir(study_dir), busy=busy, tell=terminal.tell)):
        remove(listed(study_dir, ".*.json.*.tmp"))  # of dead launchers
        with contextlib.suppress(UnfitFileError):  # a link, in whose place nothing is kept
            remove(listed(study_dir / "code", ".*.tmp"))
        for folder in (study_dir, study_dir / CANARY_FOLDER):
            with contextlib.suppress(UnfitFileError):
                remove(_dead_files(folder / "launches"))
        yield


def _dead_files(launches: Path) -> Iterator[Path]:
    """Yield the temporary files next to requests whose writers are gone. The caller owns the study.

    Only owners write batches and scripts. Other commands and jobs write further files there, ``submitted.json`` among
    them: theirs are dead once they are old.
    """
    for folder in listed(launches, "[0-9]*"):
        for path in listed(folder, ".*.tmp"):
            is_owners = path.name.startswith(f".{Batch.FILE}.") or re.match(r"[.][^.]+[.]sh[.]", path.name) is not None
            with contextlib.suppress(FileNotFoundError):
                if is_owners or abs(time.time() - status(path).st_mtime) > OLD_SECONDS:
                    yield path


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A live launcher of a study."""

    identity: LauncherProcess
    waiting: Mapping[str, str]
    """Run id -> why the run has not started, for the runs in its queue."""
    has_listed: bool
    """Whether it has written its queue, which it does before it makes the folder of a run."""

    def serves(self, run: RunDirectory) -> bool:
        """Return whether it follows the attempt that owns a run, or its newest attempt if no worker owns it.

        Raises:
            FileError: the record of the attempt cannot be read.
        """
        attempt = run.working_attempt()
        start = Start.read(run.attempt_dir(attempt)) if attempt else None
        return start is not None and start.launcher == self.identity


def this_launcher() -> LauncherProcess:
    """Return this process as the records of a study name a launcher."""
    return LauncherProcess(pid=os.getpid(), host=socket.gethostname())


def launcher_of(study_dir: Path) -> Launcher | None:
    """Return the live launcher of this study, or ``None``."""
    if (owner := live_owner(launcher_dir(study_dir))) is None:
        return None
    identity = LauncherProcess(pid=owner.pid, host=owner.host)
    queue = QueueFile.read(study_dir) or QueueFile()
    has_listed = queue.launcher == identity
    return Launcher(identity=identity, waiting=queue.waiting if has_listed else {}, has_listed=has_listed)


def file_limit(study_dir: Path, max_parallel: int) -> None:
    """Ask the launcher of a study to run at most so many runs at once, until its end or another such request.

    Raises:
        FileError: the request cannot be written.
    """
    limit = RequestFile(kind="limit", at=timestamp(), launcher=this_launcher(), max_parallel=max_parallel)
    file_request(study_dir, limit)


def newest_limit(study_dir: Path, request: int) -> int | None:
    """Return the most runs at once that was asked for since a launch filed its ``request``. ``None``: nothing was.

    Raises:
        FileError: a request cannot be read.
    """
    for one in Requests(study_dir).newest_first():
        if one.number <= request:
            break
        if one.record.kind == "limit" and one.record.max_parallel is not None:
            return one.record.max_parallel
    return None


# -- records of launches: each written while its writer owns the study -------------------------------------------


def read_jobs(study_dir: Path) -> dict[str, Claim]:
    """Return the job of each run whose newest request went to a scheduler, by run id, as the files claim.

    It is a job, such as ``12_3``, for a run with which that job begins unless another one has taken it before. For all
    others it is an array, such as ``12``, whose jobs take them one after another.
    """
    return {run_id: job for run_id, (job, _) in _submitted(study_dir).items() if job is not None}


def open_jobs(
    study_dir: Path, ids: Collection[str] | None = None, over: Collection[str] = ()
) -> dict[str, tuple[Claim | None, str]]:
    """Return the jobs of these runs that have not ended, or ``None`` and why a run has none. ``ids`` ``None``: all.

    Runs that are known to be ``over`` are not read.
    """
    requests = Requests(study_dir)
    return {
        run_id: job
        for run_id, job in _submitted(study_dir).items()
        if (ids is None or run_id in ids)
        and run_id not in over
        and not RunDirectory(study_dir / run_id, requests).has_ended()
    }


def _submitted(study_dir: Path) -> dict[str, tuple[Claim | None, str]]:
    newest = Requests(study_dir).by_run()
    requests = {request.number: request for request in newest.values() if request.record.backend in SCHEDULERS}
    jobs = ((request, *found) for request in requests.values() for found in _jobs_of(request))
    return {run_id: (job, why) for request, run_id, job, why in jobs if newest.get(run_id) is request}


def _jobs_of(request: Request) -> Iterator[tuple[str, Claim | None, str]]:
    """Yield each run of a request, its job, and why it has none, if the request is submitted and not withdrawn."""
    if exists(request.folder / Withdrawn.FILE) or not exists(request.folder / Submitted.FILE):
        return
    batch = Batch.read(request.folder) or Batch()
    for array in batch.arrays:
        for place, run_id in enumerate(array.runs):
            if array.job is None:
                why = f"no more jobs of yours are taken now ({array.why}); the next `run` submits it"
                yield run_id, None, why
            else:
                is_first = place < array.jobs * (array.at_once or 1)
                job = f"{array.job}_{place % array.jobs}" if is_first else array.job
                yield run_id, Claim(job, request.folder, batch.scheduler), ""


def write_queue(study_dir: Path, waiting: Mapping[str, str], request: int | None = None) -> None:
    """Record for ``status`` which runs of a request wait, in queue order: run id -> why the run has not started."""
    QueueFile(launcher=this_launcher(), request=request, waiting=waiting).write(study_dir)
