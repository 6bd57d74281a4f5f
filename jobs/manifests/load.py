"""Load a study's manifest, the file that lists its runs.

    load_manifest(path, overrides)
      read_manifest_file   text -> plain data                                     (jobs.manifests.reader)
      read_schema          plain data -> tables and entries, unknown keys         (jobs.manifests.entries)
      combinations         [[grid]], [[zip]], seeds -> one set of values a run    (jobs.manifests.expand)
      _exclude, _resolve   defaults < entry < --set, then RunConfig.from_dict     (here)
      _check_distinct      no name and no configuration twice                     (here)
      expectations         what the report is to check, and on which runs         (jobs.manifests.claims)

Each problem is one line, and all lines are raised together. ``docs/manifest.md`` is the reference for users.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.manifests.claims import Expectation, Published, absent, expectations
from jobs.manifests.entries import RESOURCE_KEYS, Override, Schema, read_overrides, read_schema
from jobs.manifests.expand import Combination, combinations, number_of_runs, run_name
from jobs.manifests.fields import Problems
from jobs.manifests.policy import Policy
from jobs.manifests.reader import MANIFEST_SUFFIXES, read_manifest_file, show
from jobs.spec import Resources, RunSpec
from seqlm.config import RunConfig, applicable_keys
from seqlm.errors import ConfigError, ManifestError, nearest
from seqlm.rundir import MAX_RUNS

__all__ = ["MANIFEST_SUFFIXES", "MAX_RUNS", "Manifest", "load_manifest"]


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A run that an ``[[exclude]]`` dropped. Its configuration may be invalid."""

    name: str
    arch: str | None
    optimizer: str | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest, expanded to single runs."""

    study: str
    """Name of the study, and of its folder."""
    path: Path
    """The manifest's file."""
    data_path: Path | None
    """Absolute path of the corpus (``[study] data``). ``None``: the manifest gives no path."""
    untracked: tuple[str, ...]
    """Files to keep with the code although git does not track them (``[study] untracked``)."""
    backend_name: str | None
    """Name of the backend (``[study] backend``). ``None``: the manifest names no backend."""
    backend: Mapping[str, Mapping[str, Any]]
    """Backend name -> its table, as written."""
    policy: Policy
    """What is done about failures (``[policy]`` and ``--set policy.KEY``)."""
    runs: tuple[RunSpec, ...]
    excluded: tuple[Excluded, ...]
    """The runs that an ``[[exclude]]`` dropped."""
    published: Mapping[str, Published]
    """Name of a run -> its published results. Runs whose configuration ``--set`` changes are left out."""
    expectations: tuple[Expectation, ...]
    """What the report is to check. Expectations that match no runs after ``--set`` are left out."""
    behaviour: tuple[str, ...]
    """Names of the runs whose trained models the report examines."""


def load_manifest(path: Path, overrides: Sequence[str] = ()) -> Manifest:
    """Read and check a manifest; ``overrides`` are the texts of ``--set``, such as ``train.epochs=2``.

    Raises:
        ManifestError: with one line for each problem of the file and of the overrides.
    """
    raw = read_manifest_file(path)
    problems = Problems()
    schema = read_schema(raw, path, problems)
    setting = read_overrides(overrides, problems)
    study = setting.pop("study.name", None)
    policy = {**schema.policy, **{key: setting.pop(key).value for key in list(setting) if key.startswith("policy.")}}
    runs = list(_expand(schema, problems))
    kept, excluded, unmatched = _exclude(runs, schema)
    resolved = _resolve_all(kept, setting, schema, problems)
    specs = [spec for _, spec in resolved]
    expected, unfounded = expectations(schema.claims, specs, path.name, problems)
    unfounded += absent(schema.behaviour, specs, [run.name for run in excluded], path.name)
    if not setting:  # --set may remove the runs that an expectation compares
        unmatched += unfounded
    if not problems.lines:  # another problem may be the reason that nothing matches
        for where, what in unmatched:
            problems.add(where, what)
    if not problems.lines and not specs:
        reason = "every run is excluded" if excluded else "no runs; add a [[run]], [[grid]] or [[zip]]"
        problems.add(path.name, reason)
    if problems.lines:
        raise ManifestError(problems.lines)
    names = {spec.name for spec in specs}
    return Manifest(
        study=study.value if study else schema.study,
        path=path,
        data_path=schema.data_path,
        untracked=schema.untracked,
        backend_name=schema.backend_name,
        backend=schema.backend,
        policy=Policy.from_dict({key.partition(".")[2]: value for key, value in policy.items()}),
        runs=tuple(specs),
        excluded=tuple(excluded),
        published=_published(resolved, schema),
        expectations=tuple(expected),
        behaviour=tuple(name for name in schema.behaviour if name in names),
    )


