"""Read a manifest's file: TOML to plain data, with one line for each problem of the text; and its ``[backend.*]``."""

import contextlib
import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.registry import BACKENDS, backend_class
from seqlm.errors import ConfigError, ManifestError
from seqlm.schema import Table, TableT, fields_of, one_line, read, show, unknown_key

MAX_DEPTH = 20
MAX_WHOLE_NUMBER = 10**300
MAX_BYTES = 16 * 2**20
MARKED, INDENT = 90, "  "
"""Most characters of a line that an error of TOML shows, and what precedes them."""
_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")


class Problems:
    """Lines about problems of a file, to be shown together: in the order of ``add``, each once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}
        self.unmatched: list[str] = []
        """Lines about what matches no run. They count only without other problems, which may be the reason."""

    @property
    def lines(self) -> list[str]:
        return list(self._lines) or list(dict.fromkeys(self.unmatched))

    def about(self, where: str) -> bool:
        """Whether there is a line about one place."""
        return any(line.startswith(f"{where}: ") for line in self._lines)

    def add(self, where: str, what: str) -> None:
        self._lines[one_line(f"{where}: {what}")] = None

    def add_unmatched(self, where: str, what: str) -> None:
        self.unmatched.append(one_line(f"{where}: {what}"))

    def table(self, value: Any, where: str) -> Mapping[str, Any]:
        """Return a value that is a table; else add a line, and return an empty table."""
        if isinstance(value, Mapping):
            return value
        self.add(where, f"expected a table, got {show(value)}")
        return {}

    def read(
        self, kind: type[TableT], raw: Any, where: str, places: Mapping[str, str] | None = None, **options: Any
    ) -> TableT | None:
        """Return the table that :func:`seqlm.schema.read` makes. ``None``: it has problems, whose lines are added.

        ``places`` are those of keys that stand elsewhere than ``where``.
        """
        try:
            return read(kind, raw, **options)
        except ConfigError as error:
            for line in error.problems:
                self.add((places or {}).get(key_of(line), where), line)
        return None


def key_of(line: str) -> str:
    """Return the key that a line is about, in full."""
    return line.removeprefix('unknown key "').partition(":")[0].partition('"')[0]


def table_of(backend: str) -> type[Table]:
    """Return the dataclass of a backend's table."""
    found: type[Table] = backend_class(backend).TABLE
    return found


def check_table(backend: str, table: Any, where: str, problems: Problems, *, prefix: str) -> None:
    """Check one backend's table; ``prefix`` precedes its keys in messages, such as ``backend.ray.``."""

    def unknown(key: str) -> str:
        """Compare a key with those of all backends, unless there is one only."""
        prefixes = {name: f"backend.{name}." for name in BACKENDS} if prefix else {backend: ""}
        valid = [f"{start}{one}" for name, start in prefixes.items() for one in fields_of(table_of(name))]
        return unknown_key(f"{prefix}{key}", valid)

    problems.read(table_of(backend), table, where, prefix=prefix, unknown=unknown)


def check_tables(tables: Any, where: str, problems: Problems) -> dict[str, Mapping[str, Any]]:
    """Check ``[backend.*]`` of a file, and return the table of each backend as written."""
    found = {}
    for name, table in problems.table(tables, f"{where}: backend").items():
        if name in BACKENDS:
            found[name] = table
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.add(where, unknown_key(f"backend.{name}", [f"backend.{known}" for known in BACKENDS]))
    return found


def find_manifest(argument: str) -> Path:
    """Return the path of a manifest given by its path, or by the name of one that comes with seqlm: ``quickstart``."""
    given = Path(argument)
    own = Path(__file__).with_name(f"{argument}.toml") if argument.isidentifier() else given
    for path in (given, own):
        with contextlib.suppress(OSError, ValueError):
            path.stat()
            return path
    return given


def read_toml_file(path: Path) -> dict[str, Any]:
    """Return the top-level table of a manifest, or of another TOML file, as plain data.

    Raises:
        ManifestError: with one line; no such file, no TOML file, not UTF-8.
    """
    marked = ""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"too large, expected at most {MAX_BYTES // 2**20} MiB")
        data = tomllib.loads(raw.decode("utf-8-sig"))
        check_plain(data)
    except FileNotFoundError:
        # Hint at the manifest in the same folder whose name, without its suffix, is closest.
        there: list[str] = []
        with contextlib.suppress(OSError):
            there = os.listdir(path.parent)  # noqa: PTH208 -- names alone
        by_stem = {name.removesuffix(".toml"): path.with_name(name) for name in there if name.endswith(".toml")}
        stems = difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.5)
        what = "no such file" + (f'; did you mean "{by_stem[stems[0]]}"?' if stems else "")
    except IsADirectoryError:
        what = "expected a manifest (.toml), got a folder"
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
    except tomllib.TOMLDecodeError as error:
        what = f"not TOML: {error}"
        marked = _marked(raw.decode("utf-8-sig"), str(error))
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
    except RecursionError:
        what = "nested too deeply"
    except ValueError as error:  # of the text, or a NUL in the path
        what = str(error)
    else:
        return data
    raise ManifestError([f"{one_line(f'{path}: {what}')}{marked}"])


def _marked(text: str, error: str) -> str:
    """Return the line of a text that an error of TOML names, and a line that marks the column. Long lines are cut."""
    place = _PLACE.search(error)
    lines = (text if place else text.rstrip()).split("\n")
    number, column = (int(place[1]), int(place[2])) if place else (len(lines), len(lines[-1]) + 1)
    line = "".join(char if char.isprintable() else " " for char in lines[number - 1])
    start = max(0, column - MARKED // 2)
    return f"\n{INDENT}{line[start : start + MARKED].rstrip()}\n{INDENT}{' ' * (column - 1 - start)}^"


def check_plain(data: Any, depth: int = 0) -> None:
    """Check that data is safe to process further.

    Raises:
        ValueError: it is nested too deeply, a number exceeds a float, or a text has a lone surrogate.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested too deeply, expected at most {MAX_DEPTH} levels")
    if isinstance(data, Mapping | list):
        for inner in data.values() if isinstance(data, Mapping) else data:
            check_plain(inner, depth + 1)
    elif isinstance(data, int) and abs(data) > MAX_WHOLE_NUMBER:
        raise ValueError("expected numbers of at most 300 digits, got a longer one")
    elif isinstance(data, str) and any("\ud800" <= letter <= "\udfff" for letter in data):
        raise ValueError(f"expected text without lone surrogates, got {json.dumps(data)}")
