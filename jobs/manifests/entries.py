"""Read the tables of a manifest, and the texts of ``--set``, before anything is expanded.

Each problem is reported: unknown keys with the nearest valid one, wrong tables, invalid names. Values of a run's
configuration are checked later, by :class:`seqlm.config.RunConfig`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen, Predicate

from jobs.manifests.backends import BACKENDS, check_table
from jobs.manifests.claims import PUBLISHED_KEYS, Claim, Report, read_claim, read_published
from jobs.manifests.expand import Entry, EntryKind, problems_of
from jobs.manifests.fields import Matches, Problems, Valid, Written, field_names, read_table
from jobs.manifests.policy import POLICY_KEYS, check_policy
from jobs.manifests.reader import check_plain, show
from jobs.spec import Resources
from seqlm.config import RunConfig, Seed, valid_keys

_Name = Annotated[
    str,
    Matches(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$"),
    Valid("up to 80 letters, digits, dots, hyphens and underscores, not starting with a dot or a hyphen"),
]


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """``[study]``."""

    name: _Name
    """Name of the study and of its folder `runs/<name>/`: up to 80 letters, digits, `.`, `_` and `-`, not starting with
    `.` or `-`."""
    data: Annotated[
        str | None,
        Written(Annotated[str, MinLen(1), Predicate(str.isprintable)]),
        Valid("the path of a file or folder"),
    ] = None
    """Path of the text, relative to the manifest's folder; without it, the corpus's own place. `--data` and
    `SEQLM_DATA` override it."""
    backend: Annotated[Literal["local", "ray", "slurm"] | None, Valid(f"one of {', '.join(BACKENDS)}")] = None
    """Where runs are sent; without it, Ray if it is installed, else local processes. `--backend` and `SEQLM_BACKEND`
    override it."""
    untracked: Annotated[tuple[str, ...], Written(list[Annotated[str, MinLen(1)]]), Valid("a list of files")] = ()
    """Files of the code that git does not track and runs need, such as `["seqlm/new.py"]`, relative to the folder of
    `launch.py`. They are kept in `code/` and sent to Ray."""


@dataclass(frozen=True, kw_only=True)
class EntryTable:
    """The keys of an entry that belong to no section."""

    name: Annotated[_Name | None, Valid(_Name.__metadata__[-1].words)] = None
    """Name of the run; without it, `{arch}-{optimizer}`. Runs of a grid or zip get a suffix for each key that varies,
    as in `gru-lr0.1-hidden512-seed2`."""
    seeds: Annotated[
        list[int] | None,
        Written(Annotated[list[Seed], MinLen(1)]),
        Valid("a list of whole numbers, at least one"),
    ] = None
    """A copy of every run for each seed. `seed` or `seeds` of an entry override the `seeds` at the top of the file."""


TOP_KEYS = (
    *("study", "defaults", "run", "grid", "zip", "exclude", "expect", "report", "seeds"),
    *("resources", "policy", "backend"),
)
STUDY_KEYS = field_names(StudyTable)
ENTRY_KINDS: tuple[EntryKind, ...] = ("run", "grid", "zip")
CONFIG_KEYS = tuple(valid_keys())
RESOURCE_KEYS = tuple(f"resources.{name}" for name in field_names(Resources))
SECTIONS = (*RunConfig.SECTIONS, "resources")


# -- the file's tables -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Schema:
    """The manifest, table by table. Wrong parts are reported and left out."""

    file: str
    study: str = ""
    data_path: Path | None = None
    untracked: tuple[str, ...] = ()
    backend_name: str | None = None
    backend: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    """Key in full -> value."""
    seeds: list[Any] | None = None
    entries: list[Entry] = field(default_factory=list)
    excludes: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Number -> condition. Wrong ones are left out: half a condition would match too much."""
    claims: dict[int, Claim] = field(default_factory=dict)
    """Number -> expectation. Wrong ones are left out."""
    behaviour: tuple[str, ...] = ()
    """Names of the runs whose trained models the report examines."""


