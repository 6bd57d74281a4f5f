"""Build the parser of the command line from the record of the arguments and from the commands.

A field of the record that is made by :func:`option` is a flag, and one made by :func:`positional` an argument without
one. The name of the field is that of the flag, and its annotation says how it is read.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from seqlm.errors import UsageError, nearest, nearest_key, same_key

COMMAND = "COMMAND"
"""What the command is called in usage texts."""


def option(text: str, *flags: str, sets: str = "", empty: Any = None, **how: Any) -> Any:
    """Return a field that an option sets. ``text`` is its help.

    ``flags`` may have a short name, and a long one in place of the field's. ``sets`` names the setting of the chosen
    backend that the option overrides, such as ``ray.address`` for one of a single backend. ``empty`` is the value of
    the field if the command does not take the option. ``how`` goes to :meth:`argparse.ArgumentParser.add_argument` and
    overrides :data:`BY_TYPE`.
    """
    given = {"flags": flags, "sets": sets, "how": {"help": text, **how}}
    return dataclasses.field(default=how.get("default", empty), metadata=given)


def not_empty(text: str) -> str:
    """Read a text that is not empty, for the ``type`` of an argument: a variable of the shell may not be set."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name or a path, got an empty text")
    return text


def positional(text: str, **how: Any) -> Any:
    """Return a field that an argument without a flag sets; otherwise as :func:`option`."""
    return dataclasses.field(default="", metadata={"flags": None, "how": {"help": text, "type": not_empty, **how}})


def flag_of(field: dataclasses.Field[Any]) -> str:
    """Return the long name of an option."""
    long = (flag for flag in field.metadata["flags"] if flag.startswith("--"))
    return next(long, f"--{field.name.replace('_', '-')}")


def _number(kind: Callable[[str], float], is_valid: Callable[[float], bool], valid: str) -> Callable[[str], float]:
    """Return a reader of the numbers that meet a condition, for the ``type`` of an option."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if is_valid(number := kind(text)):
                return number
        raise argparse.ArgumentTypeError(f"expected {valid}, got {text}")

    return read


def _path(text: str) -> Path:
    """Read a path, for the ``type`` of an option. An empty text would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text (is a variable of the shell not set?)")
    return Path(text)


whole = _number(int, lambda number: number >= 0, "a whole number, 0 or more")
positive = _number(int, lambda number: number >= 1, "a whole number, 1 or more")
seed = _number(int, lambda number: 0 <= number < 2**32, "a whole number from 0 to 2^32 - 1")
part = _number(float, lambda number: 0 < number <= 1, "a number above 0, up to 1")
above_zero = _number(float, lambda number: 0 < number < math.inf, "a number above 0")
not_negative = _number(float, lambda number: 0 <= number < math.inf, "a number, 0 or more")
share = _number(float, lambda number: 0 < number < 1, "a number above 0 and below 1")

BY_TYPE: dict[Any, dict[str, Any]] = {
    bool: {"action": "store_true"},
    bool | None: {"action": argparse.BooleanOptionalAction},
    tuple[str, ...]: {"action": "append", "default": []},
    Path: {"type": _path},
    Path | None: {"type": _path},
    int: {"type": positive, "metavar": "N"},
    int | None: {"type": positive, "metavar": "N"},
}
"""Annotation of a field -> how its option is read. Fields of other types are texts."""


