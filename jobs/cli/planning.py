"""``plan`` and ``check-model``, and what commands that launch share: opening a manifest, and where runs go."""

import contextlib
import functools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from jobs import terminal
from jobs.backends.base import Backend, SharedTable
from jobs.cli.arguments import Arguments, PlanArguments, Where
from jobs.cli.parser import flag_of
from jobs.launch import notify
from jobs.launch.job import StudySettings
from jobs.launch.own_models import ask, check_models, is_bad
from jobs.launch.prepare import (
    changes,
    check_data,
    estimated,
    find_data,
    memory_warning,
    plan_runs,
    require_memory,
    resolve_resources,
    resolve_specs,
    to_do,
    without_followers,
)
from jobs.manifests.filters import OBSERVED, asks_for_identity, asks_for_results, facts_of_spec, select
from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.reader import find_manifest, read_toml_file
from jobs.plan.capacity import with_noun
from jobs.plan.estimate import earlier_throughput
from jobs.plan.planned import Action, PlannedRun
from jobs.plan.queue import Totals, totals
from jobs.plan.record import kept_tables
from jobs.plan.search import Expectation, expectation, keys_within
from jobs.registry import BACKENDS, backend_class, default_backend
from jobs.spec import RunSpec
from jobs.study.budget import UNITS, Budget, hours_of, total
from jobs.study.folder import ObservedRun, find_study, is_behaviour_study, observe_study
from jobs.study.record import KeptManifests
from jobs.terminal import FINDINGS, Column, Result, show
from seqlm import machine
from seqlm.architectures import CLASS_SEPARATOR, CustomConfig
from seqlm.data.corpus import corpus_facts
from seqlm.environment import BACKEND, DEVICE, RUNS
from seqlm.errors import (
    BackendError,
    ConfigError,
    ManifestError,
    ModelError,
    SeqlmError,
    UsageError,
    printable,
)
from seqlm.model_files import read_model_files
from seqlm.reading import confine, exists, is_file, is_folder
from seqlm.records.studies import LastLaunch
from seqlm.requests import Requests
from seqlm.rundir import RunDirectory, study_record_file
from seqlm.schema import read
from seqlm.search import Search

VOCAB_SIZE, SEQ_LEN = 10_000, 35
"""For the sizes: those of the Penn Treebank, and the default window."""

_ArgumentsT = TypeVar("_ArgumentsT", bound=PlanArguments)

HERE = "local"
"""The backend that works on every machine."""

# -- where runs go -------------------------------------------------------------------------------------------------


