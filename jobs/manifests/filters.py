"""The filters of ``--only`` and ``--exclude``: short conditions on the name, configuration and state of a run.

    arch=gru lr>1          a GRU, and a learning rate above 1
    arch=rnn,gru           either
    name=rnn-*             shell-style pattern
    hidden_size!=1500      the run has the key, with another value
    tag=good               one of its tags (:mod:`seqlm.notes`)

All conditions of one filter must hold. A run without the key (``num_heads`` of an RNN) meets no condition on that key.
"""

import fnmatch
import itertools
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from jobs.spec import RunSpec
from seqlm.config import OPEN_TABLES, RunConfig, base_key, choices_of, valid_keys
from seqlm.errors import UsageError, nearest, nearest_key
from seqlm.naming import listing
from seqlm.notes import Noted, read_notes
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from seqlm.state import KINDS, State

_Item = TypeVar("_Item")

Origin: TypeAlias = Literal["planned", "text", "model", "manifest", "orphaned"]
"""How a run belongs to its study: an entry of the latest manifest, also with ``--set``; an entry with another text or
tokenizer; with another version of its own model; an entry of another manifest; none."""

_CONDITION = re.compile(r"(?P<key>[\w.]+)(?P<operator>!=|>=|<=|=|>|<)(?P<value>[^=<>!]\S*)")
_FORM = "expected conditions KEY=VALUE (or != > >= < <=) with spaces between, for example 'arch=gru lr>1'"
_SPACED = re.compile(r"\s*(!=|>=|<=|=|>|<|,)\s*")
"""An operator or a comma, with the spaces around it, which mean nothing."""
_CUT = "; a shell takes > and < for itself unless the filter is quoted: --only 'lr>0.001'"
_ORDER = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_KEYS = ("name", "id", "fingerprint", *valid_keys(), *(f"resources.{name}" for name in Resources.__dataclass_fields__))
"""Keys of any run. Its facts may have more, such as ``state``."""
_CHOICES = {
    **{key: choices for key in valid_keys() if (choices := choices_of(key))},
    "state": get_args(State),
    "kind": tuple(KINDS),
    "origin": get_args(Origin),
}
"""Key -> its only valid values."""
RESULTS = {
    "val_ppl": "best_val_ppl",
    "train_ppl": "best_train_ppl",
    "test_ppl": "test_ppl",
    "final_val_ppl": "final_val_ppl",
    "final_train_ppl": "final_train_ppl",
    "val_bits_per_byte": "best_val_bits_per_byte",
    "test_bits_per_byte": "test_bits_per_byte",
    "best_epoch": "best_epoch",
    "parameters": "parameters",
    "wall_seconds": "elapsed_seconds",
}
"""Key of a run's result, as in the report's tables -> its field in ``result.json``. ``val_ppl`` of a run that has no
result is the lowest so far; the others are then ``None``."""
HEADS = {"time": "wall_seconds", "bits": "val_bits_per_byte", "ppl": "val_ppl"}
"""Word over a column of a table -> its key, for those that do not resemble each other."""
OBSERVED = ("state", "kind", "origin", "epochs_done", *RESULTS)
"""Keys of what the folder of a run says, not its entry in the manifest."""
NO_SINGLE_RUN = "each condition fits some run, but no run meets all of them"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One ``KEY OPERATOR VALUE`` of a filter."""

    text: str
    """The whole filter, for messages. Empty: the condition is one of a manifest's ``[[exclude]]``."""
    key: str
    operator: str
    values: tuple[str, ...]
    """Alternatives: ``=`` needs one to be equal, ``!=`` none."""

    def holds(self, facts: Mapping[str, Any], own: Collection[str] = ()) -> bool:
        """Whether a run meets the condition. ``own``: the keys of arguments that own models of the study have.

        Raises:
            UsageError: unknown key, or a comparison that does not fit the kind of value.
        """
        key = self._full_key(facts, own)
        if self.operator in _ORDER:
            return self._compares(key, facts.get(key))
        for value in self.values if key in _CHOICES else ():
            if value != "none" and not fnmatch.filter(_CHOICES[key], value):
                expected = f"expected one of {', '.join(_CHOICES[key])}"
                raise self._mistake(f'{key}: {expected}, got "{value}"{nearest(value, _CHOICES[key])}')
        if key not in facts:
            return False
        equal = any(self._equals(key, fact, value) for fact in _values(facts[key]) for value in self.values)
        return equal == (self.operator == "=")

    def why_none(self, runs: Sequence[Mapping[str, Any]], own: Collection[str]) -> str | None:
        """Return which values the runs have, if no run meets the condition. ``None``: a run meets it."""
        if any(self.holds(facts, own) for facts in runs):
            return None
        keys = [self._full_key(facts, own) for facts in runs]
        key = keys[0]
        values = (value for facts, one in zip(runs, keys, strict=True) if one in facts for value in _values(facts[one]))
        found = list(dict.fromkeys("none" if value is None else str(value) for value in values))
        if not found:
            return f"no run has {key}"
        hint = nearest(",".join(self.values), found) if key in ("name", "id") else ""
        return f"the runs have {key} {listing(found)}{hint}"

    def _mistake(self, what: str) -> UsageError:
        return UsageError(f'filter "{self.text}": {what}' if self.text else what)

    def _full_key(self, facts: Mapping[str, Any], own: Collection[str]) -> str:
        """Return the key of a run that is meant, also by its last word.

        A user may call an argument of a model as seqlm calls a key of its own models. A table has one column for both.
        """
        if base_key(self.key) in OPEN_TABLES:
            return self.key
        known = [key for key in dict.fromkeys([*_KEYS, *facts]) if base_key(key) not in OPEN_TABLES]
        candidates = [key for key in known if self.key in (key, key.rpartition(".")[2])]
        arguments = [key for key in own if self.key == key.rpartition(".")[2]]
        if len(candidates) > 1:
            raise self._mistake(f'"{self.key}" could be {" or ".join(candidates)}; write it in full')
        if not candidates and not arguments:
            hint = column_meant(self.key, known)
            others = ", ".join(key for key in known if key not in valid_keys())
            raise self._mistake(
                f'unknown key "{self.key}"{hint} (valid: keys of a run in its manifest, such as arch, and {others})'
            )
        found = [*candidates, *arguments]
        return next((key for key in found if key in facts), found[0])

    def _compares(self, key: str, fact: Any) -> bool:
        try:
            (limit,) = map(float, self.values)
        except ValueError:
            found = ",".join(self.values)
            raise self._mistake(f'expected a number after {self.operator}, got "{found}"') from None
        if isinstance(fact, str | tuple):
            kind = "a text" if isinstance(fact, str) else "a list"
            raise self._mistake(f"{key} is {kind}, {self.operator} compares numbers; use = or !=")
        return fact is not None and bool(_ORDER[self.operator](fact, limit))

    def _equals(self, key: str, fact: Any, value: str) -> bool:
        if fact is None or value == "none":
            return fact is None and value == "none"
        if isinstance(fact, str):
            return fnmatch.fnmatchcase(fact, value) or (key in ("id", "fingerprint") and fact.startswith(value))
        if isinstance(fact, bool):
            if value not in ("true", "false"):
                raise self._mistake(f'{key}: expected true or false, got "{value}"')
            return fact == (value == "true")
        try:
            return bool(float(value) == fact)
        except ValueError:
            raise self._mistake(f'{key}: expected a number, got "{value}"') from None


