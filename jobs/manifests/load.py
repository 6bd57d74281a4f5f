"""Load a study's manifest, the file that lists its runs.

Each problem is one line, and all lines are raised together. ``docs/reference/manifest.md`` is the reference for users.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from jobs.manifests.claims import Published, check_notes, expectations, runs_named
from jobs.manifests.decide import Decide, further_seeds, in_turn, seeded
from jobs.manifests.draws import Real, is_distribution
from jobs.manifests.entries import ManifestFile
from jobs.manifests.expand import (
    Entry,
    Values,
    applying,
    expand,
    has_several,
    link_of,
    nested_tables,
    number_of_runs,
    run_name,
    text_of,
)
from jobs.manifests.filters import NO_SINGLE_RUN, arguments_in, meets
from jobs.manifests.policy import Notify, Policy
from jobs.manifests.reader import key_of, read_toml_file
from jobs.spec import RunSpec
from seqlm.architectures import CustomConfig
from seqlm.config import LARGEST_SEED, RunConfig, valid_keys
from seqlm.errors import ConfigError, FileError, ManifestError, ModelError, UsageError, nearest_key
from seqlm.model_files import ModelFiles, read_model_files
from seqlm.records.studies import MAX_RUNS
from seqlm.resources import Resources
from seqlm.schema import Arguments, read, show
from seqlm.search import Search, group_sizes, never_stops

_Run: TypeAlias = tuple[Entry, Values]
"""One run as written: its entry, and the value of each key of the entry."""
_Resolved: TypeAlias = tuple[Entry, Values, RunSpec]
_Models: TypeAlias = Callable[[CustomConfig], ModelFiles]
"""Returns the files of a user's own model."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest, expanded to single runs."""

    study: str
    """Name of the study, and of its folder."""
    path: Path
    """The manifest's file."""
    tables: Mapping[str, Any]
    """Its content as written."""
    data_path: Path | None
    """Absolute path of the corpus (``[study] data``). ``None``: the manifest gives no path."""
    backend_name: str | None
    """Name of the backend (``[study] backend``). ``None``: the manifest names no backend."""
    backend: Mapping[str, Mapping[str, Any]]
    """Backend name -> its table, as written."""
    policy: Policy
    """What is done about failures (``[policy]`` and ``--set policy.KEY``)."""
    notify: Notify | None
    """Who gets messages (``[notify]``). ``None``: nobody."""
    search: Search | None
    """When the runs are compared and stopped (``[search]`` and ``--set search.KEY``). ``None``: no run is stopped."""
    decides: tuple[Decide, ...]
    """Settings that are compared, with one more seed of both after another (``[[decide]]``)."""
    runs: tuple[RunSpec, ...]
    excluded: tuple[Mapping[str, Any], ...]
    """Name, architecture and optimizer of each run that an ``[[exclude]]`` dropped, as far as they are texts."""
    written: tuple[RunSpec, ...]
    """The runs as the file has them, before ``--set``, in the order of ``runs``. A run that is incomplete without
    ``--set`` is as in ``runs``."""
    published: Mapping[str, Published]
    """Name of a run, as in ``written`` -> its published results."""
    expectations: tuple[Mapping[str, Any], ...]
    """The keys of each ``[[expect]]``, with names as in ``written`` in place of conditions."""
    behaviour: tuple[str, ...]
    """Names, as in ``written``, of the runs whose trained models the report examines."""
    groups: Mapping[str, tuple[str, ...]]
    """Title of a group of the report -> names of its runs, as in ``written``."""
    notes: Mapping[str, str]
    """Part of the report -> text for it, in Markdown, with references to results (:mod:`seqlm.references`)."""
    samples: tuple[Mapping[str, Any], ...]
    """Each ``[[sample]]`` as written: ``name``, ``seeds``, ``values`` by dotted key, its constraints ``only`` if it has
    any; and ``defaults`` of the file."""
    advice: tuple[str, ...]
    """Notes and warnings, each one line: the manifest is right, and may not say what was meant."""