def choose(
    arguments: Where,
    manifest: Manifest | None = None,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Backend:
    """Return the backend of a launch, with its settings: flags override those of the manifest and the environment.

    Without a manifest, ``last`` is the backend of the study's last launch, and ``kept`` its ``[backend.*]`` tables.

    Raises:
        UsageError: ``SEQLM_BACKEND`` names no backend, ``SEQLM_DEVICE`` no device, or a flag belongs to another
            backend.
        BackendError: ``SEQLM_DEVICE`` is ``cuda`` and this machine, where runs are to go, has no GPU.
        ManifestError: a table or the site file is wrong.
    """
    name, why, is_asked_for = _which(arguments, manifest, last, kept or {})
    kind: type[Backend] = backend_class(name)
    table = (manifest.backend if manifest else kept or {}).get(name, {})
    where = str(manifest.path) if manifest else "study.json"
    # The names of the keys alone: values of env and setup may be secrets, and a launcher's output goes to a log.
    terminal.detail(f"backend: {name}; set in {where}: {', '.join(table) or 'nothing'}")
    backend = kind(replace(kind.read(table, where=where), **_settings_of(arguments, name)))
    if backend.is_here and (device := DEVICE.read()) is not None:
        if device == "cuda" and not machine.gpus():
            raise BackendError(f"{DEVICE.name}=cuda: this machine has no GPU that this process may use")
        backend = kind(replace(backend.settings, env={DEVICE.name: device, **backend.settings.env}))
    backend.why = why
    if backend.is_here and name != HERE and not is_asked_for:
        backend.stand_in = backend_class(HERE)(SharedTable(leave_gpus=backend.settings.leave_gpus))
    return backend


def _which(
    arguments: Where,
    manifest: Manifest | None,
    last: str | None,
    kept: Mapping[str, Mapping[str, Any]],
) -> tuple[str, str, bool]:
    """Return the name of the backend of a launch, why it is that, and whether it was asked for at this launch."""
    variable = BACKEND.read(is_valid=lambda name: name in (*BACKENDS, None), expected=", ".join(BACKENDS))
    if arguments.backend is not None:
        return arguments.backend, "as --backend says", True
    if variable is not None:
        return variable, f"as {BACKEND.name} says", True
    if manifest is not None and manifest.backend_name is not None:
        return manifest.backend_name, "as the manifest says", False
    if manifest is None and last in BACKENDS:
        return last, "as in the last launch", False
    table = (manifest.backend if manifest else kept).get("ray", {})
    address = arguments.ray_address or backend_class("ray").read(table, where="").address
    name, why = default_backend(address)
    return name, f"since {why}", False


def _settings_of(arguments: Where, backend: str) -> dict[str, Any]:
    """Return the settings of a backend that flags give."""
    found = {}
    for field in fields(arguments):
        value, (owner, _, key) = getattr(arguments, field.name), field.metadata.get("sets", "").rpartition(".")
        if key and value is not None:
            if owner not in ("", backend):
                raise UsageError(
                    f"{flag_of(field)}: the backend is {backend}; add --backend {owner}, or leave the {key} out"
                )
            found[key] = value
    return found


def choose_again(study_dir: Path, runs: Sequence[ObservedRun], arguments: Where) -> Backend:
    """Return where runs of a study go again: to their last backend if it was the same for all, with its settings."""
    newest = Requests(study_dir).by_run()
    names = {newest[one.run.id].record.backend if one.run.id in newest else None for one in runs}
    last = names.pop() if len(names) == 1 else None
    return choose(arguments, last=last, kept=KeptManifests(study_dir, terminal.tell).backends)


# -- plan -------------------------------------------------------------------------------------------------------------


def _memory(record: Mapping[str, Any]) -> str:
    """Return the peak memory as measured, or of the tensors alone as estimated, which a process on a CPU exceeds."""
    if (measured := record["measured_memory_bytes"]) is not None:
        return terminal.memory(measured)
    return "-" if record["memory_bytes"] is None else f"{terminal.memory(record['memory_bytes'])} of tensors"


def _ranks(record: Mapping[str, Any]) -> int | None:
    ranks: int = record["resources"]["ranks"]
    return ranks if ranks > 1 else None


COLUMNS = (
    Column("run", "name"),
    Column("id", spare=4),
    Column("action", lambda one: f"extend {one['reason']}" if one["action"] == "extend" else one["action"]),
    Column("ranks", _ranks, lambda ranks: str(ranks or 1), right=True, optional=True),
    Column("parameters", text=terminal.short_number, right=True, spare=2),
    Column("FLOPs/token", "flops_per_token", terminal.short_number, right=True, spare=3),
    Column("memory", _memory, right=True),
    Column("time", "seconds", terminal.duration, right=True),
    Column("", lambda one: None if one["action"] == "extend" else one["reason"], folded=True),
)


@dataclass(frozen=True, kw_only=True)
class PlanResult(Result):
    """What ``run`` would do to each run, and the costs."""

    manifest: Manifest
    study_dir: Path
    backend: Backend
    planned: Sequence[PlannedRun]
    """All runs, each with an estimate."""
    refused: SeqlmError | None
    """Why ``run`` would refuse this. ``None``: it would not."""
    changed: Sequence[str]
    """What has changed since runs of the study began, a line each."""
    costs: Totals
    """Of all runs in full."""
    expected: Expectation | None
    """What a search is expected to stop. ``None``: it is no search."""
    expected_costs: Totals
    """With what a search is expected to stop."""
    limits: tuple[str, dict[str, Any]] | None
    """A line about the study's budget, and its entry of the document. ``None``: it has no limits."""
    scripts: Sequence[str]
    """What would be submitted to a scheduler."""

    @property
    def exit_code(self) -> int:
        """That of ``run``, if it would refuse this."""
        return 0 if self.refused is None else self.refused.exit_code

    @property
    def todo(self) -> list[PlannedRun]:
        """The runs that start or resume."""
        return to_do(self.planned)

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        """The entry of each run in the document."""
        return [_record(item) for item in self.planned]

    def document(self) -> dict[str, Any]:
        search, expected = self.manifest.search, None
        if self.expected is not None:
            expected = {
                "rungs": self.expected.to_dict(),
                "gpu_hours": self.expected_costs.gpu_hours,
                "wall_seconds": self.expected_costs.wall_seconds,
            }
        totals = {"backend": self.backend.name, "max_parallel": self.backend.settings.max_parallel}
        document = {
            "study": self.manifest.study,
            "runs": self.records,
            "search": None if search is None else search.to_dict(),
            "expected": expected,
            "totals": {**totals, **asdict(self.costs)},
            "budget": None if self.limits is None else self.limits[1],
            "refused": None if self.refused is None else str(self.refused),
            "changes": self.changed,
        }
        return {**document, "scripts": self.scripts} if self.scripts else document

    def render(self) -> None:
        manifest, todo = self.manifest, self.todo
        show(COLUMNS, self.records)
        for line in [*(f"warning: {line}" for line in self.changed), *manifest.advice]:
            terminal.tell(line)
        counts = Counter(item.action for item in self.planned)
        actions = ", ".join(f"{counts[action]} {action}" for action in get_args(Action) if counts[action])
        number, where = with_noun(len(self.planned), "run"), printable(str(self.study_dir))
        terminal.say("", f"{manifest.study}: {number} ({actions}) in {where}")
        if manifest.excluded:
            terminal.say(f"excluded by the manifest: {', '.join(run['name'] for run in manifest.excluded)}")
        for one in manifest.decides:
            what = f"one more seed of both after another until it is clear, at most {one.seeds}"
            terminal.say(f'decide: "{one.a}" against "{one.b}": {what}')
        if manifest.search is not None and self.expected is not None:
            terminal.say(search_line(manifest.search, manifest, self.expected))
        terminal.say(self._costs_line())
        if self.limits is not None:
            terminal.say(self.limits[0])
        if self.refused is None and (beyond := memory_warning(todo, self.backend)) is not None:
            terminal.tell(f"warning: {beyond}")
        if summary := self.backend.summary(todo):
            terminal.say(summary)
        if any(item.spec.resources.gpus and item.spec.config.train.precision == "fp32" for item in todo):
            advice = 'train.precision = "tf32" does, and makes another run'
            terminal.say(f"fp32 products use no tensor cores of a GPU; {advice}")
        for script in self.scripts:
            terminal.say("", "would submit:", *script.split("\n"))
        if self.refused is not None:
            terminal.tell(f"error: run would refuse this: {self.refused}")

    def _costs_line(self) -> str:
        """Return a line about the time, the GPU hours and the disk that the runs need."""
        costs = self.costs
        disk = f"disk {terminal.memory(costs.disk_bytes)} for checkpoints"
        if not self.todo:
            return f"nothing to start; {disk}"
        if costs.gpu_hours is None:
            what = "GPU hours and time are" if any(item.spec.resources.gpus for item in self.todo) else "the time is"
            return f"{disk}; {what} not known: {costs.unknown}"
        hours, wall = f"{costs.gpu_hours:.3g}", terminal.duration(costs.wall_seconds)
        if self.expected is not None:
            hours = f"about {self.expected_costs.gpu_hours:.3g}, at most {hours}"
            wall = f"about {terminal.duration(self.expected_costs.wall_seconds)}, at most {wall}"
        gpus = f"; {hours} GPU hours" if costs.gpu_hours else ""
        return f"{wall} on {self.backend.where()}{gpus}; {disk}"


def plan(arguments: PlanArguments) -> PlanResult:
    """Return what ``run`` would do to each run, and the costs."""
    arguments, manifest, specs, study_dir = open_manifest(arguments)
    backend = choose(arguments, manifest)
    limit, policy = backend.settings.max_parallel, manifest.policy
    facts = functools.cache(corpus_facts)
    planned = [
        replace(item, facts=facts(item.spec.config.data, item.spec.data_path, item.spec.tokenizer))
        for item in plan_runs(specs, study_dir)
    ]
    planned = without_followers(planned) if backend.is_scheduled else planned
    check_models(planned)
    planned = resolve_resources(planned, backend, limit)
    planned = estimated(planned, earlier_throughput(arguments.runs_dir), policy=policy)
    refused: SeqlmError | None = None
    try:
        notify.require(manifest.notify)
        check_data(planned)  # plan knows the size of a corpus that run has to read
        if not arguments.oversized:
            require_memory(planned, backend)
    except (UsageError, BackendError) as error:
        refused = error
    costs = expected_costs = totals(planned, backend.capacity, max_parallel=limit)
    expected = None if manifest.search is None else expectation(manifest.search, planned)
    if expected is not None:
        expected_costs = totals(expected.shortened(planned), backend.capacity, max_parallel=limit)
    todo, budget, scripts = to_do(planned), Budget(study_dir, policy), list[str]()
    if todo and not budget.is_spent():
        scripts = backend.scripts(todo, StudySettings(path=study_dir, policy=policy))
    return PlanResult(
        manifest=manifest,
        study_dir=study_dir,
        backend=backend,
        planned=planned,
        refused=refused,
        changed=changes(planned, study_dir),
        costs=costs,
        expected=expected,
        expected_costs=expected_costs,
        limits=budget_of(todo, budget, expected),
        scripts=scripts,
    )


def budget_of(
    todo: Sequence[PlannedRun], budget: Budget, expected: Expectation | None
) -> tuple[str, dict[str, Any]] | None:
    """Return what ``plan`` says of the study's budget, and its entry of ``--json``. ``None``: it has no limits.

    What the runs to do need is ``None`` if it is not known. The entry counts the runs that a search will stop in full.
    """
    data = budget.to_dict()
    if data is None:
        return None
    known = [hours_of(item.spec.resources, item.seconds) for item in todo if item.seconds is not None]
    needs = total(known) if len(known) == len(todo) else {}
    amounts = {key: f"at most about {needs[key]:.3g} {UNITS[key]}" for key in data if key in needs}
    if expected is not None and amounts:
        items = expected.shortened(todo)
        likely = total(hours_of(item.spec.resources, item.seconds or 0.0) for item in items)
        amounts = {key: f"about {likely[key]:.3g}, {amount}" for key, amount in amounts.items()}
    known_needs = f"the rest needs {' and '.join(amounts.values())}"
    what = known_needs if amounts else "it is not known what the rest needs"
    return f"{budget.line()}; {what}", {key: {**found, "needs": needs.get(key)} for key, found in data.items()}


def search_line(search: Search, manifest: Manifest, expected: Expectation) -> str:
    """Return one line about a search: its rungs, what it compares, and how many runs are expected to go on."""
    rungs = ", ".join(map(str, search.rungs))
    keys = keys_within(search, (spec.config.by_key() for spec in manifest.runs))
    among = f" among runs of equal {', '.join(keys)}" if keys else ""
    rule = f"search: {search.keep:.3g} of the runs go on after epochs {rungs} by {search.metric}{among}"
    if not any(expected.reach.values()):
        return rule
    likely = (
        f"{expected.go_on[rung]:.0f} of {number:.0f} after epoch {rung}"
        for rung, number in expected.reach.items()
        if number
    )
    return f"{rule}; expected: {', '.join(likely)}"


def _record(item: PlannedRun) -> dict[str, Any]:
    assert item.estimate is not None, "plan estimates every run"
    measures = ("parameters", "flops_per_token", "memory_bytes", "measured_memory_bytes", "seconds")
    return {
        "name": item.spec.name,
        "id": item.run.id,
        "fingerprint": item.spec.fingerprint,
        "directory": str(item.run.path),
        "action": item.action,
        "reason": item.reason,
        "epochs_done": item.observation.epochs_done,
        "config": item.spec.config.to_dict(),
        "resources": item.spec.resources.to_dict(),
        **{key: getattr(item.estimate, key) for key in measures},
    }


# -- opening a manifest, or a study with the manifest of its last launch --------------------------------------------


def launch_of(arguments: PlanArguments, manifest: Manifest) -> LastLaunch:
    """Return what ``study.json`` keeps of a launch, so that ``run STUDY`` can repeat it (:func:`_as_launched`)."""
    flags = {field.name: value for field in fields(Where) if (value := getattr(arguments, field.name)) is not None}
    if arguments.data is not None:
        flags["data"] = str(arguments.data.absolute())
    return LastLaunch(tables=kept_tables(manifest.tables), changes=arguments.changes, flags=flags)


def _as_launched(arguments: _ArgumentsT, study_dir: Path) -> tuple[_ArgumentsT, Manifest]:
    """Return the manifest of a study's last launch, and the arguments with what those of that launch have besides.

    Another backend takes none of the flags about the last one.

    Raises:
        UsageError: the study keeps no manifest, or this user has not launched it.
        ManifestError: as :func:`jobs.manifests.load.load_manifest`.
    """
    kept = KeptManifests(study_dir, terminal.tell, only=("manifest", "folder", "launched"))
    launched, path = kept.file.launched, kept.manifest
    if launched is None:
        raise UsageError(f"{study_dir}: its last launch kept no manifest; run the manifest itself: {path}")
    if why := kept.distrusted("launched"):
        raise UsageError(f"{why}; read it, then run the manifest itself")
    flags = {
        name: value
        for name, value in launched.flags.items()
        if getattr(arguments, name) is None and (arguments.backend is None or name == "data")
    }
    now = {_key_of(text): text for text in arguments.changes}
    before = {key: text for text in launched.changes if (key := _key_of(text)) not in now}
    repeated = [f"--set {text}" for text in before.values()]
    repeated += [f"{flag_of(field)} {flags[field.name]}" for field in fields(Where) if field.name in flags]
    if repeated:
        terminal.tell(f"as in the last launch: {' '.join(repeated)}")
    changes = {**before, **now}
    manifest = load_manifest(path, list(changes.values()), tables=launched.tables)
    if manifest.study != study_dir.name and "study.name" not in now:  # its folder was renamed
        changes["study.name"] = f"study.name={study_dir.name}"
        manifest = load_manifest(path, list(changes.values()), tables=launched.tables)
    with contextlib.suppress(ManifestError):  # there is no such file any more
        if kept_tables(read_toml_file(path)) != launched.tables:
            terminal.tell(f"note: {path} has changed since the last launch; run it to launch what it says now")
    if "data" in flags:
        flags["data"] = Path(flags["data"])
    return replace(arguments, runs_dir=study_dir.parent, changes=tuple(changes.values()), **flags), manifest


def _key_of(change: str) -> str:
    return change.partition("=")[0].strip()


def _opened(arguments: _ArgumentsT) -> tuple[_ArgumentsT, Manifest]:
    """Return the manifest that is named, or that of the study that is named, and the arguments (:func:`_as_launched`).

    Raises:
        UsageError: it is the name of a folder that is no study, or as :func:`_as_launched`.
        ManifestError: as :func:`jobs.manifests.load.load_manifest`.
    """
    path = find_manifest(arguments.manifest)
    is_study = is_folder(path) or (not exists(path) and is_folder(arguments.runs_dir / arguments.manifest))
    if not is_study:
        return arguments, load_manifest(path, arguments.changes)
    study_dir = find_study(arguments.manifest, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        raise UsageError(f"{study_dir} holds behaviour jobs; expected a manifest, or a study that was launched")
    return _as_launched(arguments, study_dir if study_dir.name else study_dir.absolute())


def open_manifest(arguments: _ArgumentsT) -> tuple[_ArgumentsT, Manifest, list[RunSpec], Path]:
    """Open a manifest, or a study with the manifest of its last launch.

    Return the arguments with what the last launch adds, the manifest, its runs that pass the filters with the identity
    of their text, and the study's folder.
    """
    arguments, manifest = _opened(arguments)
    data = find_data(arguments.data, manifest.data_path)
    study_dir = arguments.runs_dir / manifest.study
    confine(study_dir)
    known: Sequence[RunSpec] = manifest.runs
    folders: Mapping[str, Path] = {}
    filters = [*arguments.only, *arguments.exclude]
    if asks_for_identity(filters) or asks_for_results(filters):
        known, folders = resolve_specs(known, data), RunDirectory.folders(study_dir)
    beside = manifest.path.parent / RUNS.default / manifest.study
    if not exists(study_dir) and is_file(study_record_file(beside)):
        what = f"{beside} has runs of this study, {study_dir} has none; to use them add --runs-dir {beside.parent}"
        terminal.tell(f"note: {what}")
    observed: dict[str, dict[str, Any]] = {}
    unseen: dict[str, Any] = {}
    if asks_for_results(filters):
        observed = {one.run.id: one.observed() for one in observe_study(study_dir)}
        unseen = {**dict.fromkeys(OBSERVED), "state": "pending", "origin": "planned", "epochs_done": 0}

    def facts(spec: RunSpec) -> dict[str, Any]:
        of_manifest = facts_of_spec(spec, folders)
        return {**of_manifest, **observed.get(of_manifest["id"], unseen)}

    chosen, why = select(known, arguments.only, arguments.exclude, facts, study_dir)
    if why is not None:
        raise UsageError(f"{arguments.manifest}: {why}")
    if arguments.data and all(spec.config.data.corpus == "pydoc" for spec in chosen):
        raise UsageError(
            '--data: these runs read corpus "pydoc", which has no files; set data.corpus to "ptb" or "files"'
        )
    return arguments, manifest, resolve_specs(chosen, data), study_dir


# -- check-model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckResult(Result):
    """What the checks of a user's own model have found."""

    HIDDEN = frozenset({"verbose"})

    findings: Sequence[Mapping[str, Any]]
    sizes: Mapping[str, Any] | None
    """``None``: the model could not be built."""
    traceback: str | None
    verbose: bool

    @property
    def exit_code(self) -> int:
        """The model breaks the contract."""
        return ModelError.exit_code if any(map(is_bad, self.findings)) else 0

    def render(self) -> None:
        show(FINDINGS, self.findings)
        if self.sizes is not None:
            flops = f"{terminal.short_number(self.sizes['flops_per_token'])}FLOP per token"
            words = f"{self.sizes['parameters']:,} parameters, {flops}"
            terminal.say("", f"with {VOCAB_SIZE:,} words and windows of {SEQ_LEN}: {words}")
        if self.traceback:
            terminal.detail(self.traceback)
            if not self.verbose:
                terminal.tell("-v prints the traceback")


def check_model(arguments: Arguments) -> CheckResult:
    """Check a user's own model."""
    file, _, name = arguments.source.rpartition(CLASS_SEPARATOR)
    path = Path(file)
    source = f"{path.name}{CLASS_SEPARATOR}{name}" if file else arguments.source
    raw = {
        **{"arch": next(iter(CustomConfig.LABELS)), "source": source},
        **{"arguments": _table(arguments.arguments), "files": list(arguments.files)},
    }
    try:
        config = read(CustomConfig, raw)
    except ConfigError as error:
        raise UsageError("; ".join(error.problems)) from None
    files = read_model_files(config, path.parent)
    (answer,) = ask([(config, files, VOCAB_SIZE, SEQ_LEN)])
    return CheckResult(**answer, verbose=arguments.verbose)


def _table(text: str | None) -> dict[str, Any]:
    """Return the arguments typed after ``--arguments``: ``hidden_size = 64, keep = 0.5``, with or without braces."""
    if text is None:
        return {}
    inner = text.strip().removeprefix("{").removesuffix("}")
    try:
        found: dict[str, Any] = tomllib.loads(f"arguments = {{ {inner} }}")["arguments"]
    except tomllib.TOMLDecodeError:
        raise UsageError(f"--arguments: expected NAME = VALUE, ..., such as 'hidden_size = 64', got {text}") from None
    return found