def read_schema(raw: Mapping[str, Any], path: Path, problems: Problems) -> Schema:
    """Check the tables of a manifest; add a line to ``problems`` for each mistake."""
    schema = Schema(file=path.name)
    for key in raw:
        if key not in TOP_KEYS:
            problems.unknown(path.name, key, [*TOP_KEYS, *(f"defaults.{name}" for name in SECTIONS)], TOP_KEYS)
    _read_study(raw.get("study", {}), path, schema, problems)
    where = f"{path.name}: defaults"
    if (table := _table(raw, "defaults", path.name, problems)) is not None:
        schema.defaults = _flatten(table, CONFIG_KEYS, where, problems)
    if (table := _table(raw, "resources", path.name, problems)) is not None:
        schema.resources = _flatten({"resources": table}, RESOURCE_KEYS, path.name, problems)
    if (table := _table(raw, "policy", path.name, problems)) is not None:
        schema.policy = {f"policy.{name}": value for name, value in table.items()}
        for key, value in schema.policy.items():
            check_policy(key, value, path.name, problems)
    if "seeds" in raw:
        schema.seeds = read_table(EntryTable, {"seeds": raw["seeds"]}, path.name, problems).get("seeds")
        if "seed" in schema.defaults:
            problems.add(where, 'expected one of "seed" here and "seeds" at the top of the file, got both')
    for name, value in (_table(raw, "backend", path.name, problems) or {}).items():
        _read_backend(name, value, schema, problems)
    for kind in (key for key in raw if key in ENTRY_KINDS):
        for number, table in _tables(raw, kind, path.name, problems):
            schema.entries.append(_read_entry(kind, number, table, path.name, problems))
    for number, table in _tables(raw, "exclude", path.name, problems):
        where = f"{path.name}: exclude {number}"
        before = len(problems.lines)
        condition = _flatten(table, ("name", *CONFIG_KEYS), where, problems)
        if not table:
            problems.add(where, "expected at least one key, got none")
        if len(problems.lines) == before:
            schema.excludes[number] = condition
    for number, table in _tables(raw, "expect", path.name, problems):
        if (claim := read_claim(number, table, path.name, problems)) is not None:
            schema.claims[number] = claim
    if (table := _table(raw, "report", path.name, problems)) is not None:
        report = read_table(Report, table, path.name, problems, prefix="report.")
        schema.behaviour = tuple(report.get("behaviour", ()))
    return schema


def _read_study(value: Any, path: Path, schema: Schema, problems: Problems) -> None:
    table = _table({"study": value}, "study", path.name, problems)
    if table is None:
        return
    study = read_table(StudyTable, table, path.name, problems, prefix="study.")
    schema.study = study.get("name", "")
    schema.backend_name = study.get("backend")
    schema.untracked = tuple(study.get("untracked", ()))
    if "data" in study:
        schema.data_path = (path.parent / Path(study["data"]).expanduser()).resolve()


def _read_backend(name: str, value: Any, schema: Schema, problems: Problems) -> None:
    if name not in BACKENDS:
        problems.unknown(schema.file, f"backend.{name}", [f"backend.{known}" for known in BACKENDS])
        return
    table = _table({f"backend.{name}": value}, f"backend.{name}", schema.file, problems)
    if table is None:
        return
    schema.backend[name] = table
    check_table(name, table, schema.file, problems, prefix=f"backend.{name}.")


