"""One launch of a study: find its data, plan its runs, keep the code and their files, request them, dispatch."""

import contextlib
import difflib
import functools
import getpass
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs import terminal
from jobs.backends.base import Backend, Room
from jobs.launch import canary
from jobs.launch.job import Order, StudySettings
from jobs.launch.own_models import check_models
from jobs.manifests.decide import compared_in
from jobs.manifests.policy import Policy
from jobs.plan.capacity import with_noun
from jobs.plan.estimate import Throughput, earlier_throughput, estimate, memory_bytes, weights_bytes
from jobs.plan.own_models import model_sizes
from jobs.plan.planned import PlannedRun, plan
from jobs.plan.record import write_record
from jobs.spec import RunSpec
from jobs.study import launched
from jobs.study.budget import Budget
from jobs.study.folder import (
    Observer,
    is_behaviour_study,
    launcher_dir,
    launching,
    study_name,
    this_launcher,
    write_queue,
)
from jobs.study.kept_code import Code, keep_code, live_code
from jobs.study.launched import TASK_SETTINGS
from jobs.study.record import COMMANDING, commanding
from jobs.study.stopping import Stopping
from seqlm.architectures import CustomConfig
from seqlm.comparisons import file_declared, is_open_again
from seqlm.config import RunConfig
from seqlm.data.corpus import CorpusFacts, cached_facts, load_corpus, resolve_data
from seqlm.data.layout import require_windows
from seqlm.environment import DATA
from seqlm.errors import BackendError, DamagedFileError, DataError, FileError, ModelError, UnfitFileError, UsageError
from seqlm.files import make_directory
from seqlm.lease import last_beat, stale_seconds
from seqlm.model_files import ModelFiles, keep_tokenizer, read_model_files
from seqlm.reading import exists, listed, timestamp
from seqlm.records.attempts import Exit, Start
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.records.runs import CodePlace, GitState, Provenance
from seqlm.records.studies import TaskFile
from seqlm.requests import Request, file_request
from seqlm.rounding import threads_of_checkpoint
from seqlm.rundir import FINGERPRINT_DIGITS, SAME_DIGITS, Observation, RunDirectory, require_format
from seqlm.trust import distrusted, of_run, table_digest

STALE_MARGIN_SECONDS = 10.0
"""How much longer than the term of a lease to wait for workers whose launcher is gone: clocks of hosts differ."""
LEAST_MEMORY = 2**30
"""Bytes that every machine and every GPU has for a rank."""


def find_data(flag: Path | None, manifest: Path | None) -> Path | None:
    """Return the path of the corpus: the flag, else ``SEQLM_DATA``, else the manifest's. ``None``: the default path."""
    return flag or DATA.read() or manifest


def resolve_specs(specs: Sequence[RunSpec], data_path: Path | None) -> list[RunSpec]:
    """Return the runs with the path and the digest of their corpus filled in, and the digest of their tokenizer.

    Raises:
        DataError: the text of a ``files`` corpus or a tokenizer file is missing, its digest differs from the
            configuration's, or two runs differ in nothing but the name of a tokenizer file.
        UsageError: two runs would have the same folder.
    """
    resolve = functools.cache(resolve_data)
    found: list[RunSpec] = []
    names: dict[str, str] = {}
    firsts: dict[str, RunSpec] = {}
    for spec in specs:
        data = resolve(spec.config.data, data_path, spec.tokenizer)
        spec = replace(spec, config=replace(spec.config, data=data), data_path=data_path)
        if data.tokenizer and (other := names.setdefault(spec.fingerprint, spec.name)) != spec.name:
            raise DataError(
                f"data.tokenizer: {other} and {spec.name} are the same run, since their tokenizer files are equal"
            )
        first = firsts.setdefault(spec.fingerprint[:FINGERPRINT_DIGITS], spec)
        if first.fingerprint != spec.fingerprint:
            raise UsageError(f"{spec.name}: there is another run, {first.name}, {SAME_DIGITS}")
        found.append(spec)
    return found


