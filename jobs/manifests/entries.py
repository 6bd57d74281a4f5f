"""Read the tables of a manifest, and the texts of ``--set``, before anything is expanded.

Each problem is reported: unknown keys with the nearest valid one, wrong tables, invalid names. Values of a run's
configuration are checked later, by :class:`seqlm.config.RunConfig`.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.constraints import are_met, parse_constraint
from jobs.manifests.decide import Decide
from jobs.manifests.draws import Distribution, draw, number_of_settings, read_distribution
from jobs.manifests.expand import SECTIONS, Entry, EntryKind, applying, config_of, has_several, problems_of
from jobs.manifests.filters import Condition
from jobs.manifests.policy import Notify, Policy
from jobs.manifests.reader import Problems, check_plain, check_tables
from jobs.registry import BACKENDS
from seqlm.config import OPEN_TABLES, Seed, base_key, valid_keys
from seqlm.records.studies import MAX_RUNS
from seqlm.resources import Resources
from seqlm.schema import Table, TableT, Valid, fits, show, unknown_key
from seqlm.search import Search

Name = Annotated[
    str,
    Valid(
        "up to 80 letters, digits, dots, hyphens and underscores, not starting with a dot or a hyphen",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$",
    ),
]


_SEEDS = '; "seeds" belongs at the top of the file, above the first [table], or in an entry'


if TYPE_CHECKING:
    _Backend = str
else:
    _Backend = Literal[tuple(BACKENDS)]


@dataclass(frozen=True, kw_only=True)
class StudyTable(Table):
    """``[study]``."""

    NAME = "study"
    NO_KEYS: ClassVar[Mapping[str, str]] = {
        "seeds": f'unknown key "{{name}}"{_SEEDS}',
        "untracked": "{name}: no such key any more; `git add` the files, and the study keeps them",
    }

    name: Name
    """Name of the study and its folder `runs/<name>/`: up to 80 letters, digits, `.`, `_` and `-`, not starting with
    `.` or `-`."""
    data: Annotated[str, Valid("the path of a file or folder", pattern=".")] | None = None
    """Path of the text, relative to the manifest's folder. Default: the corpus's own place. `--data` and `SEQLM_DATA`
    override it."""
    backend: _Backend | None = None
    """Where runs go. Default: Ray with two or more GPUs or a cluster's address, else local processes. `--backend` and
    `SEQLM_BACKEND` override it."""


@dataclass(frozen=True, kw_only=True)
class EntryTable(Table):
    """The keys of an entry that belong to no section."""

    name: Name | None = None
    """Name of the run. Default: `{arch}-{optimizer}`. A grid, zip or sample adds a suffix for each key that varies:
    `gru-lr0.1-hidden512-seed2`."""
    seeds: Annotated[tuple[Seed, ...], Valid("a list of whole numbers from 0 to 2^32 - 1, at least one", least=1)] = ()
    """A copy of every run for each seed. `seed` or `seeds` of an entry override the file's `seeds`."""


@dataclass(frozen=True, kw_only=True)
class SampleTable(EntryTable):
    """The keys of a ``[[sample]]`` that belong to no section."""

    count: Annotated[int, Valid(f"a whole number from 1 to {MAX_RUNS:,}", least=1, most=MAX_RUNS)]
    """Number of settings to draw, all different. The first n of a larger count are the same."""
    seed: Seed = 0
    """Seed of the draws, not of the runs (`seeds` or `[defaults]`)."""
    only: Annotated[tuple[str, ...], Valid('a list of comparisons, such as ["hidden_size % num_heads == 0"]')] = ()
    """Constraints ("Constraints" below): `["parameters < 5e6"]`. A draw that does not meet them all is left out."""


def _list_of_tables(key: str) -> Any:
    return Annotated[list[dict[str, Any]], Valid(f"a list of tables, in TOML [[{key}]]")]