def _read_entry(kind: EntryKind, number: int, table: Mapping[str, Any], file: str, problems: Problems) -> Entry:
    own = {key: value for key, value in table.items() if key in field_names(EntryTable)}
    rest = {key: value for key, value in table.items() if key not in own}
    name = read_table(EntryTable, own, file, Problems()).get("name")
    entry = Entry(kind=kind, number=number, name=name, values={})
    where = f"{file}: {entry.label}"
    seeds = read_table(EntryTable, own, where, problems).get("seeds")
    if "seeds" in table and "seed" in table:
        problems.add(where, 'expected one of "seed" and "seeds", got both')
    valid = (*CONFIG_KEYS, *RESOURCE_KEYS)
    if kind == "run":
        valid += PUBLISHED_KEYS
    elif any(key.partition(".")[0] == "published" for key in rest):
        problems.add(where, "published: published results belong to [[run]], an entry for each run that has them")
        rest = {key: value for key, value in rest.items() if key.partition(".")[0] != "published"}
    values = _flatten(rest, valid, where, problems, also=field_names(EntryTable))
    results = {key: values.pop(key) for key in PUBLISHED_KEYS if key in values}
    published = read_published(results, where, problems)
    entry = replace(entry, values=values, seeds=seeds, published=published)
    for problem in problems_of(entry):
        problems.add(where, problem)
    return entry


def _table(raw: Mapping[str, Any], key: str, where: str, problems: Problems) -> Mapping[str, Any] | None:
    value = raw.get(key, {})
    if isinstance(value, Mapping):
        return value
    problems.add(where, f"{key}: expected a table, got {show(value)}")
    return None


def _tables(raw: Mapping[str, Any], key: str, file: str, problems: Problems) -> Iterator[tuple[int, Mapping[str, Any]]]:
    value = raw.get(key, [])
    if not isinstance(value, list):
        found = "one table" if isinstance(value, Mapping) else show(value)
        problems.add(file, f"{key}: expected a list of tables, in TOML [[{key}]], got {found}")
        return
    for number, item in enumerate(value, start=1):
        if isinstance(item, Mapping):
            yield number, item
        else:
            problems.add(file, f"{key} {number}: expected a table, got {show(item)}")


def _flatten(
    table: Mapping[str, Any], valid: Sequence[str], where: str, problems: Problems, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the keys of a table as dotted keys. Unknown keys are reported and left out."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        is_section = key in SECTIONS or key == "published"
        if is_section and not isinstance(value, Mapping):
            problems.add(where, f"{key}: expected a table, got {show(value)}")
            continue
        found = {f"{key}.{inner}": v for inner, v in value.items()} if is_section else {key: value}
        for dotted, inner_value in found.items():
            if dotted not in valid:
                sections = dict.fromkeys(name.partition(".")[0] for name in valid)
                problems.unknown(where, dotted, (*also, *sections, *valid))
            elif dotted in flat:
                problems.add(where, f'key "{dotted}" is given twice')
            else:
                flat[dotted] = inner_value
    return flat


# -- --set -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Override:
    """One ``--set KEY=VALUE``."""

    text: str
    """As typed after ``--set``."""
    value: Any


def read_overrides(texts: Sequence[str], problems: Problems) -> dict[str, Override]:
    """Return key -> override. Of two overrides of one key, the later one is used."""
    overrides: dict[str, Override] = {}
    valid = (*CONFIG_KEYS, *RESOURCE_KEYS, *POLICY_KEYS, "study.name")
    for text in texts:
        key, equals, value_text = text.partition("=")
        key, where = key.strip(), f"--set {text}"
        value = _parse_value(value_text.strip())
        try:
            check_plain(value)
        except ValueError as error:
            problems.add(where, str(error))
            continue
        if not equals or not key:
            problems.add(where, "expected KEY=VALUE, for example --set train.epochs=2")
        elif key.partition(".")[0] == "policy":
            check_policy(key, value, where, problems)
            overrides[key] = Override(text, value)
        elif key not in valid:
            problems.unknown(where, key, valid)
        elif key != "study.name" or read_table(StudyTable, {"name": value}, where, problems, prefix="study."):
            overrides[key] = Override(text, value)
    return overrides


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if list(parsed) == ["value"] else text