# -- commands ----------------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """One command of the command line."""

    group: str
    """Heading of the help that lists it."""
    handler: str
    """Module in ``jobs.cli`` and name of the function that runs it; imported when it runs."""
    words: str
    """An example of what follows its name."""
    text: str
    """What it does, as the help says it."""
    takes: tuple[str, ...]
    """The arguments that it takes besides those of all commands."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises :class:`UsageError` and lists its commands in groups."""

    commands: Mapping[str, Command] = {}
    """The commands, by name. Empty for the parser of one command."""
    fields: Sequence[dataclasses.Field[Any]] = ()
    """Of the parser of one command: arguments that it gets before it parses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.of_commands: list[Parser] = []
        """The parser of each of the commands."""

    def add_commands(
        self, commands: Mapping[str, Command], arguments: Mapping[str, dataclasses.Field[Any]], common: Sequence[str]
    ) -> None:
        """Add a parser for each command. ``common`` names the ``arguments`` of all, which the help shows last."""
        self.commands = commands
        width = max(map(len, commands))
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name, command in commands.items():
            groups[command.group].append(f"  {name:{width}}  {command.text}")
        lists = (f"{heading}:\n" + "\n".join(lines) for heading, lines in groups.items())
        self.description = "\n\n".join([self.description or "", *lists])
        examples = {name: f"  {self.prog} {name} {command.words}" for name, command in commands.items()}
        more = f"{self.prog} {COMMAND} --help lists the options of a command."
        self.epilog = "\n".join(["examples:", *examples.values(), "", more])
        self.usage = f"{self.prog} [-h] [--version] {COMMAND} ..."
        below = self.add_subparsers(
            metavar=COMMAND, dest="command", parser_class=Parser, prog=self.prog, help=argparse.SUPPRESS
        )
        for name, command in commands.items():
            epilog = f"example:\n{examples[name]}"
            made = below.add_parser(name, help=command.text, description=command.text, epilog=epilog)
            self.of_commands.append(made)
            made.fields = [arguments[key] for key in (*command.takes, *common)]

    def add_fields(self) -> None:
        """Add the arguments of :attr:`fields`. It takes long, and a command line has one command."""
        for field in self.fields:
            flags, how = field.metadata["flags"], field.metadata["how"]
            if flags is None:
                self.add_argument(field.name, **how)
            else:
                names = [*(flag for flag in flags if not flag.startswith("--")), flag_of(field)]
                self.add_argument(*names, **{**BY_TYPE.get(field.type, {}), **how, "dest": field.name})
        self.fields = ()

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help. Argparse itself ignores that it cannot be written."""
        file.write(message)

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
        self.add_fields()
        if self.commands and args and args[0] not in self._option_string_actions and args[0].startswith("-"):
            place = next((place for place, word in enumerate(args) if word in self.commands), None)
            if place is not None:
                order = " ".join([*args[place:], *args[:place]])
                self.error(f"{args[0]} belongs after the command: {self.prog} {order}")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown, list(args or ()))}")
        return found, unknown

    def _hint(self, unknown: list[str], args: list[str]) -> str:
        """Return what unknown words may mean: a key of ``--set``, a filter, or another flag."""
        flags = [known for known in self._option_string_actions if known.startswith("--")]
        for place, (flag, key) in enumerate(itertools.pairwise(args)):
            following = [key, *args[place + 2 :]]
            written = re.match(r"([\w.]+)\s*=?\s*([^\s=-]\S*)", " ".join(following[: 3 if "=" in following else 2]))
            is_cut = not key.partition("=")[2]
            if flag == "--set" and is_cut and written is not None:
                return f'; did you mean "--set {written[1]}={written[2]}"?'
        if not unknown[0].startswith("--"):
            if any(word in ("--only", "--exclude") for word in args):
                return "; --only and --exclude take one argument each: --only 'arch=gru lr>1'"
            may_be_a_run = "--only" in flags and not unknown[0].startswith("-")
            return f"; if it is a run: --only {shlex.quote(unknown[0])}" if may_be_a_run else ""
        flag, has_value, value = unknown[0].partition("=")
        if "--set" in flags:
            from jobs.manifests.entries import SET_KEYS  # it takes long to import

            key, how = same_key(flag, SET_KEYS)
            following = args[args.index(unknown[0]) + 1 :]
            if key:
                return f'; did you mean "--set {key}={how or (value if has_value else (following or ["VALUE"])[0])}"?'
        return nearest_key(flag, flags)