def load_manifest(path: Path, overrides: Sequence[str] = (), *, tables: Mapping[str, Any] | None = None) -> Manifest:
    """Read and check a manifest; ``overrides`` are the texts of ``--set``, such as ``train.epochs=2``.

    ``tables`` are those that the file had when it was launched. ``None``: those that it has now.

    Raises:
        ManifestError: with one line for each problem of the file and of the overrides.
    """
    tables = read_toml_file(path) if tables is None else tables
    file = ManifestFile(tables, path, overrides)
    problems = file.problems
    counts = [number_of_runs(entry) for entry in file.entries]
    runs: list[_Run] = []
    if sum(counts) <= MAX_RUNS:
        runs = [(entry, own) for entry in file.entries for own in expand(entry)]
    else:
        largest = file.entries[counts.index(max(counts))]
        what = f"makes {max(counts):,} of {sum(counts):,} runs, expected at most {MAX_RUNS:,} in a study"
        problems.add(f"{file.name}: {largest.label}", what)
    kept, excluded = _exclude(runs, file)
    models = functools.cache(lambda config: read_model_files(config, file.folder))
    resolved = _resolve_all(kept, file, models)
    specs = [spec for _, _, spec in resolved]
    as_written = [_as_written(run, file, models) for run in resolved]
    written = [found or spec for found, spec in zip(as_written, specs, strict=True)]
    if file.search:
        _check_seeds(file.search, specs, file)
        specs, written = (with_final_seeds(found, file.search) for found in (specs, written))
        _check_names(specs, file)
    if file.decides:
        further = further_seeds(specs, file.decides, file.name, problems)
        specs, written = (
            [*found, *(seeded(found[place], seed, order) for order, (place, seed) in enumerate(further, len(found)))]
            for found in (specs, written)
        )
        specs = specs if problems.lines else in_turn(specs, file.decides.values())
    unmatched = len(problems.unmatched)
    expected = expectations(file.claims, written, file.name, problems)
    names, dropped = [spec.name for spec in written], [run["name"] for run in excluded]
    behaviour = runs_named(f"{file.name}: report.behaviour", file.report.behaviour, names, dropped, problems)
    groups = {
        title: runs_named(f"{file.name}: report.groups.{show(title)}", patterns, names, dropped, problems)
        for title, patterns in file.report.groups.items()
    }
    notes = {str(part): text for part, text in file.report.notes.items()}
    check_notes(notes, written, file.name, problems)
    if None in as_written:  # a run that is incomplete without --set may be the one that a condition is about
        del problems.unmatched[unmatched:]
    if file.search:
        _check_rungs(file.search, zip(written, specs, strict=True), file)
    if not problems.lines and not specs:
        reason = "every run is excluded" if excluded else "no runs; add a [[run]], [[grid]], [[zip]] or [[sample]]"
        problems.add(file.name, reason)
    if problems.lines or file.study is None or file.policy is None:
        raise ManifestError(problems.lines)
    data = file.study.data
    return Manifest(
        study=file.study.name,
        path=path,
        tables=tables,
        data_path=(file.folder / Path(data).expanduser()).resolve() if data else None,
        backend_name=file.study.backend,
        backend=file.backend,
        policy=file.policy,
        notify=file.notify,
        search=file.search,
        decides=tuple(file.decides.values()),
        runs=tuple(replace(spec, entry=plan.name) for spec, plan in zip(specs, written, strict=True)),
        excluded=tuple(excluded),
        written=tuple(written),
        published={
            spec.name: entry.published
            for (entry, _, _), spec in zip(resolved, as_written, strict=True)
            if spec is not None and entry.published is not None
        },
        expectations=tuple(expected),
        behaviour=behaviour,
        groups=groups,
        notes=notes,
        samples=tuple({**sample, "defaults": file.defaults} for sample in file.samples),
        advice=(*_shared_points(file.entries), *_no_stops(file.search, written)),
    )


# -- runs ------------------------------------------------------------------------------------------------------------


