"""Every command with its options and an example, for docs/reference/command-line.md."""

import argparse
import re
from collections import Counter

from jobs.cli.arguments import COMMANDS, COMMON, parser
from tests.reference.markdown import table

PROGRAM = "seqlm"
SEVERAL = 4
"""An option of so many commands is described once, above them."""

Row = tuple[str, str]
"""An argument and its meaning."""


def parts() -> dict[str, str]:
    """Return the options that all commands take, and all commands in the order of the help."""
    below = _commands()
    common = {*COMMON, "help"}
    shared = [action for action in below["plan"]._actions if action.dest in common]
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    rows = {name: _rows([one for one in parser._actions if one.dest not in common]) for name, parser in below.items()}
    counts = Counter(row for those in rows.values() for row in those if row[0].startswith("`-"))
    several = [row for row, count in counts.items() if count >= SEVERAL]
    sections = []
    for group in groups:
        sections.append(f"## {group.capitalize()}")
        for name, command in COMMANDS.items():
            if command.group == group:
                sections.append(_command(name, command.text, f"{name} {command.words}", rows[name], several))
    return {
        "common-options": _options(_rows(shared)),
        "shared-options": _options(several),
        "commands": "\n\n".join(sections),
    }


def _commands() -> dict[str, argparse.ArgumentParser]:
    top = parser(PROGRAM)
    assert top._subparsers is not None
    (action,) = top._subparsers._group_actions
    found = action.choices
    assert isinstance(found, dict)
    for one in found.values():
        one.add_fields()
    return found


def _command(name: str, text: str, example: str, rows: list[Row], several: list[Row]) -> str:
    own = [row for row in rows if row not in several]
    others = ", ".join(re.sub(r" [^`]+`", "`", words) for words, text in rows if (words, text) in several)
    lines = [
        f"### `{PROGRAM} {name}`",
        "",
        f"{text[:1].upper()}{text[1:]}.",
        "",
        "```bash",
        f"{PROGRAM} {example}",
        "```",
    ]
    lines += ["", _options(own)] if own else []
    lines += ["", f"[Also](#options-of-several-commands): {others}."] if others else []
    return "\n".join(lines)


def _options(rows: list[Row]) -> str:
    return table(["argument", "meaning"], rows)


def _rows(actions: list[argparse.Action]) -> list[Row]:
    """Return the words and the meaning of each argument, options last."""
    ordered = sorted(actions, key=lambda action: bool(action.option_strings))
    return [(_words(action), _meaning(action)) for action in ordered]


def _words(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else None
    if not action.option_strings:
        word = (value or action.dest).upper()
        return {None: f"`{word}`", "?": f"`[{word}]`", "+": f"`{word}...`"}[action.nargs]  # type: ignore[index]
    if action.nargs == 0:
        return ", ".join(f"`{flag}`" for flag in action.option_strings)
    value = value or action.dest.upper()
    return ", ".join(f"`{flag} {value}`" for flag in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").strip()
    choices = f"One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    sentence = f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
    return " ".join(filter(None, [sentence, choices]))
