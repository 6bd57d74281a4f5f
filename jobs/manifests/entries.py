"""Read the tables of a manifest, and the texts of ``--set``, before anything is expanded.

Each problem is reported: unknown keys with the nearest valid one, wrong tables, invalid names. Values of a run's
configuration are checked later, by :class:`seqlm.config.RunConfig`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, final

from annotated_types import Ge, Le, MinLen, Predicate

from jobs.manifests.backends import check_tables
from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.draws import Distribution, draw, number_of_settings, read_distribution
from jobs.manifests.expand import Entry, EntryKind, has_several, problems_of
from jobs.manifests.fields import Matches, Problems, Valid, as_table, full_keys, read_table
from jobs.manifests.policy import Policy
from jobs.manifests.reader import check_plain, show
from jobs.manifests.search import SearchTable
from jobs.registry import BACKENDS
from jobs.spec import Resources
from seqlm.config import OPEN_TABLES, SEEDS, RunConfig, Seed, base_key, valid_keys
from seqlm.run_layout import MAX_RUNS

_Name = Annotated[
    str,
    Matches(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$"),
    Valid("up to 80 letters, digits, dots, hyphens and underscores, not starting with a dot or a hyphen"),
]
_Backend: Any = Literal.__getitem__(tuple(BACKENDS))


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
    backend: Annotated[str | None, Valid(f"one of {', '.join(BACKENDS)}", _Backend)] = None
    """Where runs are sent; without it, Ray if it is installed, else local processes. `--backend` and `SEQLM_BACKEND`
    override it."""
    untracked: Annotated[list[Annotated[str, MinLen(1)]], Valid("a list of files")] = field(default_factory=list)
    """Files of the code that git does not track and runs need, such as `["seqlm/new.py"]`, relative to the folder of
    `launch.py`. They are kept in `code/` and sent to Ray."""


@dataclass(frozen=True, kw_only=True)
class EntryTable:
    """The keys of an entry that belong to no section."""

    name: Annotated[_Name | None, Valid(_Name.__metadata__[-1].words)] = None
    """Name of the run; without it, `{arch}-{optimizer}`. Runs of a grid, zip or sample get a suffix for each key that
    varies, as in `gru-lr0.1-hidden512-seed2`."""
    seeds: Annotated[Annotated[list[Seed], MinLen(1)] | None, Valid("a list of whole numbers, at least one")] = None
    """A copy of every run for each seed. `seed` or `seeds` of an entry override the `seeds` at the top of the file."""


@dataclass(frozen=True, kw_only=True)
class SampleTable(EntryTable):
    """The keys of a ``[[sample]]`` that belong to no section."""

    count: Annotated[int, Ge(1), Le(MAX_RUNS), Valid(f"a whole number from 1 to {MAX_RUNS:,}")]
    """Number of settings to draw, all different. The first n of a larger count are the same n."""
    seed: Annotated[Seed, Valid(SEEDS)] = 0
    """Seed of the draws. It is not the seed of the runs, which `seeds` or `[defaults]` set."""


TOP_KEYS = (
    *("study", "defaults", "run", "grid", "zip", "sample", "exclude", "expect", "report", "seeds"),
    *("resources", "policy", "search", "backend"),
)
ENTRY_KINDS: tuple[EntryKind, ...] = ("run", "grid", "zip", "sample")
CONFIG_KEYS = tuple(valid_keys())
RESOURCE_KEYS = full_keys(Resources, "resources.")
PUBLISHED_KEYS = full_keys(Published, "published.")
SET_KEYS = (
    *(*CONFIG_KEYS, *RESOURCE_KEYS),
    *(*full_keys(Policy, "policy."), *full_keys(SearchTable, "search."), "study.name"),
)
"""The keys of ``--set``."""
SECTIONS = (*RunConfig.SECTIONS, "resources")


# -- the file's tables -----------------------------------------------------------------------------------------------


@final
class ManifestFile:
    """The tables of a manifest, and the texts of ``--set``. Wrong parts are left out; ``problems`` has their lines."""

    def __init__(self, raw: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> None:
        """Read the plain data of the file ``path``."""
        self.name, self.folder = path.name, path.parent
        name = self.name
        self.problems = problems = Problems()
        for key in raw:
            if key not in TOP_KEYS:
                problems.unknown(
                    name, key, [*TOP_KEYS, *(f"defaults.{one}" for one in (*SECTIONS, *CONFIG_KEYS))], TOP_KEYS
                )
        self.study = self._table(raw, StudyTable, "study")
        self.defaults = self._flatten(raw.get("defaults", {}), CONFIG_KEYS, f"{name}: defaults")
        """Dotted key -> value; likewise ``resources``."""
        self.resources = self._flatten({"resources": raw.get("resources", {})}, RESOURCE_KEYS, name)
        self.policy = self._table(raw, Policy, "policy")
        self.search = self._table(raw, SearchTable, "search") if "search" in raw else {}
        """Empty: the study is no search."""
        top = {key: value for key, value in raw.items() if key == "seeds"}
        seeds = read_table(EntryTable, top, name, problems).get("seeds", ())
        if top and "seed" in self.defaults:
            what = 'expected one of "seed" here and "seeds" at the top of the file, got both'
            problems.add(f"{name}: defaults", what)
        self.backend = check_tables(raw.get("backend", {}), name, problems)
        self.samples: list[Mapping[str, Any]] = []
        """Each ``[[sample]]`` before anything is drawn: ``name``, ``seeds``, and ``values`` by dotted key."""
        kinds = [key for key in raw if key in ENTRY_KINDS]
        self.entries = [self._entry(kind, *item, seeds) for kind in kinds for item in self._numbered(raw, kind)]
        self.excludes: dict[int, Mapping[str, Any]] = {}
        """Number -> condition. Wrong ones are left out: half a condition would match too much."""
        for number, table in self._numbered(raw, "exclude"):
            where, before = f"{name}: exclude {number}", len(problems.lines)
            condition = self._flatten(table, ("name", *CONFIG_KEYS), where)
            if not table:
                problems.add(where, "expected at least one key, got none")
            if len(problems.lines) == before:
                self.excludes[number] = condition
        self.claims: dict[int, Claim] = {}
        """Number -> expectation. Wrong ones are left out."""
        for number, table in self._numbered(raw, "expect"):
            before = len(problems.lines)
            claim = read_table(Claim, table, f"{name}: expect {number}", problems)
            if len(problems.lines) == before:
                self.claims[number] = Claim(**claim)
        self.report = self._table(raw, Report, "report")
        self.setting: dict[str, Any] = {}
        """Dotted key -> value that ``--set`` gives to runs. Of two overrides of one key, the later one is used."""
        self.options: dict[str, str] = {}
        """Dotted key -> the option as typed, such as ``--set train.epochs=2``."""
        for text in overrides:
            self._override(text)

    def _table(self, raw: Mapping[str, Any], kind: type, section: str) -> dict[str, Any]:
        return read_table(kind, raw.get(section, {}), self.name, self.problems, prefix=f"{section}.")

    def _entry(self, kind: EntryKind, number: int, table: Mapping[str, Any], seeds: Sequence[Any]) -> Entry:
        """Read an entry. Its ``seeds`` or ``seed`` override ``seeds``, those at the top of the file."""
        kind_of_table = SampleTable if kind == "sample" else EntryTable
        own_keys = full_keys(kind_of_table)
        own = {key: value for key, value in table.items() if key in own_keys}
        rest = {key: value for key, value in table.items() if key not in own}
        name = read_table(kind_of_table, own, self.name, Problems()).get("name")
        entry = Entry(kind=kind, number=number, name=name, values={})
        where = f"{self.name}: {entry.label}"
        own = read_table(kind_of_table, own, where, self.problems)
        valid = (*CONFIG_KEYS, *RESOURCE_KEYS)
        if kind == "sample":
            valid = tuple(key for key in valid if key != "seed")
        elif "seeds" in table and "seed" in table:
            self.problems.add(where, 'expected one of "seed" and "seeds", got both')
        if kind == "run":
            valid += PUBLISHED_KEYS
        elif any(key.partition(".")[0] == "published" for key in rest):
            what = "published: published results belong to [[run]], an entry for each run that has them"
            self.problems.add(where, what)
            rest = {key: value for key, value in rest.items() if key.partition(".")[0] != "published"}
        values = self._flatten(rest, valid, where, also=own_keys)
        results = {key.rpartition(".")[2]: values.pop(key) for key in PUBLISHED_KEYS if key in values}
        found = read_table(Published, results, where, self.problems, prefix="published.")
        seeds = own.get("seeds", () if "seed" in values else seeds)
        space: dict[str, Distribution] = {}
        if kind == "sample":
            self.samples.append({"name": name, "seeds": own.get("seeds", []), "values": values})
            values, space = self._draw(values, own.get("count"), own.get("seed", 0), where)
        published = Published(**found) if found else None
        entry = replace(entry, values=values, seeds=seeds, published=published, space=space)
        for problem in problems_of(entry):
            self.problems.add(where, problem)
        return entry

    def _draw(
        self, values: Mapping[str, Any], count: int | None, seed: int, where: str
    ) -> tuple[dict[str, Any], dict[str, Distribution]]:
        """Return the values of a ``[[sample]]`` with drawn values for each distribution, and the distributions.

        A wrong distribution is replaced by an empty list. ``count`` is ``None`` if it is wrong.
        """
        written = {k: value for k, value in values.items() if isinstance(value, Mapping) or has_several(k, value)}
        space: dict[str, Distribution] = {}
        before = len(self.problems.lines)
        for key, value in written.items():
            try:
                if key in RESOURCE_KEYS:
                    raise ValueError(f"{key}: expected one value, got {show(value)} (resources make no other run)")
                space[key] = read_distribution(key, value)
            except ValueError as error:
                self.problems.add(where, str(error))
        if not written:
            self.problems.add(where, "expected at least one key with a list or a distribution, got none")
        size = number_of_settings(space)
        if len(self.problems.lines) == before and count is not None and size is not None and size < count:
            what = f"count: expected at most {size:,}, the number of different settings, got {count:,}"
            self.problems.add(where, what)
        drawn: list[dict[str, Any]] = draw(space, count or 1, seed) if space else []
        if len(self.problems.lines) == before and count is not None and len(drawn) < count:
            self.problems.add(where, f"count: only {len(drawn):,} different settings were found, got {count:,}")
        columns = {key: [setting[key] for setting in drawn] if key in space else [] for key in written}
        return {**values, **columns}, space

    def _numbered(self, raw: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the tables of a list with their numbers, from 1."""
        value = raw.get(key, [])
        if not isinstance(value, list):
            found = "one table" if isinstance(value, Mapping) else show(value)
            self.problems.add(self.name, f"{key}: expected a list of tables, in TOML [[{key}]], got {found}")
            return
        for number, item in enumerate(value, start=1):
            if isinstance(item, Mapping):
                yield number, item
            else:
                self.problems.add(self.name, f"{key} {number}: expected a table, got {show(item)}")

    def _flatten(self, table: Any, valid: Sequence[str], where: str, also: Sequence[str] = ()) -> dict[str, Any]:
        """Return the keys of a table as dotted keys. Unknown keys are reported and left out."""
        flat: dict[str, Any] = {}
        for key, value in as_table(table, where, self.problems).items():
            found = {key: value}
            if key in (*SECTIONS, "published"):
                inner = as_table(value, f"{where}: {key}", self.problems)
                found = {f"{key}.{name}": one for name, one in inner.items()}
            for dotted, one in self._opened(found, where):
                if base_key(dotted) not in valid:
                    sections = dict.fromkeys(name.partition(".")[0] for name in valid)
                    self.problems.unknown(where, dotted, (*also, *sections, *valid))
                elif dotted in flat:
                    self.problems.add(where, f'key "{dotted}" is given twice')
                else:
                    flat[dotted] = one
        return flat

    def _opened(self, found: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
        """Yield dotted keys, with those inside an open table in place of the table."""
        for key, value in found.items():
            if key in OPEN_TABLES:
                for name, one in as_table(value, f"{where}: {key}", self.problems).items():
                    yield f"{key}.{name}", one
            else:
                yield key, value

    def _override(self, text: str) -> None:
        """Read the text of a ``--set``."""
        problems, before = self.problems, len(self.problems.lines)
        key, equals, value_text = text.partition("=")
        key, where, value = key.strip(), f"--set {text}", _parse_value(value_text.strip())
        section, _, name = key.partition(".")
        try:
            check_plain(value)
        except ValueError as error:
            problems.add(where, str(error))
            return
        if not equals or not key:
            problems.add(where, "expected KEY=VALUE, for example --set train.epochs=2")
        elif section == "policy":
            self.policy |= read_table(Policy, {name: value}, where, problems, prefix="policy.")
        elif section == "search":
            table = {**self.search, name: value}
            self.search |= read_table(SearchTable, table, where, problems, prefix="search.")
        elif base_key(key) not in SET_KEYS:
            problems.unknown(where, key, SET_KEYS)
        elif key == "study.name":
            self.study |= read_table(StudyTable, {name: value}, where, problems, prefix="study.")
        else:
            for one, single in self._opened({key: value}, where):
                if len(problems.lines) == before:
                    self.setting[one], self.options[one] = single, where


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if list(parsed) == ["value"] else text
