"""The filters of ``--only`` and ``--exclude``: short conditions on the name, configuration and state of a run.

    arch=gru lr>1          a GRU, and a learning rate above 1
    arch=rnn,gru           either
    name=rnn-*             shell-style pattern
    hidden_size!=1500      has the key, with another value

All conditions of one filter must hold. A run without the key (``num_heads`` of an RNN) meets no condition on it.
"""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.spec import Resources, RunSpec
from seqlm.config import RunConfig, valid_keys
from seqlm.errors import UsageError, nearest
from seqlm.rundir import FINGERPRINT_DIGITS, slugify

_CONDITION = re.compile(r"(?P<key>[\w.]+)(?P<operator>!=|>=|<=|=|>|<)(?P<value>[^=<>!]\S*)")
_FORM = "valid are conditions KEY=VALUE (or != > >= < <=) with spaces between, for example 'arch=gru lr>1'"
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_KEYS = ("name", "id", "fingerprint", *valid_keys(), *(f"resources.{name}" for name in Resources.__dataclass_fields__))
"""Keys that may be asked of any run; facts may hold more, such as ``state``."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One ``KEY OPERATOR VALUE`` of a filter."""

    text: str
    key: str
    operator: str
    values: tuple[str, ...]
    """Alternatives, of which ``=`` needs one and ``!=`` none."""

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether a run meets the condition.

        Raises:
            UsageError: unknown key, or a comparison that does not fit the kind of value.
        """
        key = self._full_key(facts)
        if self.operator in _ORDER:
            return self._compares(key, facts.get(key))
        if key not in facts:
            return False
        equal = any(self._equals(key, facts[key], value) for value in self.values)
        return equal == (self.operator == "=")

    def _full_key(self, facts: Mapping[str, Any]) -> str:
        known = list(dict.fromkeys([*_KEYS, *facts]))
        if self.key in known:
            return self.key
        candidates = [key for key in known if key.rpartition(".")[2] == self.key]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise UsageError(f'filter "{self.text}": "{self.key}" could be {" or ".join(candidates)}; write it in full')
        short = [key.rpartition(".")[2] for key in known]
        hint = nearest(self.key, [*short, *known])
        raise UsageError(f'filter "{self.text}": unknown key "{self.key}"{hint} (valid: {", ".join(known)})')

    def _compares(self, key: str, fact: Any) -> bool:
        try:
            (limit,) = map(_number, self.values)
        except ValueError:
            found = ",".join(self.values)
            raise UsageError(
                f'filter "{self.text}": found "{found}" after {self.operator}, valid is a number'
            ) from None
        if isinstance(fact, str):
            raise UsageError(f'filter "{self.text}": {key} is a text, {self.operator} compares numbers; use = or !=')
        return fact is not None and _ORDER[self.operator](fact, limit)

    def _equals(self, key: str, fact: Any, value: str) -> bool:
        if fact is None:
            return value == "none"
        if isinstance(fact, str):
            return fnmatch.fnmatchcase(fact, value) or (key == "fingerprint" and fact.startswith(value))
        if value == "none":
            return False
        try:
            return bool(_number(value) == fact)
        except ValueError:
            raise UsageError(f'filter "{self.text}": {key} is a number, found "{value}"') from None


def _number(text: str) -> float:
    """A number as typed; whole ones stay exact, since a seed may be longer than a float can hold."""
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read the text after ``--only`` or ``--exclude``.

        Raises:
            UsageError: the text is empty or no list of conditions.
        """
        conditions = []
        for word in text.split():
            match = _CONDITION.fullmatch(word)
            if match is None or "" in match["value"].split(","):
                raise UsageError(f'filter "{text}": cannot read "{word}"; {_FORM}')
            values = tuple(match["value"].split(","))
            conditions.append(Condition(text=text, key=match["key"], operator=match["operator"], values=values))
        if not conditions:
            raise UsageError(f'filter "{text}": is empty; {_FORM}')
        return cls(tuple(conditions))

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Whether a run with these facts meets every condition; each is evaluated, so that none hides a mistake.

        Raises:
            UsageError: unknown key, or a comparison that does not fit the kind of value.
        """
        met = [condition.holds(facts) for condition in self.conditions]
        return all(met)


def matches(facts: Mapping[str, Any], only: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a run passes: some ``only`` matches it (or there is none) and no ``exclude`` does.

    Raises:
        UsageError: a filter cannot be read, has an unknown key, or compares what cannot be compared.
    """
    wanted = [Filter.parse(text).matches(facts) for text in only]
    unwanted = [Filter.parse(text).matches(facts) for text in exclude]
    return (any(wanted) or not only) and not any(unwanted)


def asks_for_identity(filters: Sequence[str]) -> bool:
    """Whether a filter asks for the id or the fingerprint of runs, which depend on what their text says.

    Raises:
        UsageError: a filter cannot be read.
    """
    return any(
        condition.key in ("id", "fingerprint") for text in filters for condition in Filter.parse(text).conditions
    )


def select(specs: Sequence[RunSpec], only: Sequence[str], exclude: Sequence[str]) -> list[RunSpec]:
    """The runs that pass, in their order; possibly none.

    Raises:
        UsageError: as :func:`matches`.
    """
    if not only and not exclude:
        return list(specs)  # the facts of a thousand runs take longer than the manifest they come from
    return [spec for spec in specs if matches(facts_of_spec(spec), only, exclude)]


def facts_of(
    name: str,
    id: str,  # noqa: A002 - the user's word for it
    config: RunConfig | None,
    resources: Resources,
) -> dict[str, Any]:
    """What can be asked of a run, as a flat dict of dotted keys. Add ``state`` or ``kind`` where they are known."""
    facts: dict[str, Any] = {"name": name, "id": id}
    if config is not None:
        facts["fingerprint"] = config.fingerprint()
        for section, value in config.to_dict().items():
            facts |= (
                {f"{section}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {section: value}
            )
    return facts | {f"resources.{key}": value for key, value in asdict(resources).items()}


def facts_of_spec(spec: RunSpec) -> dict[str, Any]:
    """What can be asked of a run of a manifest."""
    run_id = f"{slugify(spec.name)}-{spec.fingerprint[:FINGERPRINT_DIGITS]}"
    return facts_of(spec.name, run_id, spec.config, spec.resources)
