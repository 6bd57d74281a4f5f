#!/usr/bin/env python3
"""The command line of seqlm: read it, run one command, return its exit code.

Each command imports what it needs when it runs, so that ``--help`` and ``status`` answer at once.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jobs import terminal
from jobs.cli.arguments import COMMANDS, parser, read
from seqlm.errors import SeqlmError, error_text

Answer: TypeAlias = terminal.Result | tuple[Any, int]
"""What a command returns."""
SCHEMA_VERSION = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1, 2, 3 or 130 (docs/reference/exit-codes.md)."""
    if "_ARGCOMPLETE" in os.environ:
        from jobs.cli.completion import complete

        complete(parser(terminal.program()))
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    terminal.configure(json=as_json)
    arguments = None
    try:
        arguments = read(words)
        if arguments is None:
            print(parser(terminal.program()).format_help(), end="")
            return 0
        terminal.configure(json=as_json, verbose=arguments.verbose)
        answer = handler(arguments.command)(arguments)
        if isinstance(answer, terminal.Result):
            answer.render()
            answer = answer.document() if as_json else None, answer.exit_code
        data, code = answer
        if as_json:
            _print_document(data, None, ok=code == 0)
        sys.stdout.flush()
    except SeqlmError as error:
        if arguments is not None and arguments.verbose:
            import traceback

            terminal.detail(traceback.format_exc())
        return _fail(error_text(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader of our output has exited, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def handler(command: str) -> Callable[[Any], Answer]:
    """Import and return the function that runs a command.

    It returns what it has found. A command that acts, waits or follows prints as things happen, and returns the data of
    ``--json`` and the exit code.

    Every such function raises SeqlmError with a message that says what to do, and KeyboardInterrupt.
    """
    module, _, function = COMMANDS[command].handler.rpartition(".")
    found: Callable[[Any], Answer] = getattr(importlib.import_module(f"jobs.cli.{module}"), function)
    return found


def _fail(message: str, code: int, as_json: bool) -> int:
    for line in message.split("\n"):  # a line that is indented belongs to the one before
        terminal.tell(line if line.startswith(" ") else f"error: {line}")
    if as_json:
        _print_document(None, {"code": code, "message": message}, ok=False)
    return code


def _print_document(data: Any, error: Any, *, ok: bool) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, "ok": ok, "data": data, "error": error}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
