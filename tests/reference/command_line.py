"""Every command with its options and an example, for docs/reference/command-line.md."""

import argparse

from jobs.cli.arguments import COMMANDS, COMMON, parser
from tests.reference.markdown import table

PROGRAM = "seqlm"


def parts() -> dict[str, str]:
    """Return the options that all commands take, and all commands in the order of the help."""
    below = _commands()
    common = {*COMMON, "help"}
    shared = [action for action in below["plan"]._actions if action.dest in common]
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    sections = []
    for group in groups:
        sections.append(f"## {group.capitalize()}")
        for name, command in COMMANDS.items():
            if command.group == group:
                own = [action for action in below[name]._actions if action.dest not in common]
                sections.append(_command(name, command.text, f"{name} {command.words}", own))
    return {"common-options": _options(shared), "commands": "\n\n".join(sections)}


def _commands() -> dict[str, argparse.ArgumentParser]:
    top = parser(PROGRAM)
    assert top._subparsers is not None
    (action,) = top._subparsers._group_actions
    found = action.choices
    assert isinstance(found, dict)
    for one in found.values():
        one.add_fields()
    return found


def _command(name: str, text: str, example: str, actions: list[argparse.Action]) -> str:
    lines = [
        f"### `{PROGRAM} {name}`",
        "",
        f"{text[:1].upper()}{text[1:]}.",
        "",
        "```bash",
        f"{PROGRAM} {example}",
        "```",
    ]
    return "\n".join([*lines, "", _options(actions)] if actions else lines)


def _options(actions: list[argparse.Action]) -> str:
    ordered = sorted(actions, key=lambda action: bool(action.option_strings))
    return table(["argument", "meaning"], [[_words(action), _meaning(action)] for action in ordered])


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