def plan_runs(
    specs: Sequence[RunSpec],
    study_dir: Path,
    *,
    retry: bool = False,
    tasks: Mapping[str, TaskFile] | None = None,
) -> list[PlannedRun]:
    """Return what a launch would do with each run. Reads the folders, writes nothing.

    ``retry`` and ``tasks`` are as in :class:`Order`.

    Raises:
        UsageError: the study is of another version, or a run would get the folder of another.
        FileError: a file cannot be read, or a record of the study is damaged. A run with a damaged file is skipped.
    """
    require_format(study_dir)
    observer, tasks = Observer(study_dir), tasks or {}
    if observer.launcher is not None and observer.launcher.identity == this_launcher():
        # This process owns the study and has started nothing yet. A queue under its name is that of an earlier launch,
        # by the same process or, in a container, by another one with the same number.
        observer.launcher = None
    # The folder of a task has the name of its run's folder, which may be older than the name of the run.
    of_tasks = {run_id.rpartition("-")[2]: study_dir / run_id for run_id in tasks}
    folders = {**RunDirectory.folders(study_dir), **of_tasks}

    def planned(spec: RunSpec) -> PlannedRun:
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint, folders)
        is_task = run.id in tasks
        try:
            seen = observer.observe(run)
            if is_task and seen.state in ("done", "failed", "cancelled"):
                seen = replace(seen, state="pending", reason=None, kind=None)
            is_known = run.is_known()
            before = (run.read_config_of(spec.fingerprint) if is_known and not is_task else spec.config).train.epochs
            has_checkpoint = is_known and run.has_checkpoint()
            item = plan(
                spec,
                run,
                seen,
                has_checkpoint=has_checkpoint,
                retry=retry,
                before=before,
                is_open=seen.state == "stopped" and is_open_again(run, before, spec.config.train.epochs),
            )
            reason = run.cannot_go_on(before) if is_known and item.action == "start" else None
            return item if reason is None else replace(item, action="skip", reason=reason)
        except UsageError as error:
            raise UsageError(f"{spec.name}: {error}") from None
        except (DamagedFileError, UnfitFileError) as error:
            damaged = Observation.damaged(error)
            return PlannedRun(spec=spec, run=run, observation=damaged, action="skip", reason=damaged.reason)

    items = [planned(spec) for spec in specs]
    of_launch = {item.spec.fingerprint: item for item in items}

    def follows(item: PlannedRun) -> PlannedRun:
        """Return a final seed with the run that it follows. It is skipped if nothing will train that to its end."""
        fingerprint = item.spec.first_fingerprint()
        if fingerprint is None or item.action == "skip":
            return item
        first = of_launch.get(fingerprint)
        run = first.run if first else RunDirectory.locate(study_dir, item.spec.name, fingerprint, folders)
        what = f"final seed of {first.spec.name if first else run.id}"
        if first is not None and first.action != "skip":
            return replace(item, after=run, reason=f"{what}, once that is done")
        try:
            seen = first.observation if first else observer.observe(run)
        except (DamagedFileError, UnfitFileError) as error:
            seen = Observation.damaged(error)
        if seen.state == "done":
            return replace(item, after=run, reason="; ".join(filter(None, [item.reason, what])))
        return replace(item, action="skip", reason=f"{what}, which is {seen.state}")

    return [follows(item) for item in items]