def _values(fact: Any) -> Sequence[Any]:
    """Return the values of a fact, of which one has to meet a condition. An empty list is as if it were left open."""
    return (fact or (None,)) if isinstance(fact, tuple) else (fact,)


def parse(text: str) -> list[Condition]:
    """Return the conditions of a filter, the text after ``--only`` or ``--exclude``.

    Raises:
        UsageError: the text is empty or not a list of conditions.
    """
    conditions = []
    for word in _SPACED.sub(r"\1", text).split():
        match = _CONDITION.fullmatch(word)
        if match is None or "" in match["value"].split(","):
            cut = _CUT if word.replace(".", "").isidentifier() else ""
            raise UsageError(f'filter "{text}": cannot read "{word}"; {_FORM}{cut}')
        values = tuple(match["value"].split(","))
        conditions.append(Condition(text=text, key=match["key"], operator=match["operator"], values=values))
    if not conditions:
        raise UsageError(f'filter "{text}": is empty; {_FORM}')
    return conditions


def meets(facts: Mapping[str, Any], conditions: Iterable[Condition], own: Collection[str] = ()) -> bool:
    """Whether a run meets every condition. All are evaluated, so that every mistake is found. ``own``: as ``holds``.

    Raises:
        UsageError: as :meth:`Condition.holds`.
    """
    met = [condition.holds(facts, own) for condition in conditions]
    return all(met)