def _exclude(runs: list[_Run], file: ManifestFile) -> tuple[list[_Run], list[dict[str, Any]]]:
    """Return the runs to keep, and of those that an ``[[exclude]]`` drops what :attr:`Manifest.excluded` has.

    Conditions apply to the manifest as written, before ``--set``, so a shorter trial drops the same runs.
    """
    facts = [_facts(run, file) for run in runs] if file.excludes else []
    own, hits = arguments_in(facts), set[int]()
    for number, cut in file.excludes.items():
        where = f"{file.name}: exclude {number}"
        try:
            found = {place for place, known in enumerate(facts) if meets(known, cut, own)}
            is_missed = bool(facts) and not found
            reasons = [why for condition in cut if (why := condition.why_none(facts, own))] if is_missed else []
        except UsageError as error:
            file.problems.add(where, str(error))
            continue
        if not found:
            file.problems.add_unmatched(where, f"matches no run; {reasons[0] if reasons else NO_SINGLE_RUN}")
        hits |= found
    dropped = [
        {
            "name": known["name"],
            "arch": text_of(known.get("model.source")) or text_of(known.get("model.arch")),
            "optimizer": text_of(known.get("optim.optimizer")),
        }
        for place, known in enumerate(facts)
        if place in hits
    ]
    return [run for place, run in enumerate(runs) if place not in hits], dropped


def _facts(run: _Run, file: ManifestFile) -> dict[str, Any]:
    """Return what an ``[[exclude]]`` compares: the values of a run as written, with defaults if they are valid."""
    values = _merge(file, run[1])
    known = {"seed": None, **values, "name": run_name(run[0], values)}
    with contextlib.suppress(ConfigError):
        known |= RunConfig.from_dict(nested_tables(values)[0]).by_key()
    return known


def _merge(file: ManifestFile, own: Values, setting: Values | None = None) -> dict[str, Any]:
    """Return the values of a run: defaults < entry < ``--set``. Without ``setting``, as written in the manifest."""
    return applying({**file.defaults, **file.resources, **own, **(setting or {})}, own, setting or {})


def _resolve_all(runs: Sequence[_Run], file: ManifestFile, models: _Models) -> list[_Resolved]:
    problems = file.problems
    used: set[str] = set()
    refused: set[tuple[str, str]] = set()
    resolved: list[_Resolved] = []
    for entry, own in runs:
        values = _merge(file, own, file.setting)
        used |= values.keys() & file.setting.keys()
        try:
            spec = _resolve(entry, values, len(resolved), file, models)
        except ConfigError as error:
            for line in error.problems:
                key = key_of(line)
                if entry.lists.get(key) == [] or (entry.position, key) in refused or _is_meant(key, entry, file):
                    continue  # its list is empty or its name is wrong, which is reported; or another draw was wrong
                refused |= {(entry.position, key)} if entry.kind == "sample" else set()
                if entry.kind == "run" and has_several(key, own.get(key)):
                    line += "; lists multiply in [[grid]] and advance together in [[zip]]"
                elif is_distribution(values.get(key)):
                    line += "; a distribution belongs in [[sample]]"
                elif (target := link_of(values.get(key))) is not None:
                    line += f"; this run has no {target} of its own or in [defaults]"
                elif str(values.get(key)).startswith("="):
                    wrong = str(values[key]).removeprefix("=").strip()
                    line += f"; a link names a key of a run{nearest_key(wrong, valid_keys())}"
                elif isinstance(entry.space.get(key), Real) and "whole" in line:
                    line += "; int = [LOW, HIGH] draws whole numbers"
                problems.add(_place(key, entry, own, file), line)
        else:
            if not problems.about(f"{file.name}: {entry.label}"):
                resolved.append((entry, own, spec))
    for key in file.setting:
        if runs and key not in used:
            problems.add(file.options[key], f"{key} applies to no run of {file.name}")
    _check_distinct(resolved, file)
    return resolved


