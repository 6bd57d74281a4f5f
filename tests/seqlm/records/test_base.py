"""The reader of records: what was written comes back, and whatever else a file holds is one line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqlm.errors import DamagedFileError, FileError
from seqlm.records.base import Record
from seqlm.resources import Resources
from tests.seqlm.records.values import JSON, classes, records

ONE_FOLDER = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    FILE: ClassVar[str] = "whole.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"last"})

    words: tuple[str, ...] = ()
    pair: tuple[int, int] | None = None
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    by_name: Mapping[str, Part] | None = None
    resources: Resources = field(default_factory=Resources)
    share: float | None = None
    either: Part | str = ""
    more: Any = None
    last: str | None = None


KINDS = pytest.mark.parametrize("kind", [Whole, *classes()], ids=lambda kind: kind.__name__)


@KINDS
@ONE_FOLDER
@given(data=st.data())
def test_a_record_that_was_written_is_read_as_it_was(kind: type[Record], tmp_path: Path, data: st.DataObject) -> None:
    record = data.draw(records(kind))
    assert record.write(tmp_path)
    assert kind.read(tmp_path) == record


@KINDS
@ONE_FOLDER
@given(data=st.data())
def test_a_file_of_anything_else_is_a_record_or_one_line(
    kind: type[Record], tmp_path: Path, data: st.DataObject
) -> None:
    document = data.draw(records(kind)).to_plain()
    key = data.draw(st.sampled_from(sorted(document)))
    changed = json.dumps({**document, key: data.draw(JSON)}).encode()
    cut = changed[: data.draw(st.integers(0, len(changed)))]
    other = json.dumps(data.draw(JSON)).encode()
    path = tmp_path / kind.FILE
    path.write_bytes(data.draw(st.sampled_from([changed, cut, other]) | st.binary(max_size=8)))
    lines: list[str] = []
    found = kind.read(tmp_path, lines.append)
    if found is not None:
        assert not lines
        assert kind.from_plain(found.to_plain(), path) == found, "each value is of the type of its field"
        return
    (line,) = lines
    assert line.startswith(f"{path} is damaged (")
    assert "\n" not in line
    with pytest.raises(DamagedFileError):
        kind.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"words": "a"}', "words: "),
        ('{"words": ["a", 1]}', "words: "),
        ('{"pair": [1]}', "pair: "),
        ('{"part": {"number": "2"}}', "part.number: "),
        ('{"part": {"number": NaN}}', "part.number: "),
        ('{"parts": [{}, {"number": true}]}', "parts[1].number: "),
        ('{"by_name": {"a": {"number": 0.5}}}', "by_name.a.number: "),
        ('{"resources": {"ranks": "2"}}', 'resources.ranks: expected a positive whole number, got "2"'),
        ('{"resources": {"ranks": 2, "gpus": 0.5}}', "resources.gpus: "),
        ('{"share": 1e400, "words": null}', "words: "),
        ('{"more": ' + "[" * 5000 + "]" * 5000 + "}", "nested"),
        ('{"more": ' + "9" * 30 + "}", "30 digits"),
        ("", "empty"),
        ('{"words": ["a"', "line 1, column 15"),
        (b'{"more": "\xff"}', "UTF-8"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_damage_is_one_line_that_names_the_field_or_the_place(content: str | bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / Whole.FILE
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedFileError) as damage:
        Whole.read(tmp_path)
    assert named in str(damage.value)
    assert len(str(damage.value).splitlines()) == 1


def test_unknown_keys_are_ignored_and_missing_ones_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / Whole.FILE).write_text('{"later": [1], "part": {"later": 2}, "resources": {"ranks": 2, "later": 3}}')
    assert Whole.read(tmp_path) == Whole(part=Part(), resources=Resources(ranks=2))


def test_a_number_that_is_not_finite_is_written_as_none(tmp_path: Path) -> None:
    Whole(share=float("nan")).write(tmp_path)
    assert Whole.read(tmp_path) == Whole()


def test_no_file_is_none_and_one_that_cannot_be_read_is_an_error_or_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    assert Whole.read(tmp_path, lines.append) is None
    assert not lines
    (tmp_path / Whole.FILE).mkdir()
    with pytest.raises(FileError):
        Whole.read(tmp_path)
    assert Whole.read(tmp_path, lines.append) is None
    assert len(lines) == 1


def test_a_record_that_is_written_once_is_not_replaced(tmp_path: Path) -> None:
    assert Whole(words=("a",)).write(tmp_path, once=True)
    assert not Whole(words=("b",)).write(tmp_path, once=True)
    assert Whole.read(tmp_path) == Whole(words=("a",))
    assert Whole(words=("b",)).write(tmp_path)
    assert Whole.read(tmp_path) == Whole(words=("b",))


def test_the_file_lacks_optional_fields_that_are_none(tmp_path: Path) -> None:
    assert "last" not in Whole().to_plain()
    assert Whole(last="x").to_plain()["last"] == "x"
    assert Whole().to_plain()["part"] is None
