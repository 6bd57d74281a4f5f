"""The schema layer: what a type accepts, with pydantic as the judge, and what a table says of wrong data."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError

from seqlm.errors import ConfigError
from seqlm.schema import Count, Positive, Section, Table, Valid, Value, fits, read

KINDS: tuple[Any, ...] = (
    *(int, float, str, bool, list, dict, int | None, Literal["a", "b"], int | Literal["unlimited"]),
    *(list[int], tuple[float, ...], dict[str, int], Mapping[str, list[str]], list[str | None], Value | list[Value]),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 1.0, 2.5, math.nan, math.inf, 10**400, "", "a", "unlimited", "1", [], [1], [1.5], ["a"]),
    *([None], [True], [[1]], {}, {"a": 1}, {"a": "b"}, {"a": ["b"]}, {"a": None}, {"a": 1.0}),
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_type_accepts_what_pydantic_accepts(kind: Any) -> None:
    judge = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    for value in VALUES:
        try:
            judge.validate_python(tuple(value) if kind == tuple[float, ...] and isinstance(value, list) else value)
        except (ValidationError, OverflowError):
            assert not fits(kind, value), value
        else:
            assert fits(kind, value), value


@dataclass(frozen=True, kw_only=True)
class Pair(Section):
    NAME = "pair"

    low: Positive
    high: Positive = 2.0
    steps: Annotated[tuple[Count, ...], Valid("a list of steps", least=1, ascending=True)] | None = None

    def _conditions(self) -> Iterator[str]:
        if self.low > self.high:
            yield f"pair.low: expected at most pair.high = {self.high}, got {self.low}"


def problems(raw: Any, kind: type[Table] = Pair) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(kind, raw)
    return caught.value.problems


def test_all_that_is_wrong_comes_at_once_and_a_condition_only_if_its_values_are_right() -> None:
    assert problems({"low": 3, "steps": [2, 1], "hihg": 1}) == [
        "pair.steps: expected a list of steps, got [2, 1]",
        'unknown key "pair.hihg"; did you mean "pair.high"? (valid in pair: high, low, steps)',
        "pair.low: expected at most pair.high = 2.0, got 3.0",
    ]
    assert len(problems({"low": 3, "hig": 1})) == 2, "a name within that of another key hides nothing about it"
    assert problems({"low": 3, "high": "1"}) == [
        'pair.high: expected a positive finite number, got "1"; remove the quotes'
    ]
    assert problems({"high": 0}) == [
        "pair.high: expected a positive finite number, got 0",
        "pair.low: missing, expected a positive finite number",
    ]
    assert problems(3) == ["pair: expected a table, got 3"]


def test_a_table_checks_itself_however_it_is_made() -> None:
    made = Pair(low=1, steps=[1, 2])  # type: ignore[arg-type] # as data from a file has it
    assert (made.low, type(made.low), made.steps) == (1.0, float, (1, 2))
    assert read(Pair, made.to_dict()) == made
    with pytest.raises(ConfigError, match=r"pair\.high: expected a positive finite number, got nan"):
        Pair(low=1, high=math.nan)
