"""The document of ``--json``: what a command has found, why it failed, and what to do next."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
INTERRUPTED = "interrupted"
"""Kind of error: Ctrl-C, SIGTERM or a closed terminal."""
KINDS = {
    "runs": "a run failed, was cancelled or waits; `problems` has a line for each",
    "budget": "runs wait because the budget of the study is spent",
    "unfinished": "`wait` ended before the runs",
    "findings": "`doctor` or `check-model` found a fault",
    "refused": "`run` would refuse this plan",
    "parts": "a part of the request failed; `problems` has a line for each",
    INTERRUPTED: "Ctrl-C, SIGTERM or a closed terminal",
}
"""Kinds of error besides those of :mod:`seqlm.errors`."""
_FORMS = (
    re.compile(r'unknown (?P<what>\w+) "(?P<got>[^"]*)"'),
    re.compile(r"(?P<key>[\w.-]+): missing, expected (?P<expected>.+)"),
    re.compile(r"(?:argument (?P<option>\S+): )?(?:(?P<key>[\w.-]+): )?expected (?P<expected>.+), got (?P<got>.+)"),
    re.compile(r"unrecognized arguments: (?P<got>\S[^\s=]*)"),
    re.compile(r'has no run "(?P<got>[^"]*)"'),
    re.compile(r"(?P<got>[^:]+): (?:no such file|expected a study's folder)"),
)
"""The forms of messages about something wrong: what was found, and what is expected in its place."""
_SUGGESTION = re.compile(r'; did you mean "(?P<word>[^"]*)"(?: = [^?]*)?\?')
_VALID = re.compile(r" \((?:see|valid)[ :].*")
"""The list of what is valid, or where that is, at the end of a message."""
_HINT = re.compile(r"; (?=[a-z\"`])| \((?:see|valid)[ :]")
"""Where a hint begins, behind what was found."""


class Step(NamedTuple):
    """Something to do next."""

    command: str
    """A line for a shell."""
    why: str


def problem_of(line: str, place: str | None = None) -> dict[str, Any]:
    """Return a line about something wrong in its parts. ``place`` is what it is about, if the caller knows that."""
    suggestion = _SUGGESTION.search(line)
    found = next((match for form in _FORMS if (match := form.search(line))), None)
    parts = {} if found is None else found.groupdict()
    got = parts.get("got")
    if got is not None:
        got = _HINT.split(got)[0].strip()
        got = got[1:-1] if len(got) > 1 and got[0] == got[-1] == '"' else got
    key = parts.get("key") or parts.get("option")
    if parts.get("what") == "key":
        key = got
    before = "" if found is None else line[: found.start()].rstrip(": ")
    return {
        "message": line,
        "place": place or before or None,
        "key": key,
        "expected": parts.get("expected"),
        "got": got,
        "suggestion": suggestion["word"] if suggestion else None,
    }


def without_list(line: str) -> str:
    """Return a message without the list of what is valid."""
    return _VALID.sub("", line)


def error_of(code: int, kind: str, message: str, problems: Iterable[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return the ``error`` of a document. ``problems``: those of each line of the message, if they are not given."""
    lines = (line for line in message.split("\n") if not line.startswith(" "))  # such a line belongs to the one before
    found = map(problem_of, lines) if problems is None else problems
    return {"code": code, "kind": kind, "message": message, "problems": [*found]}


def outcome_of(data: Any, code: int) -> dict[str, Any] | None:
    """Return the ``error`` of a command that did what it could and has not exit code 0. ``None``: it has 0."""
    if code == 0:
        return None
    data = data if isinstance(data, Mapping) else {}
    if data.get("refused"):
        return error_of(code, "refused", str(data["refused"]))
    if "is_over" in data:
        return error_of(code, "unfinished", "runs go on")
    items = [one for value in data.values() if isinstance(value, Sequence) for one in value if isinstance(one, Mapping)]
    if findings := [one for one in items if one.get("level") == "bad"]:
        lines = [f"{one['subject']}: {one['text']}" for one in findings]
        return error_of(code, "findings", "\n".join(lines))
    if parts := [one for one in items if one.get("problem")]:
        problems = [problem_of(str(one["problem"]), one.get("name") or one.get("path")) for one in parts]
        return error_of(code, "parts", "\n".join(one["message"] for one in problems), problems)
    states = ("failed", "cancelled", "pending", "missing", "gone")
    bad = [one for one in items if one.get("state") in states]
    waits = bool(bad) and all(one["state"] == "pending" for one in bad) and is_spent(data)
    problems = [
        problem_of(f"{one['name']}: {one['state']}: {one['reason'] or 'no reason'}", one["name"]) for one in bad
    ]
    message = f"{len(bad)} of {len(items)} runs are not done" if bad else "not everything was possible; see stderr"
    return error_of(code, "budget" if waits else "runs" if bad else "parts", message, problems)


def is_spent(data: Mapping[str, Any]) -> bool:
    """Return whether the budget in the document of ``status`` is spent."""
    return any(one["spent"] >= one["limit"] for one in (data.get("budget") or {}).values())


def print_document(data: Any, error: Mapping[str, Any] | None, steps: Iterable[Step], notes: Sequence[str]) -> None:
    """Print a document on stdout: in one line, or indented on a terminal."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "ok": error is None,
        "data": data,
        "error": error,
        "next": [{"command": step.command, "why": step.why} for step in steps],
        "notes": notes,
    }
    is_read_by_a_person = sys.stdout.isatty()
    print(json.dumps(document, indent=1 if is_read_by_a_person else None))
