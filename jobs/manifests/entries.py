"""Read the tables of a manifest, and the texts of ``--set``, before anything is expanded.

Each problem is reported: unknown keys with the nearest valid one, wrong tables, invalid names. Values of a run's
configuration are checked later, by :class:`seqlm.config.RunConfig`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import MinLen, Predicate

from jobs.manifests.backends import BACKENDS, check_tables
from jobs.manifests.claims import Claim, Published, Report, read_published
from jobs.manifests.expand import Entry, EntryKind, problems_of
from jobs.manifests.fields import Matches, Problems, Valid, as_table, full_keys, read_table
from jobs.manifests.policy import Policy
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
        Annotated[str, MinLen(1), Predicate(str.isprintable)] | None, Valid("the path of a file or folder")
    ] = None
    """Path of the text, relative to the manifest's folder; without it, the corpus's own place. `--data` and
    `SEQLM_DATA` override it."""
    backend: Annotated[Literal["local", "ray", "slurm"] | None, Valid(f"one of {', '.join(BACKENDS)}")] = None
    """Where runs are sent; without it, Ray if it is installed, else local processes. `--backend` and `SEQLM_BACKEND`
    override it."""
    untracked: Annotated[list[Annotated[str, MinLen(1)]], Valid("a list of files")] = field(default_factory=list)
    """Files of the code that git does not track and runs need, such as `["seqlm/new.py"]`, relative to the folder of
    `launch.py`. They are kept in `code/` and sent to Ray."""


@dataclass(frozen=True, kw_only=True)
class EntryTable:
    """The keys of an entry that belong to no section."""

    name: Annotated[_Name | None, Valid(_Name.__metadata__[-1].words)] = None
    """Name of the run; without it, `{arch}-{optimizer}`. Runs of a grid or zip get a suffix for each key that varies,
    as in `gru-lr0.1-hidden512-seed2`."""
    seeds: Annotated[Annotated[list[Seed], MinLen(1)] | None, Valid("a list of whole numbers, at least one")] = None
    """A copy of every run for each seed. `seed` or `seeds` of an entry override the `seeds` at the top of the file."""


TOP_KEYS = (
    *("study", "defaults", "run", "grid", "zip", "exclude", "expect", "report", "seeds"),
    *("resources", "policy", "backend"),
)
ENTRY_KINDS: tuple[EntryKind, ...] = ("run", "grid", "zip")
ENTRY_KEYS = full_keys(EntryTable)
CONFIG_KEYS = tuple(valid_keys())
RESOURCE_KEYS = full_keys(Resources, "resources.")
PUBLISHED_KEYS = full_keys(Published, "published.")
SECTIONS = (*RunConfig.SECTIONS, "resources")


# -- the file's tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ManifestFile:
    """The tables of a manifest. Wrong parts are reported and left out."""

    name: str
    """Name of the file."""
    study: Mapping[str, Any]
    backend: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    """Dotted key -> value; likewise ``resources``."""
    resources: Mapping[str, Any]
    policy: Mapping[str, Any]
    entries: Sequence[Entry]
    excludes: Mapping[int, Mapping[str, Any]]
    """Number -> condition. Wrong ones are left out: half a condition would match too much."""
    claims: Mapping[int, Claim]
    """Number -> expectation. Wrong ones are left out."""
    behaviour: tuple[str, ...]
    """Names of the runs whose trained models the report examines."""
    groups: Mapping[str, Sequence[str]]
    """Title of a group of the report -> names of its runs, or patterns."""
    setting: Mapping[str, Any]
    """Dotted key -> value that ``--set`` gives to runs."""
    options: Mapping[str, str]
    """Dotted key -> the option as typed, such as ``--set train.epochs=2``."""


def read_tables(raw: Mapping[str, Any], file: str, overrides: Sequence[str], problems: Problems) -> ManifestFile:
    """Check the tables of a manifest, and the texts of ``--set``; add a line to ``problems`` for each mistake."""
    for key in raw:
        if key not in TOP_KEYS:
            problems.unknown(file, key, [*TOP_KEYS, *(f"defaults.{name}" for name in SECTIONS)], TOP_KEYS)

    def table_of(kind: type, section: str) -> dict[str, Any]:
        return read_table(kind, raw.get(section, {}), file, problems, prefix=f"{section}.")

    study = table_of(StudyTable, "study")
    defaults = _flatten(raw.get("defaults", {}), CONFIG_KEYS, f"{file}: defaults", problems)
    resources = _flatten({"resources": raw.get("resources", {})}, RESOURCE_KEYS, file, problems)
    policy = table_of(Policy, "policy")
    top = {key: value for key, value in raw.items() if key == "seeds"}
    seeds = read_table(EntryTable, top, file, problems).get("seeds", ())
    if top and "seed" in defaults:
        problems.add(f"{file}: defaults", 'expected one of "seed" here and "seeds" at the top of the file, got both')
    backend = check_tables(raw.get("backend", {}), file, problems)
    entries = [
        _read_entry(kind, number, table, seeds, file, problems)
        for kind in (key for key in raw if key in ENTRY_KINDS)
        for number, table in _numbered(raw, kind, file, problems)
    ]
    excludes, claims = {}, {}
    for number, table in _numbered(raw, "exclude", file, problems):
        where, before = f"{file}: exclude {number}", len(problems.lines)
        condition = _flatten(table, ("name", *CONFIG_KEYS), where, problems)
        if not table:
            problems.add(where, "expected at least one key, got none")
        if len(problems.lines) == before:
            excludes[number] = condition
    for number, table in _numbered(raw, "expect", file, problems):
        before = len(problems.lines)
        claim = read_table(Claim, table, f"{file}: expect {number}", problems)
        if len(problems.lines) == before:
            claims[number] = Claim(**claim)
    report = table_of(Report, "report")
    setting, options = read_overrides(overrides, problems)
    if "study.name" in setting:
        study["name"] = setting.pop("study.name")
    for key in full_keys(Policy):
        if f"policy.{key}" in setting:
            policy[key] = setting.pop(f"policy.{key}")
    return ManifestFile(
        name=file,
        study=study,
        backend=backend,
        defaults=defaults,
        resources=resources,
        policy=policy,
        entries=entries,
        excludes=excludes,
        claims=claims,
        behaviour=tuple(report.get("behaviour", ())),
        groups=report.get("groups", {}),
        setting=setting,
        options=options,
    )


def _read_entry(
    kind: EntryKind, number: int, table: Mapping[str, Any], seeds: Sequence[Any], file: str, problems: Problems
) -> Entry:
    """Read an entry. ``seeds`` are those at the top of the file; ``seeds`` or ``seed`` of the entry override them."""
    own = {key: value for key, value in table.items() if key in ENTRY_KEYS}
    rest = {key: value for key, value in table.items() if key not in own}
    name = read_table(EntryTable, own, file, Problems()).get("name")
    entry = Entry(kind=kind, number=number, name=name, values={})
    where = f"{file}: {entry.label}"
    own = read_table(EntryTable, own, where, problems)
    if "seeds" in table and "seed" in table:
        problems.add(where, 'expected one of "seed" and "seeds", got both')
    valid = (*CONFIG_KEYS, *RESOURCE_KEYS)
    if kind == "run":
        valid += PUBLISHED_KEYS
    elif any(key.partition(".")[0] == "published" for key in rest):
        problems.add(where, "published: published results belong to [[run]], an entry for each run that has them")
        rest = {key: value for key, value in rest.items() if key.partition(".")[0] != "published"}
    values = _flatten(rest, valid, where, problems, also=ENTRY_KEYS)
    published = read_published({key: values.pop(key) for key in PUBLISHED_KEYS if key in values}, where, problems)
    seeds = own.get("seeds", () if "seed" in values else seeds)
    entry = replace(entry, values=values, seeds=seeds, published=published)
    for problem in problems_of(entry):
        problems.add(where, problem)
    return entry


def _numbered(
    raw: Mapping[str, Any], key: str, file: str, problems: Problems
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the tables of a list with their numbers, from 1."""
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
    table: Any, valid: Sequence[str], where: str, problems: Problems, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the keys of a table as dotted keys. Unknown keys are reported and left out."""
    flat: dict[str, Any] = {}
    for key, value in as_table(table, where, problems).items():
        found = {key: value}
        if key in (*SECTIONS, "published"):
            found = {f"{key}.{name}": inner for name, inner in as_table(value, f"{where}: {key}", problems).items()}
        for dotted, inner in found.items():
            if dotted not in valid:
                sections = dict.fromkeys(name.partition(".")[0] for name in valid)
                problems.unknown(where, dotted, (*also, *sections, *valid))
            elif dotted in flat:
                problems.add(where, f'key "{dotted}" is given twice')
            else:
                flat[dotted] = inner
    return flat


# -- --set -----------------------------------------------------------------------------------------------------------


def read_overrides(texts: Sequence[str], problems: Problems) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value of each key that ``--set`` gives, and the option as typed, such as ``--set train.epochs=2``.

    Of two overrides of one key, the later one is used.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    valid = (*CONFIG_KEYS, *RESOURCE_KEYS, *full_keys(Policy, "policy."), "study.name")
    for text in texts:
        key, equals, value_text = text.partition("=")
        key, where = key.strip(), f"--set {text}"
        value = _parse_value(value_text.strip())
        before = len(problems.lines)
        try:
            check_plain(value)
        except ValueError as error:
            problems.add(where, str(error))
            continue
        if not equals or not key:
            problems.add(where, "expected KEY=VALUE, for example --set train.epochs=2")
        elif key.partition(".")[0] == "policy":
            found = read_table(Policy, {key.partition(".")[2]: value}, where, problems, prefix="policy.")
            key = next((f"policy.{name}" for name in found), key)  # an earlier name gives the present one
        elif key not in valid:
            problems.unknown(where, key, valid)
        elif key == "study.name":
            read_table(StudyTable, {"name": value}, where, problems, prefix="study.")
        if len(problems.lines) == before:
            values[key], places[key] = value, where
    return values, places


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if list(parsed) == ["value"] else text
