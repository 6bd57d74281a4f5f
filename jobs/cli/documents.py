"""The fields of the documents of ``--json``: the tables of ``documents.md``, from which the page json.md is made."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.cli.arguments import Arguments
from seqlm.errors import UsageError, nearest
from seqlm.reading import read_bytes

TABLES = Path(__file__).with_name("documents.md")
ENVELOPE = "Document"
"""Title of the table of what every document has."""
SAME = {
    "run": ("status",),
    "retry": ("status",),
    "run --dry-run": ("plan",),
    "retry --no-wait": ("run --no-wait",),
    "behaviour --no-wait": ("run --no-wait",),
    "wait": ("status", "wait"),
}
"""Document -> the tables that it has, if it is not one of its own name."""
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| (.*) \|$", re.MULTILINE)
_KINDS = {"text": "string", "list": "array"}
"""Type in the tables -> the word of JSON Schema for it, if that is another one."""

Fields = Mapping[str, tuple[str, str]]
"""Path of a field -> its type and its meaning. ``runs[].name`` is the field of each object in the list ``runs``."""


def tables() -> dict[str, Fields]:
    """Return the table of each document, by the name of its command."""
    sections = re.split(r"^#+ ", read_bytes(TABLES).decode(), flags=re.MULTILINE)
    found: dict[str, Fields] = {}
    for section in sections:
        title, _, text = section.partition("\n")
        rows = {path: (kind, meaning) for path, kind, meaning in _ROW.findall(text)}
        if rows:
            found[title.strip("`")] = rows
    return found


def fields_of(document: str) -> Fields:
    """Return the fields of the data of a document.

    Raises:
        UsageError: there is no such document.
    """
    every = tables()
    names = SAME.get(document, (document,))
    valid = [name for name in (*every, *SAME) if name != ENVELOPE]
    if not set(names) <= every.keys() - {ENVELOPE}:
        raise UsageError(f'no document "{document}"{nearest(document, valid)} (valid: {", ".join(sorted(valid))})')
    return {path: field for name in names for path, field in every[name].items()}


def schema_of(document: str) -> dict[str, Any]:
    """Return the JSON Schema of a document.

    Raises:
        UsageError: there is no such document.
    """
    data = {f"data.{path}": field for path, field in fields_of(document).items()}
    schema = _object({**tables()[ENVELOPE], **data})
    title = f"seqlm {document} --json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def _object(fields: Fields) -> dict[str, Any]:
    """Return the schema of an object with these fields. None is required: some depend on options of the command."""
    heads = dict.fromkeys(re.split(r"\[\]\.|\.", path)[0] for path in fields)
    return {"type": "object", "properties": {head: _field(head, fields) for head in heads}}


def _field(head: str, fields: Fields) -> dict[str, Any]:
    """Return the schema of one field of an object."""
    below = {path.removeprefix(f"{head}."): field for path, field in fields.items() if path.startswith(f"{head}.")}
    items = {path.removeprefix(f"{head}[]."): field for path, field in fields.items() if path.startswith(f"{head}[].")}
    kind, meaning = fields.get(head, ("list" if items else "object", ""))
    kinds = [_KINDS.get(word, word) for word in kind.split(" or ")]
    found: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds}
    if meaning:
        found["description"] = meaning
    if below:
        found["properties"] = _object(below)["properties"]
    if items:
        found["items"] = _object(items)
    return found


def document_of(arguments: Arguments) -> str:
    """Return the name of the document of a command."""
    with_option = {"--machine": arguments.machine, "--dry-run": arguments.dry_run, "--no-wait": arguments.no_wait}
    every = {*tables(), *SAME}
    names = [f"{arguments.command} {option}" for option, is_given in with_option.items() if is_given]
    return next((name for name in names if name in every), arguments.command)


# -- fewer fields -----------------------------------------------------------------------------------------------------


def check_names(document: str, names: Iterable[str]) -> None:
    """Check the words of ``--fields``, before the command does anything.

    Raises:
        UsageError: a word is no field of an object in a list of the document, such as a run.
    """
    found = [re.fullmatch(r"\w+\[\]\.(\w+)", path) for path in fields_of(document)]
    valid = list(dict.fromkeys(match[1] for match in found if match))
    if not valid:
        raise UsageError(f"--fields: the document of {document} has no list of runs or the like; leave --fields out")
    for name in names:
        if name not in valid:
            raise UsageError(f'--fields: unknown field "{name}"{nearest(name, valid)} (valid: {", ".join(valid)})')


def with_fields(data: Any, names: Iterable[str]) -> Any:
    """Return the data of a document with these fields alone in the objects of its lists."""
    wanted = set(names)
    if not isinstance(data, dict):
        return data
    return {
        key: [{name: one[name] for name in one if name in wanted} if isinstance(one, dict) else one for one in value]
        if isinstance(value, list | tuple)
        else value
        for key, value in data.items()
    }