def column_meant(word: str, valid: Sequence[str]) -> str:
    """Return ``; did you mean "..."?`` for an unknown key, which may be the word over a column of a table."""
    head = HEADS.get(word)
    return f'; did you mean "{head}"?' if head in valid else nearest_key(word, valid)


def arguments_in(facts: Iterable[Mapping[str, Any]]) -> Collection[str]:
    """Return the keys of arguments that own models of these runs have, such as ``model.arguments.depth``."""
    return dict.fromkeys(key for one in facts for key in one if base_key(key) in OPEN_TABLES)


def facts_of(
    name: str,
    id: str,  # noqa: A002 - the name of the key in filters
    config: RunConfig | None,
    resources: Resources,
) -> dict[str, Any]:
    """Return the facts of a run that filters use, by dotted key. The caller adds ``state`` and ``kind`` if known."""
    known = {} if config is None else {"fingerprint": config.fingerprint(), **config.by_key()}
    wanted = {f"resources.{key}": value for key, value in asdict(resources).items()}
    return {"name": name, "id": id, **known, **wanted}


def facts_of_spec(spec: RunSpec, folders: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Return the facts of a run of a manifest.

    ``folders`` are those of its study (:meth:`RunDirectory.folders`). A launched run keeps its id.
    """
    run_id = RunDirectory.locate(Path(), spec.name, spec.fingerprint, folders or {}).id
    return facts_of(spec.name, run_id, spec.config, spec.resources)


def select(
    runs: Sequence[_Item],
    only: Sequence[str],
    exclude: Sequence[str],
    facts: Callable[[_Item], Mapping[str, Any]],
    study_dir: Path | None = None,
) -> tuple[list[_Item], str | None]:
    """Return the runs that pass, in their order: they meet every ``only``, and no ``exclude``.

    ``facts`` returns what filters use of a run besides its tags, which are noted in ``study_dir``. The second value is
    one line that says why none of the runs passes.

    Raises:
        UsageError: a filter cannot be read, has an unknown key, compares a text with a number, or has a value
            that is not valid for its key.
        FileError: a note cannot be read.
    """
    if not only and not exclude:
        return list(runs), None  # computing the facts of a thousand runs (fingerprints) takes longer than all the rest
    notes = read_notes(study_dir) if study_dir else {}
    known = [{**(one := facts(run)), "tag": notes.get(str(one.get("id")), Noted()).tags} for run in runs]
    wanted = [condition for text in only for condition in parse(text)]
    unwanted = [parse(text) for text in exclude]
    own = arguments_in(known)
    is_chosen = [meets(one, wanted, own) for one in known]
    is_left_out = [[meets(one, conditions, own) for conditions in unwanted] for one in known]
    passes = [chosen and not any(cuts) for chosen, cuts in zip(is_chosen, is_left_out, strict=True)]
    if not runs or any(passes):
        return list(itertools.compress(runs, passes)), None
    given = [f'--only "{text}"' for text in only] + [f'--exclude "{text}"' for text in exclude]
    if any(is_chosen):
        why = "--exclude drops every run" + (" that --only chooses" if only else "")
    else:
        why = "; ".join(found for one in wanted if (found := one.why_none(known, own))) or NO_SINGLE_RUN
    return [], f"no run passes {' '.join(given)}: {why}"


def asks_for_results(filters: Sequence[str]) -> bool:
    """Whether a filter uses what the folders of runs say: their state, or their results.

    Raises:
        UsageError: a filter cannot be read.
    """
    return any(condition.key in OBSERVED for text in filters for condition in parse(text))


def asks_for_identity(filters: Sequence[str]) -> bool:
    """Whether a filter uses the id, fingerprint or tags of runs, which depend on the content of their text.

    Raises:
        UsageError: a filter cannot be read.
    """
    return any(condition.key in ("id", "fingerprint", "tag") for text in filters for condition in parse(text))
