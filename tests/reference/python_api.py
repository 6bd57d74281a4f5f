"""The Python API from its docstrings, for docs/reference/python.md."""

import inspect
import re
from dataclasses import fields
from typing import Any

import analysis
from analysis import api
from analysis.study.study import StudyFiles
from jobs.cli import python

SECTIONS = ("Args:", "Raises:")

FIGURES = "plot_"


def parts() -> dict[str, str]:
    """Return the whole page but for its introduction."""
    methods = {name: member for name, member in vars(analysis.Study).items() if not name.startswith("_")}
    own = [name for name in methods if not name.startswith(FIGURES)]
    figures = [name for name in methods if name.startswith(FIGURES)]
    sections = [
        _text(api.__doc__).partition("\n\n")[2],
        _entry("open_study", analysis.open_study, level=2),
        _entry("plan", python.plan, level=2),
        _entry("run", python.run, level=2),
        _class(analysis.Study, [*INHERITED, *own], FIELDS_OF_STUDY, StudyFiles),
        "## Figures\n\nEach is a method of `Study` that draws on `ax` and returns it. Without data, the Axes say so.",
        *(_entry(name, methods[name]) for name in figures),
        _class(
            analysis.Run,
            [name for name in vars(analysis.Run) if not name.startswith("_") and name not in FIELDS_OF_RUN],
            FIELDS_OF_RUN,
            analysis.Run,
        ),
    ]
    return {"python-api": "\n\n".join(section.strip() for section in sections)}


INHERITED = ["compared", "after"]
"""Members of ``Study`` that the report uses too."""
FIELDS_OF_STUDY = ["name", "directories", "runs", "epochs", "attempts", "warnings"]
FIELDS_OF_RUN = [field.name for field in fields(analysis.Run)]


def _class(kind: type, members: list[str], names: list[str], described: type) -> str:
    attributes = _attributes(described)
    rows = [f"- `{name}`: {attributes[name]}" for name in names if name in attributes]
    entries = [_entry(name, inspect.getattr_static(kind, name)) for name in members]
    return "\n\n".join([f"## {kind.__name__}", _text(kind.__doc__), "\n".join(rows), *entries])


def _attributes(kind: type) -> dict[str, str]:
    """Return the first paragraph of the docstring below each field of a dataclass."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): ([^\n]+)\n(?:    """(.*?)""")?', source, flags=re.MULTILINE | re.DOTALL)
    return {name: _code(re.sub("; see ``.*``", "", " ".join((text or hint).split()))) for name, hint, text in found}


def _entry(name: str, member: Any, *, level: int = 3) -> str:
    function = getattr(member, "func", None) or getattr(member, "fget", None) or member
    signature = "" if function is not member else f"({_parameters(function)})"
    return f"{'#' * level} `{name}{signature}`\n\n{_text(function.__doc__)}"


def _parameters(function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    words = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    first = next((place for place, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    return ", ".join(words if first is None else [*words[:first], "*", *words[first:]])


def _text(doc: str | None) -> str:
    """Return a docstring as Markdown: arguments and errors as lists, examples as code."""
    lines: list[str] = []
    in_list = in_code = False
    for line in inspect.cleandoc(doc or "").splitlines():
        if in_code and not line:
            lines.append("```")
            in_code = False
        if line.startswith(">>>") and not in_code:
            lines.append("```python")
            in_code = True
        if line in SECTIONS:
            lines += [{"Args:": "Arguments:", "Raises:": "Raises:"}[line], ""]
            in_list = True
        elif in_list and re.match(r" {4}\w", line):
            name, _, meaning = line.strip().partition(": ")
            lines.append(f"- `{name}`: {_code(meaning)}")
        elif in_list and line.startswith("        "):
            lines[-1] += f" {_code(line.strip())}"
        else:
            in_list = in_list and not line
            lines.append(line if in_code else _code(line))
    return "\n".join([*lines, "```"] if in_code else lines)


def _code(text: str) -> str:
    text = re.sub(
        r"docs/reference/((\w)(\w+))\.md", lambda found: f"[{found[2].upper()}{found[3]}]({found[1]}.md)", text
    )
    return re.sub(r":func:`(\w+)`", r"`\1`", text.replace("``", "`"))