def _resolve(entry: Entry, values: Values, order: int, file: ManifestFile, models: _Models) -> RunSpec:
    """Return the run with these values, with its tokenizer file and the digest of its model's files if it has any.

    Raises:
        ConfigError: one line for each problem of its configuration, its resources and its model's files.
    """
    config, resources = nested_tables(values)
    parts: dict[str, Any] = {}
    problems: list[str] = []
    readers: dict[str, Callable[[], Any]] = {
        "config": lambda: RunConfig.from_dict(config),
        "resources": lambda: read(Resources, resources),
    }
    for name, make in readers.items():
        try:
            parts[name] = make()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    spec = RunSpec(name=run_name(entry, values), order=order, **parts)
    columns, ranks = spec.config.train.batch_size, spec.resources.ranks
    if ranks > columns:
        most = f"at most train.batch_size = {columns}, a column for each rank"
        raise ConfigError([f"resources.ranks: expected {most}, got {ranks}"])
    if (tokenizer := spec.config.data.tokenizer) is not None:
        spec = replace(spec, tokenizer=(file.folder / Path(tokenizer).expanduser()).resolve())
    model = spec.config.model
    if isinstance(model, CustomConfig):
        try:
            files = models(replace(model, arguments=Arguments()))  # many runs, few files
        except ModelError as error:
            raise ConfigError([str(error)]) from None
        except FileError as error:
            raise ConfigError([f"model.source: {error}"]) from None
        config_with_digest = replace(spec.config, model=replace(model, sha256=files.sha256))
        spec = replace(spec, config=config_with_digest, model_files=files)
    return spec


def _place(key: str, entry: Entry, own: Values, file: ManifestFile) -> str:
    """Return where the value of a key comes from, to name it in messages."""
    if key in file.setting:
        return file.options[key]
    if key not in own and key in file.resources:
        return file.name
    if key not in own and key in file.defaults:
        return f"{file.name}: defaults"
    return f"{file.name}: {entry.label}"


def _is_meant(key: str, entry: Entry, file: ManifestFile) -> bool:
    """Whether a line about an unknown key of this entry, or of the defaults, suggests ``key``."""
    places = tuple(f"{file.name}: {where}: unknown key" for where in (entry.label, "defaults"))
    return any(line.startswith(places) and f'did you mean "{key}"' in line for line in file.problems.lines)


def _as_written(run: _Resolved, file: ManifestFile, models: _Models) -> RunSpec | None:
    """Return a run before ``--set``; ``None`` if it is incomplete without."""
    entry, own, spec = run
    if not file.setting:
        return spec
    with contextlib.suppress(ConfigError):
        return _resolve(entry, _merge(file, own), spec.order, file, models)
    return None


def _check_rungs(search: Search, runs: Iterable[tuple[RunSpec, RunSpec]], file: ManifestFile) -> None:
    """Add a line if a rung is not below the epochs of a run. ``runs`` are pairs: as written, and after ``--set``.

    A trial with fewer epochs by ``--set`` is no mistake: it ends before it comes to the rung.
    """
    last = search.rungs[-1]
    for pair in runs:
        epochs = max(spec.config.train.epochs for spec in pair)
        if last >= epochs:
            what = f"expected epochs below train.epochs of every run, got {last}; {pair[1].name} has {epochs}"
            file.problems.add(file.name, f"search.rungs: {what}")
            return


