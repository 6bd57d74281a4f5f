"""Build the parser of the command line from the records of its commands.

A field of a record that is made by :func:`option` is a flag or a positional argument. Its type says how it is read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from seqlm.errors import UsageError, nearest, nearest_key, same_key

COMMAND = "COMMAND"
"""What the command is called in usage texts."""
BY_TYPE: dict[str, dict[str, Any]] = {
    "bool": {"action": "store_true"},
    "bool | None": {"action": argparse.BooleanOptionalAction},
    "tuple[str, ...]": {"action": "append", "default": []},
    "Path": {"type": Path},
    "Path | None": {"type": Path},
}
"""Annotation of a field -> how its flag is read. Fields of other types are texts."""


def option(*flags: str, exclusive: str | None = None, sets: str = "", **how: Any) -> Any:
    """Return a field that the command line sets: a positional argument, or an option with these ``flags``.

    ``exclusive`` is the name of a set of options of which a command line has one at most. ``sets`` names the setting of
    the chosen backend that the option overrides, such as ``ray.address`` for one of a single backend. ``how`` goes to
    :meth:`argparse.ArgumentParser.add_argument` and overrides :data:`BY_TYPE`.
    """
    return dataclasses.field(metadata={"flags": flags, "exclusive": exclusive, "sets": sets, "how": how})


class Command(NamedTuple):
    """One command of the command line."""

    group: str
    """Heading of the help that lists it."""
    record: type[Any]
    """Dataclass of its arguments. The first line of its docstring says what the command does."""
    handler: str
    """Module and name of the function that runs it; imported when it runs."""
    example: str
    """A command line without the program's name."""

    @property
    def text(self) -> str:
        """What the command does, as the help says it."""
        line = (self.record.__doc__ or "").partition("\n")[0]
        return f"{line[:1].lower()}{line[1:]}".rstrip(".")


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises :class:`UsageError` and lists its commands in groups."""

    commands: Mapping[str, Command] = {}
    """The commands, by name. Empty for the parser of one command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def add_commands(self, commands: Mapping[str, Command], common: type[Any]) -> None:
        """Add a parser for each command. ``common`` is the record of what all take, which the help shows last."""
        self.commands = commands
        self.epilog = "examples:\n" + "\n".join(f"  {self.prog} {command.example}" for command in commands.values())
        below = self.add_subparsers(metavar=COMMAND, dest="command", parser_class=Parser)
        last = {field.name for field in dataclasses.fields(common)}
        for name, command in commands.items():
            epilog = f"example:\n  {self.prog} {command.example}"
            made = below.add_parser(name, help=command.text, description=command.text, epilog=epilog)
            fields = sorted(dataclasses.fields(command.record), key=lambda field: field.name in last)
            made._add_fields([field for field in fields if field.metadata])

    def _add_fields(self, fields: list[dataclasses.Field[Any]]) -> None:
        sets = defaultdict[str, argparse._MutuallyExclusiveGroup](self.add_mutually_exclusive_group)
        for field in fields:
            flags, exclusive, how = (field.metadata[key] for key in ("flags", "exclusive", "how"))
            if not flags:
                self.add_argument(field.name, **how)
                continue
            where = self if exclusive is None else sets[exclusive]
            where.add_argument(*flags, dest=field.name, **{**BY_TYPE.get(str(field.type), {}), **how})

    def format_help(self) -> str:
        if not self.commands:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        assert self._subparsers is not None, "it has commands"
        (below,) = self._subparsers._group_actions
        entries = {entry.dest: entry for entry in below._get_subactions()}  # type: ignore[attr-defined]
        for heading in dict.fromkeys(command.group for command in self.commands.values()):
            formatter.start_section(heading)
            formatter.add_arguments([entries[name] for name, found in self.commands.items() if found.group == heading])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments(self._get_optional_actions())
        formatter.end_section()
        formatter.add_text(self.epilog)
        formatter.add_text(f"{self.prog} {COMMAND} --help lists the options of a command.")
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices and name the nearest one, in the same words on every Python."""
        valid = list(action.choices or [])
        if action.choices is None or value in valid:
            return
        hint = nearest(str(value), valid)
        if action.metavar == COMMAND:
            raise UsageError(f'unknown command "{value}"{hint} (valid: {", ".join(valid)}; see {self.prog} --help)')
        raise argparse.ArgumentError(action, f'expected one of {", ".join(valid)}, got "{value}"{hint}')

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and refuse unknown words here, so that the message names the help of the command."""
        if self.commands and args and args[0] not in self._option_string_actions and args[0].startswith("-"):
            place = next((place for place, word in enumerate(args) if word in self.commands), None)
            if place is not None:
                order = " ".join([*args[place:], *args[:place]])
                self.error(f"{args[0]} belongs after the command: {self.prog} {order}")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            has_filter = any(word in ("--only", "--exclude") for word in args or ())
            hint = "; --only and --exclude take one argument each: --only 'arch=gru lr>1'" if has_filter else ""
            if unknown[0].startswith("--"):
                hint = self._hint(*unknown[0].split("=", 1), *unknown[1:])
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _hint(self, flag: str, value: str = "VALUE", *_: str) -> str:
        """Return what an unknown flag may mean: a key of ``--set``, or another flag."""
        flags = [known for known in self._option_string_actions if known.startswith("--")]
        if "--set" in flags:
            from jobs.manifests.entries import SET_KEYS  # it takes long to import

            key, how = same_key(flag, SET_KEYS)
            if key:
                return f'; did you mean "--set {key}={how or value}"?'
        return nearest_key(flag, flags)


def _number(kind: Callable[[str], float], is_valid: Callable[[float], bool], valid: str) -> Callable[[str], float]:
    """Return a reader of the numbers that meet a condition, for the ``type`` of an option."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if is_valid(number := kind(text)):
                return number
        raise argparse.ArgumentTypeError(f"expected {valid}, got {text}")

    return read


whole = _number(int, lambda number: number >= 0, "a whole number, 0 or more")
seed = _number(int, lambda number: 0 <= number < 2**32, "a whole number from 0 to 2^32 - 1")
positive = _number(int, lambda number: number >= 1, "a whole number, 1 or more")
above_zero = _number(float, lambda number: 0 < number < math.inf, "a number above 0")