def without_followers(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs as a scheduler gets them: a final seed whose first seed is not done is left to a later launch."""
    starting = {item.run.id for item in planned if item.action != "skip"}
    return [
        replace(item, action="skip", after=None, reason=f"{item.reason}: the next `run` after that submits it")
        if item.after is not None and item.after.id in starting
        else item
        for item in planned
    ]


def check_data(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Read and tokenise every corpus before anything starts, so that errors show at once and workers find it cached.

    Returns the runs with the facts of their corpora. Those that are skipped stay as they are.

    Raises:
        DataError: a corpus is missing, damaged, or too small for a run's batch and window.
    """
    facts_of = functools.cache(lambda *corpus: load_corpus(*corpus).facts)  # not the text itself
    checked = []
    for item in planned:
        if item.action != "skip":
            spec = item.spec
            facts = facts_of(spec.config.data, spec.data_path, spec.tokenizer)
            for split, tokens in facts.tokens.items():
                try:
                    require_windows(split, tokens, *spec.config.least_text(split))
                except DataError as error:
                    raise DataError(f"{item.spec.name}: {error}") from None
            item = replace(item, facts=facts)
        checked.append(item)
    return checked


def resolve_resources(planned: Sequence[PlannedRun], target: Backend, max_parallel: int | None) -> list[PlannedRun]:
    """Return the runs with the resources that they get on ``target``. Those that are skipped stay as they are.

    A run that goes on without a GPU and without ``resources.cpus`` keeps the threads of its checkpoint, if ``target``
    has as many cores for it.

    Raises:
        BackendError: a run can never fit there, or its precision does not exist there.
        FileError: a record of an attempt cannot be read.
    """
    number = sum(item.action != "skip" for item in planned)
    at_most = min(number, max_parallel or number)

    def resolved(item: PlannedRun) -> PlannedRun:
        spec = item.spec
        resources = target.resolve(spec, at_most)
        is_free = spec.resources.cpus is None and not resources.gpus
        if is_free and item.action != "start" and (threads := threads_of_checkpoint(item.run)):
            with contextlib.suppress(BackendError):  # fewer cores: the worker's log says so
                resources = target.resolve(replace(spec, resources=replace(spec.resources, cpus=threads)), at_most)
        return replace(item, spec=replace(spec, resources=resources))

    return [item if item.action == "skip" else resolved(item) for item in planned]


def require_memory(planned: Sequence[PlannedRun], target: Backend) -> None:
    """Refuse runs that never fit in the memory of ``target``, as far as that is known.

    The parameters of such a run, their gradients and the optimizer alone need more than a rank can have.

    Raises:
        BackendError: there is such a run.
    """
    if (line := _beyond_memory(planned, target, _least_memory)) is not None:
        raise BackendError(
            f"never fits: {line}; smaller batches would not help, a smaller model would; --force starts it anyway"
        )


def memory_warning(planned: Sequence[PlannedRun], target: Backend) -> str | None:
    """Return a line about runs that need more memory than ``target`` has for a rank. ``None``: there are none."""
    return _beyond_memory(planned, target, _likely_memory)


def _least_memory(item: PlannedRun, facts: CorpusFacts) -> int | None:
    return weights_bytes(item.spec.config, facts.vocab_size)


def _likely_memory(item: PlannedRun, facts: CorpusFacts) -> int | None:
    return memory_bytes(item.spec.config, facts.vocab_size, item.spec.resources.ranks)


def _beyond_memory(
    planned: Sequence[PlannedRun], target: Backend, needed: Callable[[PlannedRun, CorpusFacts], int | None]
) -> str | None:
    """Return a line about the run that needs most, if that is more than there is. ``None``: all fit.

    ``needed`` returns the bytes of each rank of a run, ``None`` if they are not known.
    """
    beyond: list[tuple[int, RunSpec, Room]] = []
    for item in to_do(planned):
        need = None if item.facts is None else needed(item, item.facts)
        if need is None or need <= LEAST_MEMORY:
            continue  # nothing is asked: to ask for the memory of a GPU may take seconds
        room = target.room(item.spec.resources)
        if room is not None and need > room.bytes:
            beyond.append((need, item.spec, room))
    if not beyond:
        return None
    need, spec, room = max(beyond, key=lambda found: found[0])
    for_each = f" for each of {spec.resources.ranks} ranks" if spec.resources.ranks > 1 else ""
    others = f" ({with_noun(len(beyond) - 1, 'further run')} also more than there is)" if len(beyond) > 1 else ""
    has = f"{room.where} has {terminal.memory(room.bytes)}"
    return f"{spec.name} needs more than {terminal.memory(need)} of memory{for_each}, {has}{others}"


def estimated(
    planned: Sequence[PlannedRun],
    throughput: Throughput,
    *,
    policy: Policy = Policy(),  # noqa: B008 -- immutable
) -> list[PlannedRun]:
    """Return the runs with estimates of what is left of them. Those whose corpus has not been read stay as they are.

    ``policy`` is that of the study.
    """

    def made(item: PlannedRun, facts: CorpusFacts) -> PlannedRun:
        config, ranks = item.spec.config, item.spec.resources.ranks
        return replace(item, estimate=estimate(config, facts, throughput, ranks, item.epochs_done, policy))

    return [item if item.facts is None else made(item, item.facts) for item in planned]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A launch that is prepared: its study is owned, everything is checked, and its request is filed."""

    study: StudySettings
    order: Order
    planned: Sequence[PlannedRun]
    """All runs, with resolved resources, facts and estimates if they are to do."""
    code: Code
    """What the workers run."""
    request: Request
    spent: str | None
    """Why nothing starts: the budget of the study is spent. ``None``: it is not."""

    @property
    def todo(self) -> list[PlannedRun]:
        """The runs that start or resume."""
        return to_do(self.planned)

    @property
    def has_canaries(self) -> bool:
        """Whether canaries go first."""
        return self.spent is None and canary.wanted(self.order.canary, self.todo)


def to_do(planned: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return the runs that start or resume."""
    return [item for item in planned if item.action != "skip"]


@contextlib.contextmanager
def preparing(study: StudySettings, order: Order, place: Backend) -> Iterator[tuple[list[PlannedRun], Work | None]]:
    """Own the study while the block runs. Plan and check everything before a file of a run is written.

    Yields all runs, and what is to be carried out. ``None``: nothing is to be done.

    Raises:
        RunBusyError: another launcher is running on this study.
        BackendError, DataError, FileError, ModelError: nothing has been started.
        UsageError: without a manifest, the study keeps a model that this user has not launched.
    """
    if order.record is None:
        require_trusted(order.specs)
    unchecked: list[PlannedRun] | None = None
    planned: list[PlannedRun] = []
    if not exists(study.path):  # a launch that is refused leaves no folder of a new study
        unchecked = _planned(study, order, place)
        planned = _checked(unchecked, study, order, place)
    with launching(study.path):
        place.tidy(study.path)
        is_empty = listed(study.path) == [launcher_dir(study.path)]
        now = unchecked if unchecked is not None and is_empty else _planned(study, order, place)
        if orphans := orphaned(now):
            Stopping(orphans).wait(stale_seconds() + STALE_MARGIN_SECONDS, "whose launcher is gone to end")
            now = _planned(study, order, place)
        if now != unchecked:
            planned = _checked(now, study, order, place)
        _warn(planned, study, order, place)
        if to_do(planned):
            planned = estimated(planned, earlier_throughput(study.path.parent))
        _record_launch(study, order)
        if order.record is not None:
            write_record(study.path, order.record, to_do(planned), terminal.tell)
            _rename_finished(planned)
        if order.record is not None and order.decides is not None:
            ids = {item.spec.fingerprint: item.run.id for item in planned}
            specs = [item.spec for item in planned]
            declared = [compared_in(decide, specs, ids) for decide in order.decides]
            file_declared(study.path, order.record.manifest, declared)
        yield planned, _work(planned, study, order, place) if to_do(planned) else None


def orphaned(planned: Iterable[PlannedRun]) -> list[RunDirectory]:
    """Return the runs that a launcher of this study has started and that seem to run, although no launcher lives.

    The caller has the study's lease. Such a worker ends together with its launcher. If it was killed on another node,
    its lease seems alive for some minutes more; a launch that left the run alone would end without training it.
    """
    running = [item.run for item in planned if item.observation.state == "running"]
    starts = {run.path: Start.read(run.attempt_dir(run.working_attempt())) or Start() for run in running}
    me = this_launcher()
    return [run for run in running if (start := starts[run.path]).launcher not in (None, me) and start.job_id is None]


def _planned(study: StudySettings, order: Order, place: Backend) -> list[PlannedRun]:
    """Return what the launch would do with each run, as its study is now."""
    planned = plan_runs(order.specs, study.path, retry=order.retry, tasks=order.tasks)
    return without_followers(planned) if place.is_scheduled else planned


def _checked(planned: Sequence[PlannedRun], study: StudySettings, order: Order, place: Backend) -> list[PlannedRun]:
    """Return the runs with the facts of their corpora and their resources, if they can all be carried out."""
    checked = resolve_resources(check_data(planned), place, place.settings.max_parallel)
    check_models(checked)
    if not order.tasks and not order.oversized:  # jobs that do not train need less
        require_memory(checked, place)
    return checked


def _warn(planned: Sequence[PlannedRun], study: StudySettings, order: Order, place: Backend) -> None:
    """Print what does not stop a launch: that memory may not suffice, and what has changed since runs began."""
    line = None if order.tasks else memory_warning(planned, place)
    for warning in [*filter(None, [line]), *changes(planned, study.path)]:
        terminal.tell(f"warning: {warning}")


def require_trusted(specs: Iterable[RunSpec]) -> None:
    """Check that this user has launched the models that a study keeps for these runs and their panels.

    Raises:
        UsageError: a model of one.
    """
    if why := distrusted(things_of(specs)):
        raise UsageError(f"{why}; read what the study keeps, then add --trust")


def things_of(specs: Iterable[RunSpec], *, whole: bool = False) -> dict[str, str]:
    """Return what of runs and their panels has to be launched before it is run: digest -> words.

    That is their models of the user's own; with ``whole``, all of them.
    """
    found: dict[str, str] = {}
    for spec in specs:
        for config in spec.configs():
            found |= of_run(config, spec.name, whole=whole)
    return found


def _home(study: StudySettings) -> Path:
    """Return the folder with the code of a study and with what its user launched. Behaviour jobs have their study's."""
    return study.path.parent if is_behaviour_study(study.path) else study.path


def _record_launch(study: StudySettings, order: Order) -> None:
    """Record for this user what is launched: runs, panels, settings of behaviour, and tables with commands."""
    digests = {fingerprint for spec in order.specs for fingerprint in spec.may_run()}
    digests |= {table_digest(TASK_SETTINGS, task.settings) for task in order.tasks.values()}
    if order.record is not None:
        digests |= {table_digest(name, commanding(order.record, name)) for name in COMMANDING}
    launched.record(_home(study), digests, terminal.tell)


def _rename_finished(planned: Iterable[PlannedRun]) -> None:
    """Give runs that are done, and do not train again, the name and the place that their entry has now.

    A study on a disk that takes no more files keeps the names that it has.
    """
    for item in planned:
        if item.action == "skip" and item.observation.state == "done":
            with contextlib.suppress(FileError):
                before, now = item.run.read_provenance(), run_record(item.spec)
                if before.name != now.name:
                    replace(before, name=now.name, entry=now.entry, order=now.order).write(item.run.path)


def _work(planned: Sequence[PlannedRun], study: StudySettings, order: Order, place: Backend) -> Work:
    """Keep the code and the files of the user that the runs to do need, and file the request for them."""
    todo = to_do(planned)
    for item in todo:
        item.run.sweep()
        with contextlib.suppress(FileError):  # its hours then count as those of an interrupted attempt
            record_what_scheduler_knows(item)
    keep_files([item.spec for item in todo], study.path)
    code = live_code() if order.live_code else keep_code(_home(study), tell=terminal.tell)
    requested = {spec.fingerprint: spec for spec in order.specs}
    folders, wanted = {}, {}
    for item in todo:
        spec, run_id = requested[item.spec.fingerprint], item.run.id
        task = order.tasks.get(run_id)
        provenance = run_record(spec, _label(item))
        folders[run_id] = Folder(config=item.spec.config.to_dict(), provenance=provenance, task=task)
        wanted[run_id] = Wanted(
            epochs=item.spec.config.train.epochs if task is None else None,
            from_attempt=item.run.last_attempt() + 1,
            after=None if item.after is None else item.after.id,
        )
    record = RequestFile(
        kind="run",
        at=timestamp(),
        launcher=this_launcher(),
        backend=place.name,
        policy=study.policy.to_dict(),
        runs=wanted,
    )
    common = launch_record(study_name(study.path), code)
    request = file_request(study.path, record, Folders(provenance=common, runs=folders))
    first = "waits for the canaries" if canary.wanted(order.canary, todo) else "about to start"
    write_queue(study.path, {item.run.id: first for item in todo}, request.number)
    spent = Budget(study.path, study.policy).is_spent()
    return Work(study=study, order=order, planned=planned, code=code, request=request, spent=spent)


def launch_record(study: str, code: Code) -> Provenance:
    """Return what ``provenance.json`` of all runs of a launch says: launcher and code."""
    user = None
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    return Provenance(
        study=study,
        launched_at=timestamp(),
        host=socket.gethostname(),
        user=user,
        git=GitState(commit=code.commit, dirty=code.dirty),
        code=CodePlace(path=str(code.path), live=code.live),
    )


def run_record(spec: RunSpec, label: str | None = None) -> Provenance:
    """Return what ``provenance.json`` says of one run. ``label``: what a report calls the user's own model."""
    return Provenance(
        name=spec.name,
        entry=spec.entry,
        order=spec.order,
        first_seed=spec.first_seed,
        command=tuple(spec.command),
        resources=spec.resources,
        data=str(spec.data_path.absolute()) if spec.data_path else None,
        label=label,
    )


def keep_files(specs: Sequence[RunSpec], study_dir: Path) -> None:
    """Keep the models and tokenizers of the user that runs need, each once: an edit changes nothing from now on.

    Raises:
        FileError: a file cannot be read or written.
        UsageError: a tokenizer file has another digest than the configuration.
        ModelError: another file was kept in the place of one.
    """
    run = RunDirectory(study_dir / "run")
    for sha256, source in {spec.config.data.tokenizer_sha256: spec.tokenizer for spec in specs}.items():
        if source is not None and sha256 is not None:
            kept = run.kept_dir(sha256) / run.tokenizer_file.name
            make_directory(kept.parent)
            keep_tokenizer(source, kept, sha256)
    for files in {files.sha256: files for spec in specs if (files := spec.model_files) is not None}.values():
        files.keep(run.kept_dir(files.sha256))


def record_what_scheduler_knows(item: PlannedRun) -> None:
    """Record how the last attempt of a run ended that was killed with its whole job, maybe days ago.

    It failed when its lease was last renewed.

    Raises:
        FileError: a file cannot be read or written.
    """
    run, seen, attempt = item.run, item.observation, item.run.last_attempt()
    if seen.state != "failed" or not attempt or run.end(attempt).has_ended:
        return
    beat = last_beat(run.lease_dir, attempt)
    parts = (Start.read(run.attempt_dir(attempt)) or Start()).micro_batches
    message = (seen.reason or "").removeprefix(f"{seen.kind}: ")
    ended_at = None if beat is None else timestamp(beat)
    run.write_exit(attempt, Exit(kind=seen.kind, message=message, micro_batches=parts, ended_at=ended_at))


def _label(item: PlannedRun) -> str | None:
    """Return what a report calls the user's own model, if it says so itself."""
    config = item.spec.config
    if item.facts is None or not isinstance(config.model, CustomConfig):
        return None
    sizes = model_sizes(config, item.facts.vocab_size)
    return None if sizes is None else sizes.label or None


def changes(planned: Sequence[PlannedRun], study_dir: Path) -> list[str]:
    """Return a line for each text, tokenizer and model of yours that runs to start have in another version."""
    starting = [item for item in planned if item.action == "start" and any(_digests(item.spec.config).values())]
    runs = list(RunDirectory.unordered_in(study_dir)) if starting else []
    by_rest = {_without_digests(item.spec.config): item for item in starting if runs}
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        with contextlib.suppress(FileError, ModelError):
            before = run.read_config()
            if (item := by_rest.get(_without_digests(before))) is not None:
                then = _digests(before)
                for name, now in _digests(item.spec.config).items():
                    if now != then[name]:
                        digests = f"sha256 {str(then[name])[:12]} -> {str(now)[:12]}"
                        found[name][", ".join([digests, *_sizes(before, run, item)])] += 1
    return [
        f"{name} has changed ({'; '.join(sorted(versions))}) since {with_noun(versions.total(), 'run')} of this study "
        "began; earlier runs keep what they began with, and new runs start with what is there now"
        for name, versions in sorted(found.items())
    ]


def _digests(config: RunConfig) -> Mapping[str, str | None]:
    own = {config.model.source: config.model.sha256} if isinstance(config.model, CustomConfig) else {}
    return {"the text": config.data.sha256, f"{config.data.tokenizer}": config.data.tokenizer_sha256, **own}


def _without_digests(config: RunConfig) -> RunConfig:
    model = replace(config.model, sha256=None) if isinstance(config.model, CustomConfig) else config.model
    return replace(config.with_epochs(1), data=replace(config.data, sha256=None, tokenizer_sha256=None), model=model)


def _sizes(before: RunConfig, run: RunDirectory, item: PlannedRun) -> Iterable[str]:
    """Return how many tokens each split has then and now, and how many lines of the user's own model differ."""
    then, now = cached_facts(before.data, before.data.sha256), item.facts
    if then and now:
        yield from (
            f"{split} {then.tokens[split]:,} -> {tokens:,} tokens"
            for split, tokens in now.tokens.items()
            if then.tokens[split] != tokens
        )
    files, model = item.spec.model_files, before.model
    if isinstance(model, CustomConfig) and files is not None and files.sha256 != model.sha256:
        old, new = (_lines(one) for one in (read_model_files(model, run.model_source(model)), files))
        marks = Counter(line[0] for line in difflib.ndiff(old, new))
        yield f"+{marks['+']} -{marks['-']} lines"


def _lines(files: ModelFiles) -> list[str]:
    return b"\n".join(content for _, content in sorted(files.contents.items())).decode(errors="replace").splitlines()


def edited_models(specs: Iterable[RunSpec], manifest: Path) -> list[str]:
    """Return the names of your own models of runs to retry whose files next to ``manifest`` have changed since."""
    models = dict.fromkeys(model for spec in specs if isinstance(model := spec.config.model, CustomConfig))
    edited = []
    for model in models:
        with contextlib.suppress(FileError, ModelError):  # the manifest was moved, or its files were
            if read_model_files(replace(model, sha256=None), manifest.parent).sha256 != model.sha256:
                edited.append(str(model.source))
    return list(dict.fromkeys(edited))  # models that differ in arguments alone have one name