def _shared_points(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield a line for each ``[[sample]]`` that draws from the same points as an earlier one."""
    firsts: dict[tuple[int, int], Entry] = {}
    for entry in entries:
        if entry.kind != "sample" or not entry.space:
            continue
        first = firsts.setdefault((entry.sample_seed, len(entry.space)), entry)
        if first is not entry:
            what = f"draw from the same points (seed {entry.sample_seed}, {len(entry.space)} keys each)"
            yield f"note: {first.label} and {entry.label} {what}, so their draws go together; give one another seed"


def _no_stops(search: Search | None, specs: Iterable[RunSpec]) -> Iterator[str]:
    """Yield a line if no run can be stopped for its place at a rung."""
    configs = [spec.config for spec in specs if spec.first_seed is None]
    if search is not None and never_stops(search, configs):
        largest = max(group_sizes(search, configs).values(), default=0)
        which = f"min_runs = {search.min_runs} and keep = {search.keep:g}, and at most {largest} runs are compared"
        yield f"warning: [search] stops no run for its place at a rung: {which}; lower them, or shorten search.within"


def _check_seeds(search: Search, specs: Sequence[RunSpec], file: ManifestFile) -> None:
    """Add a line if a setting has several seeds, or if there are too many runs with the final seeds."""
    firsts: dict[RunConfig, RunSpec] = {}
    for spec in specs:
        first = firsts.setdefault(replace(spec.config, seed=0).with_epochs(1), spec)
        if first.config.seed != spec.config.seed:
            what = f'expected one seed of each setting in a search, got {first.config.seed} ("{first.name}") and '
            what += f'{spec.config.seed} ("{spec.name}"), which would take places from other settings; leave one, and '
            what += "set search.final_seeds = 2 for a second seed of the settings that reach the end"
            file.problems.add(file.name, f"search: {what}")
            break
    if (number := len(specs) * search.final_seeds) > MAX_RUNS:
        what = f"makes {number:,} runs of {len(specs):,}, expected at most {MAX_RUNS:,} in a study"
        file.problems.add(file.name, f"search.final_seeds: {what}")


def with_final_seeds(specs: Sequence[RunSpec], search: Search) -> list[RunSpec]:
    """Return the runs of a search and behind them, for each, those of its further seeds: the next whole numbers."""
    found = list(specs)
    for spec in specs if len(specs) * search.final_seeds <= MAX_RUNS else ():
        for number in range(1, search.final_seeds):
            seed = (spec.config.seed + number) % (LARGEST_SEED + 1)
            config = replace(spec.config, seed=seed)
            name = f"{spec.name}-seed{seed}"
            found.append(replace(spec, name=name, config=config, order=len(found), first_seed=spec.config.seed))
    return found


def _check_names(specs: Sequence[RunSpec], file: ManifestFile) -> None:
    """Add a line if a run of the manifest has the name of a final seed."""
    names = {spec.name for spec in specs if spec.first_seed is None}
    for spec in specs:
        if spec.first_seed is not None and spec.name in names:
            what = f'a final seed of another run is called "{spec.name}" as well; give the run another name'
            file.problems.add(file.name, f"search.final_seeds: {what}")
            return


def _check_distinct(resolved: Iterable[_Resolved], file: ManifestFile) -> None:
    """Report configurations and names that occur twice: the first such pair of each two entries."""
    firsts: dict[str, _Resolved] = {}
    reported: set[tuple[str, ...]] = set()

    def describe(run: _Resolved) -> str:
        """Return the entry of a run and its name in the manifest, before ``--set``."""
        return f'{run[0].position} ("{run_name(run[0], _merge(file, run[1]))}")'

    for run in resolved:
        entry, own, spec = run
        twin, namesake = (firsts.setdefault(key, run) for key in (f"={spec.fingerprint}", spec.name))
        first = namesake if twin is run else twin
        if first is run or (pair := (str(twin is run), first[0].position, entry.position)) in reported:
            continue
        reported.add(pair)
        epochs, others = spec.config.train.epochs, first[2].config.train.epochs
        if twin is run:
            what = f'{first[0].position} and {entry.position} both make a run called "{spec.name}"'
            what += "; give them different names" if entry.name else "; add a name to either"
        elif epochs != others:
            what = f"{describe(run)} and {describe(first)} differ in train.epochs alone ({epochs} and "
            what += f"{others}), which makes them one run; keep the one with more epochs: its metrics hold the others"
        else:
            what = f"{describe(run)} is the same configuration as {describe(first)}"
            what += "; one of its lists has a value twice" if describe(run) == describe(first) else ""
            options = [file.options[key] for key in file.setting if own.get(key) != first[1].get(key)]
            what += f"; they differ only in what {' '.join(options)} sets" if options else ""
        file.problems.add(file.name, what)
