"""Read a manifest's file: TOML, YAML or JSON text to plain data, with one line for each problem of the text."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqlm.errors import ManifestError, nearest, printable
from seqlm.reading import exists, is_file, is_folder, listed

MANIFEST_SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MAX_DEPTH = 20
MAX_VALUES = 1_000_000
MAX_WHOLE_NUMBER = 10**300
MAX_BYTES = 16 * 2**20


def find_manifest(argument: str) -> Path:
    """Return the path of a manifest given by its path, or by the name of one that comes with seqlm: ``quickstart``."""
    if argument.isidentifier() and not exists(Path(argument)):
        own = Path(__file__).with_name(f"{argument}.toml")
        if is_file(own):
            return own
    return Path(argument)


def read_manifest_file(path: Path) -> dict[str, Any]:
    """Return the manifest's top-level table as plain data.

    Raises:
        ManifestError: with one line; no such file, not UTF-8, not TOML (YAML, JSON), a key given twice, not a table.
    """
    if path.suffix.lower() not in MANIFEST_SUFFIXES and exists(path) and not is_folder(path):
        hint = nearest(path.suffix, MANIFEST_SUFFIXES)
        valid = ", ".join(MANIFEST_SUFFIXES)
        raise _refusal(f'{path}: expected a suffix {valid}, got "{path.suffix}"{hint}')
    return _read_table(path, path.suffix.lower(), "a table of [study], [[run]] and so on")


def read_toml_file(path: Path) -> dict[str, Any]:
    """Read another TOML file, with any suffix, as strictly as a manifest.

    Raises:
        ManifestError: with one line.
    """
    return _read_table(path, ".toml", "a table")


def _read_table(path: Path, suffix: str, valid: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise _refusal(f"{path}: too large, expected at most {MAX_BYTES // 2**20} MiB")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        # Hint at the manifest in the same folder whose name, without its suffix, is closest.
        there = listed(path.parent)
        by_stem = {one.stem: one for one in there if one.suffix.lower() in MANIFEST_SUFFIXES and is_file(one)}
        stems = difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.5)
        hint = f'; did you mean "{by_stem[stems[0]]}"?' if stems else ""
        raise _refusal(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise _refusal(f"{path}: expected a manifest file (.toml, .yaml, .yml, .json), got a folder") from None
    except OSError as error:
        raise _refusal(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _refusal(f"{path}: not UTF-8 text (byte {error.start})") from None
    except ValueError as error:  # a NUL in the path
        raise _refusal(f"{path}: cannot be read: {error}") from None
    try:
        data = {".toml": _read_toml, ".json": _read_json}.get(suffix, _read_yaml)(text)
        data = {} if data is None else data
        check_plain(data)
    except RecursionError:
        raise _refusal(f"{path.name}: nested too deeply") from None
    except ValueError as error:
        raise _refusal(f"{path.name}: {error}") from None
    if not isinstance(data, dict):
        raise _refusal(f"{path.name}: expected {valid}, got {show(data)}")
    return data


def _refusal(text: str) -> ManifestError:
    return ManifestError([one_line(text)])


def show(value: Any) -> str:
    """Return a value as JSON in one line of at most 100 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def one_line(text: str) -> str:
    """Return a text with line breaks and control characters escaped."""
    return printable(text).replace("\t", "\\t")


def check_plain(data: Any) -> None:
    """Check that data is safe to process further.

    Raises:
        ValueError: a key is not a text or not printable, data is nested too deeply or too large, a number exceeds
            a float, or a text has a lone surrogate.
    """
    seen = 0
    pending: list[tuple[Any, int]] = [(data, 0)]
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested too deeply, expected at most {MAX_DEPTH} levels")
        if seen > MAX_VALUES:
            raise ValueError(f"too large, expected at most {MAX_VALUES:,} values")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"expected a text as key, got {show(key)} (write it in quotes)")
                if not key.isprintable():
                    raise ValueError(f"expected keys without control characters, got {json.dumps(key)}")
                pending.append((inner, depth + 1))
        elif isinstance(value, list | tuple):
            pending.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER:
            raise ValueError("expected numbers of at most 300 digits, got a longer one")
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"expected text without lone surrogates, got {json.dumps(value)}")


def _read_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        # The parser does not name a duplicate key, so show the line.
        place = re.search(r"line (\d+)", str(error))
        lines = text.splitlines()
        number = int(place[1]) if place else len(lines)
        line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        raise ValueError(f"not TOML: {error}: {line}" if line else f"not TOML: {error}") from None


def _read_json(text: str) -> Any:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"key {show(key)} is given twice in one table")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=table)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from None


_NUMBER = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("merge", r"<<", "<"),
)
"""Of YAML 1.2: the tag of a scalar without quotes, its pattern, and its possible first characters."""


def _read_yaml(text: str) -> Any:
    import yaml  # slow to import, and needed for YAML only

    class Loader(yaml.SafeLoader):
        """Safe loader with the scalars of YAML 1.2: ``1e-4`` is a number; dates, ``yes`` and ``1:30`` are text."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - overrides an attribute of PyYAML

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for (_, name), count in keys.items():
                if count > 1:
                    problem = f"key {show(name)} is given twice in one table"
                    raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
            return node

    for tag, pattern, first in _SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except (AttributeError, LookupError, TypeError):
        raise ValueError("not YAML: a !!tag that does not fit its value") from None