# -- runs ------------------------------------------------------------------------------------------------------------


def _expand(schema: Schema, problems: Problems) -> Iterator[Combination]:
    counts = {entry.position: number_of_runs(entry, schema.seeds) for entry in schema.entries}
    if sum(counts.values()) > MAX_RUNS:
        largest = max(schema.entries, key=lambda entry: counts[entry.position])
        runs = counts[largest.position]
        where = f"{schema.file}: {largest.label}"
        problems.add(
            where, f"makes {runs:,} of {sum(counts.values()):,} runs, expected at most {MAX_RUNS:,} in a study"
        )
        return
    for entry in schema.entries:
        yield from combinations(entry, schema.seeds)


def _exclude(
    runs: Sequence[Combination], schema: Schema
) -> tuple[list[Combination], list[Excluded], list[tuple[str, str]]]:
    """Return the runs to keep, the dropped ones, and a problem for each ``[[exclude]]`` without a match.

    Conditions apply to the manifest as written, before ``--set``, so a shorter trial drops the same runs.
    """
    if not schema.excludes:
        return list(runs), [], []
    kept: list[Combination] = []
    dropped: list[Excluded] = []
    hit: set[int] = set()
    facts = [_facts(run, schema) for run in runs]
    for run, known in zip(runs, facts, strict=True):
        hits = {number for number, cut in schema.excludes.items() if all(_fits(known, *item) for item in cut.items())}
        hit |= hits
        if hits:
            arch, optimizer = _text(known.get("model.arch")), _text(known.get("optim.optimizer"))
            dropped.append(Excluded(name=known["name"], arch=arch, optimizer=optimizer))
        else:
            kept.append(run)
    unmatched = [
        (f"{schema.file}: exclude {number}", f"matches no run; {_why_no_match(cut, facts)}")
        for number, cut in schema.excludes.items()
        if number not in hit
    ]
    return kept, dropped, unmatched


def _facts(run: Combination, schema: Schema) -> dict[str, Any]:
    """Return name and values of a run before ``--set``, with the defaults of :mod:`seqlm.config` if it is valid."""
    values, _ = _merge(run, {}, schema)
    try:
        resolved = RunConfig.from_dict(_nested(values)).to_dict()
    except ConfigError:
        resolved = {}
    for section, table in resolved.items():
        values |= {f"{section}.{key}": v for key, v in table.items()} if isinstance(table, Mapping) else {}
    values.setdefault("seed", resolved.get("seed"))
    return {**values, "name": run_name(run, values)}


def _fits(facts: Mapping[str, Any], key: str, wanted: Any) -> bool:
    if key not in facts:
        return False
    options = wanted if isinstance(wanted, list) else [wanted]
    if key == "name":
        return any(isinstance(option, str) and fnmatch.fnmatchcase(facts[key], option) for option in options)
    return any(option == facts[key] and isinstance(option, bool) == isinstance(facts[key], bool) for option in options)