ENTRY_KINDS: tuple[EntryKind, ...] = ("run", "grid", "zip", "sample")
_LISTS = (*ENTRY_KINDS, "exclude", "expect", "decide")
TOP_KEYS = ("study", "defaults", *_LISTS, "report", "seeds", "resources", "policy", "notify", "search", "backend")
CONFIG_KEYS = tuple(valid_keys())
SET_KEYS = (*CONFIG_KEYS, *Resources.full_keys(), *Policy.full_keys(), *Search.full_keys(), "study.name")
"""The keys of ``--set``."""
_FILE_ONLY = ("study.", "report.", "notify.", "backend.")
"""Beginnings of keys that only the file may have, ``study.name`` apart."""
_TOP: type[Table] = make_dataclass(
    "_Top",
    [(key, _list_of_tables(key) if key in _LISTS else Any, None) for key in TOP_KEYS],
    bases=(Table,),
    frozen=True,
)
"""The whole file. What is not a list of tables is read on its own."""


# -- the file's tables -----------------------------------------------------------------------------------------------


@final
class ManifestFile:
    """The tables of a manifest, and the texts of ``--set``. Wrong parts are left out; ``problems`` has their lines."""

    def __init__(self, raw: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> None:
        """Read the plain data of the file ``path``."""
        self.name, self.folder = str(path), path.parent
        self.problems = Problems()
        self.setting: dict[str, Any] = {}
        """Dotted key -> value that ``--set`` gives to runs. Of two overrides of one key, the later one is used."""
        self.options: dict[str, str] = {}
        """Dotted key -> the option as typed, such as ``--set train.epochs=2``."""
        for text in overrides:
            self._override(text)
        valid = [*TOP_KEYS, *(f"defaults.{one}" for one in (*SECTIONS, *CONFIG_KEYS))]
        self.problems.read(_TOP, raw, self.name, unknown=lambda key: unknown_key(key, valid))
        self.study = self._table(raw, StudyTable)
        self.defaults = self._flatten(raw.get("defaults", {}), CONFIG_KEYS, f"{self.name}: defaults")
        """Dotted key -> value; likewise ``resources``."""
        self.resources = self._flatten({"resources": raw.get("resources", {})}, Resources.full_keys(), self.name)
        self.policy = self._table(raw, Policy)
        self.notify = self._table(raw, Notify) if "notify" in raw else None
        is_search = "search" in raw or any(key.startswith("search.") for key in self.setting)
        self.search = self._table(raw, Search) if is_search else None
        top = self.problems.read(EntryTable, {key: raw[key] for key in raw if key == "seeds"}, self.name)
        if "seeds" in raw and "seed" in self.defaults:
            what = 'expected one of "seed" here and "seeds" at the top of the file, got both'
            self.problems.add(f"{self.name}: defaults", what)
        self.backend = check_tables(raw.get("backend", {}), self.name, self.problems)
        self.samples: list[Mapping[str, Any]] = []
        """Each ``[[sample]]`` before anything is drawn: ``name``, ``seeds``, and ``values`` by dotted key."""
        self.entries = [
            self._entry(kind, number, table, top.seeds if top else ())
            for kind in raw
            if kind in ENTRY_KINDS
            for number, table in _numbered(raw, kind)
        ]
        self.excludes: dict[int, list[Condition]] = {}
        """Number -> conditions. Wrong ones are left out: half of them would match too much."""
        for number, table in _numbered(raw, "exclude"):
            where = f"{self.name}: exclude {number}"
            cut = self._flatten(table, ("name", *CONFIG_KEYS), where)
            if not table:
                self.problems.add(where, "expected at least one key, got none")
            if not self.problems.about(where):
                texts = {key: value if isinstance(value, list) else [value] for key, value in cut.items()}
                self.excludes[number] = [
                    Condition(text="", key=key, operator="=", values=tuple(map(_text, values)))
                    for key, values in texts.items()
                ]
        self.claims: dict[int, Claim] = {}
        """Number -> expectation. Wrong ones are left out."""
        for number, table in _numbered(raw, "expect"):
            if claim := self.problems.read(Claim, table, f"{self.name}: expect {number}"):
                self.claims[number] = claim
        self.decides: dict[int, Decide] = {}
        """Number -> comparison. Wrong ones are left out."""
        for number, table in _numbered(raw, "decide"):
            if decide := self.problems.read(Decide, table, f"{self.name}: decide {number}"):
                self.decides[number] = decide
        if self.decides and self.search:
            what = "a search chooses settings by single seeds; decide between those that it found in a manifest of "
            self.problems.add(self.name, f"expected one of [search] and [[decide]], got both: {what}their own")
        self.report = self._table(raw, Report) or Report()
        self.setting = {
            k: value for k, value in self.setting.items() if base_key(k) in (*CONFIG_KEYS, *Resources.full_keys())
        }

    def _table(self, raw: Mapping[str, Any], kind: type[TableT]) -> TableT | None:
        """Read a table of the file and what ``--set`` gives for it."""
        table, prefix = raw.get(kind.NAME, {}), kind.key("")
        if isinstance(table, Mapping):
            given = {key.removeprefix(prefix): one for key, one in self.setting.items() if key.startswith(prefix)}
            table = {**table, **given}
        return self.problems.read(kind, table, self.name, self.options)

    def _entry(self, kind: EntryKind, number: int, table: Mapping[str, Any], seeds: Sequence[int]) -> Entry:
        """Read an entry. Its ``seeds`` or ``seed`` override ``seeds``, those at the top of the file."""
        kind_of_table = SampleTable if kind == "sample" else EntryTable
        name = table.get("name")
        entry = Entry(kind=kind, number=number, name=name if fits(Name, name) else None, values={})
        where = f"{self.name}: {entry.label}"
        keys = (*kind_of_table.full_keys(), *CONFIG_KEYS, *Resources.full_keys())
        values = self._flatten(table, (*keys, *Published.full_keys()) if kind == "run" else keys, where)
        own = {key: values.pop(key) for key in kind_of_table.full_keys() if key in values}
        head = self.problems.read(kind_of_table, own, where)
        results = {key.rpartition(".")[2]: values.pop(key) for key in Published.full_keys() if key in values}
        published = self.problems.read(Published, results, where) if results else None
        if "seeds" in own and "seed" in values:
            self.problems.add(where, 'expected one of "seed" and "seeds", got both')
        space: dict[str, Distribution] = {}
        if kind == "sample":
            only = {"only": list(head.only)} if isinstance(head, SampleTable) and head.only else {}
            self.samples.append({"name": entry.name, "seeds": list(own.get("seeds", ())), "values": values, **only})
            values, space = self._draw(values, head, where)
        if "seeds" in own or "seed" in values:
            seeds = head.seeds if head else ()
        entry = replace(entry, values=values, seeds=seeds, published=published, space=space)
        if isinstance(head, SampleTable):
            entry = replace(entry, sample_seed=head.seed)
        for problem in problems_of(entry):
            self.problems.add(where, problem)
        return entry

    def _draw(
        self, values: Mapping[str, Any], head: EntryTable | None, where: str
    ) -> tuple[dict[str, Any], dict[str, Distribution]]:
        """Return the values of a ``[[sample]]`` with drawn values for each distribution, and the distributions.

        A wrong distribution is replaced by an empty list.
        """
        written = {k: value for k, value in values.items() if isinstance(value, Mapping) or has_several(k, value)}
        space: dict[str, Distribution] = {}
        for key, value in written.items():
            try:
                if key in Resources.full_keys():
                    raise ValueError(f"{key}: expected one value, got {show(value)} (resources make no other run)")
                space[key] = read_distribution(key, value)
            except ValueError as error:
                self.problems.add(where, str(error))
        if not written:
            self.problems.add(where, "expected at least one key with a list or a distribution, got none")
        count, seed, only = (head.count, head.seed, head.only) if isinstance(head, SampleTable) else (1, 0, ())
        is_right = len(space) == len(written) > 0
        try:
            constraints = [parse_constraint(text) for text in only]
            single = {key: value for key, value in values.items() if key not in written}

            def accepts(setting: dict[str, Any]) -> bool:
                own = {**single, **setting}
                merged = applying({**self.defaults, **own}, own, {})
                return are_met(constraints, merged, lambda: config_of(own, self.defaults))

            is_free = not (only and is_right)
            drawn = [] if not space else draw(space, count, seed) if is_free else draw(space, count, seed, accepts)
        except ValueError as error:
            self.problems.add(where, str(error))
            is_right, drawn = False, []
        if is_right and len(drawn) < count:
            size = None if only else number_of_settings(space)
            which = "all found that meet the constraints in only" if only else "all found"
            most = f"at most {size:,}, the number of different settings" if size else f"at most {len(drawn):,}, {which}"
            self.problems.add(where, f"count: expected {most}, got {count:,}")
        return {**values, **{key: [one[key] for one in drawn] if key in space else [] for key in written}}, space

    def _flatten(self, table: Any, valid: Sequence[str], where: str) -> dict[str, Any]:
        """Return the keys of a table as dotted keys. Unknown keys are reported and left out."""
        flat: dict[str, Any] = {}
        for key, value in self.problems.table(table, where).items():
            found = {key: value}
            if key in (*SECTIONS, "published"):
                inner = self.problems.table(value, f"{where}: {key}")
                found = {f"{key}.{name}": one for name, one in inner.items()}
            for dotted, one in self._opened(found, where):
                if base_key(dotted) not in valid:
                    self._unknown(where, dotted, valid)
                elif dotted in flat:
                    self.problems.add(where, f'key "{dotted}" is given twice')
                else:
                    flat[dotted] = one
        return flat

    def _opened(self, found: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
        """Yield dotted keys, with those inside an open table in place of the table."""
        for key, value in found.items():
            if key in OPEN_TABLES:
                for name, one in self.problems.table(value, f"{where}: {key}").items():
                    yield f"{key}.{name}", one
            else:
                yield key, value

    def _unknown(self, where: str, key: str, valid: Sequence[str]) -> None:
        """Add a line for an unknown key. Some keys belong elsewhere."""
        sections = dict.fromkeys(name.partition(".")[0] for name in valid)
        section = key.partition(".")[0]
        hint = {"seeds": _SEEDS, "count": '; "count" belongs in a [[sample]]'}.get(key.rpartition(".")[2], "")
        if section not in sections:
            hint = {
                "published": "; published results belong in a [[run]]",
                "resources": "; resources belong in [resources] or in an entry",
            }.get(section, hint)
        self.problems.add(where, unknown_key(key, (*sections, *valid), hint))

    def _override(self, text: str) -> None:
        """Read the text of a ``--set``."""
        key, equals, value_text = text.partition("=")
        key, where, value = key.strip(), f"--set {text}", _parse_value(value_text.strip())
        try:
            check_plain(value)
        except ValueError as error:
            self.problems.add(where, str(error))
            return
        if not equals or not key:
            self.problems.add(where, "expected KEY=VALUE, for example --set train.epochs=2")
        elif inner := [one for one in SET_KEYS if one.startswith(f"{key}.")]:
            self.problems.add(where, f'"{key}" is a table, expected one of its keys: {", ".join(inner)}')
        elif key not in SET_KEYS and key.startswith(_FILE_ONLY):
            table, _, name = key.rpartition(".")
            self.problems.add(where, f"--set does not change [{table}]; write {name} = ... there in {self.name}")
        elif base_key(key) not in SET_KEYS and not key.startswith(("policy.", "search.")):
            self._unknown(where, key, SET_KEYS)
        else:
            for one, single in self._opened({key: value}, where):
                self.setting[one], self.options[one] = single, where


def _numbered(raw: Mapping[str, Any], key: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the tables of a list with their numbers, from 1."""
    value = raw.get(key)
    items = enumerate(value, start=1) if isinstance(value, list) else ()
    return [(number, item) for number, item in items if isinstance(item, Mapping)]


def _text(value: Any) -> str:
    """Return a value as a filter has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if list(parsed) == ["value"] else text