def _why_no_match(exclude: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> str:
    for key, wanted in exclude.items():
        if not any(_fits(f, key, wanted) for f in facts):
            found = list(dict.fromkeys(show(f[key]) for f in facts if key in f))
            listing = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            hint = nearest(show(wanted).strip('"'), [text.strip('"') for text in found])
            return f"{key}: no run has {show(wanted)}, they have {listing or 'no such key'}{hint}"
    return "each of its keys fits some run, but no run fits all"


def _merge(
    run: Combination, overrides: Mapping[str, Override], schema: Schema
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a run, and for each value the place to name in messages.

    Defaults and overrides that do not apply to the run's architecture or optimizer are left out. Keys of the
    entry itself stay, so that :class:`RunConfig` reports them.
    """
    values = {**schema.defaults, **schema.resources, **run.values}
    places = dict.fromkeys(schema.defaults, f"{schema.file}: defaults")
    places |= dict.fromkeys(schema.resources, schema.file)
    places |= dict.fromkeys(run.values, f"{schema.file}: {run.entry.label}")
    values |= {key: override.value for key, override in overrides.items()}
    places |= {key: f"--set {override.text}" for key, override in overrides.items()}
    arch, optimizer = values.get("model.arch"), values.get("optim.optimizer")
    fitting = _applicable("model", "arch", _text(arch)) | _applicable("optim", "optimizer", _text(optimizer))
    for key in list(values):
        section = key.partition(".")[0]
        own = key in run.values and key not in overrides
        if section in ("model", "optim") and not own and key not in fitting:
            del values[key], places[key]
    return values, places


@functools.cache
def _applicable(section: str, selector: str, choice: str | None) -> frozenset[str]:
    return frozenset(f"{section}.{key}" for key in applicable_keys(section, {selector: choice}))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as the nested tables that ``RunConfig.from_dict`` reads, without resources."""
    nested: dict[str, Any] = {section: {} for section in RunConfig.SECTIONS}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section in nested:
            nested[section][name] = value
        elif not section:
            nested[key] = value
    return nested


def _resolve_all(
    runs: Sequence[Combination], overrides: Mapping[str, Override], schema: Schema, problems: Problems
) -> list[tuple[Combination, RunSpec]]:
    used: set[str] = set()
    resolved: list[tuple[Combination, RunSpec]] = []
    for run in runs:
        values, places = _merge(run, overrides, schema)
        used |= values.keys() & overrides.keys()
        spec = _resolve(run, values, places, schema, problems, order=len(resolved))
        if spec is not None and not problems.about(f"{schema.file}: {run.entry.label}"):
            resolved.append((run, spec))
    for key, override in overrides.items():
        if runs and key not in used:
            problems.add(f"--set {override.text}", f"{key} applies to no run of {schema.file}")
    _check_distinct(resolved, overrides, schema, problems)
    return resolved


def _published(resolved: Sequence[tuple[Combination, RunSpec]], schema: Schema) -> dict[str, Published]:
    """Return the published results by name of the run, for runs whose configuration ``--set`` does not change."""
    found: dict[str, Published] = {}
    for run, spec in resolved:
        if run.entry.published is None:
            continue
        values, _ = _merge(run, {}, schema)
        try:
            as_written = RunConfig.from_dict(_nested(values))
        except ConfigError:  # --set gave a key that the manifest lacks
            continue
        if as_written == spec.config:
            found[spec.name] = run.entry.published
    return found


def _resolve(
    run: Combination,
    values: Mapping[str, Any],
    places: Mapping[str, str],
    schema: Schema,
    problems: Problems,
    order: int,
) -> RunSpec | None:
    config, resources = None, None
    lines: list[str] = []
    try:
        config = RunConfig.from_dict(_nested(values))
    except ConfigError as error:
        lines += error.problems
    try:
        resources = Resources.from_dict({k.partition(".")[2]: v for k, v in values.items() if k in RESOURCE_KEYS})
    except ConfigError as error:
        lines += error.problems
    if config and resources and resources.ranks > config.train.batch_size:
        most = f"at most train.batch_size = {config.train.batch_size}, a column for each rank"
        lines.append(f"resources.ranks: expected {most}, got {resources.ranks}")
    for line in lines:
        key = line.partition(":")[0]
        if run.entry.lists.get(key) == []:
            continue  # missing because its list is empty, which is reported already
        if run.entry.kind == "run" and isinstance(run.values.get(key), list):
            line += "; lists multiply in [[grid]] and advance together in [[zip]]"
        problems.add(places.get(key, f"{schema.file}: {run.entry.label}"), line)
    if lines or config is None or resources is None:
        return None
    return RunSpec(name=run_name(run, values), config=config, resources=resources, order=order)


def _check_distinct(
    resolved: Sequence[tuple[Combination, RunSpec]],
    overrides: Mapping[str, Override],
    schema: Schema,
    problems: Problems,
) -> None:
    """Report configurations and names that occur twice: the first such pair of each two entries."""
    by_fingerprint: dict[str, tuple[Combination, RunSpec]] = {}
    by_name: dict[str, tuple[Combination, RunSpec]] = {}
    reported: set[tuple[str, str, str]] = set()
    for run, spec in resolved:
        same = by_fingerprint.setdefault(spec.fingerprint, (run, spec))
        namesake = by_name.setdefault(spec.name, (run, spec))
        first, kind = (same, "configuration") if same[1] is not spec else (namesake, "name")
        pair = (kind, first[0].entry.position, run.entry.position)
        if first[1] is spec or pair in reported:
            continue
        reported.add(pair)
        if kind == "configuration":
            what = f"{_describe(run, schema)} is the same configuration as {_describe(first[0], schema)}"
            setting = [o.text for key, o in overrides.items() if run.values.get(key) != first[0].values.get(key)]
            what += f"; they differ only in what --set {' --set '.join(setting)} sets" if setting else ""
        else:
            what = f'{first[0].entry.position} and {run.entry.position} both make a run called "{spec.name}"'
            what += "; give them different names" if run.entry.name else "; add a name to either"
        problems.add(schema.file, what)


def _describe(run: Combination, schema: Schema) -> str:
    """Return the entry of a run and its name in the manifest, before ``--set``."""
    values, _ = _merge(run, {}, schema)
    return f'{run.entry.position} ("{run_name(run, values)}")'
