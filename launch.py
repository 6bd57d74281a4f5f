#!/usr/bin/env python3
"""The command line of seqlm: read it, run one command, return its exit code.

Each command imports what it needs when it runs, so that ``--help`` and ``status`` answer at once.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jobs import terminal
from jobs.cli.arguments import COMMANDS, EXIT_RUN_FAILED, Arguments, parser, read
from seqlm.errors import SeqlmError, error_text

Answer: TypeAlias = terminal.Result | tuple[Any, int]
"""What a command returns."""
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1, 2, 3, 4 or 130 (docs/reference/exit-codes.md).

    Raises:
        SystemExit: ``--help`` or ``--version`` was printed.
    """
    if "_ARGCOMPLETE" in os.environ:
        from jobs.cli.completion import complete

        complete(parser(terminal.program()))
    try:
        with contextlib.redirect_stdout(terminal.Output(sys.stdout)) as output:
            try:
                return _run(list(sys.argv[1:] if argv is None else argv))
            finally:
                output.flush()
    except BrokenPipeError:  # the reader of our output has exited, as `| head` does
        terminal.discard(sys.stdout)
        return 0
    except terminal.OutputError as error:
        terminal.discard(sys.stdout)
        terminal.tell(f"error: cannot write the output: {error.strerror}")
        return EXIT_RUN_FAILED


def _run(words: Sequence[str]) -> int:
    is_json = _is_json(words)
    terminal.configure(json=is_json)
    arguments, data, code, error = None, None, EXIT_INTERRUPTED, None
    try:
        arguments = read(words)
        if arguments is None:
            print(parser(terminal.program()).format_help(), end="")
            return 0
        terminal.configure(json=is_json, verbose=arguments.verbose)
        if arguments.fields is not None:
            _check_fields(arguments)
        answer = handler(arguments.command)(arguments)
        if isinstance(answer, terminal.Result):
            answer.render()
            answer = answer.document(), answer.exit_code
        data, code = answer
    except SeqlmError as caught:
        error, code = caught, caught.exit_code
        if arguments is not None and arguments.verbose:
            import traceback

            terminal.detail(traceback.format_exc())
    except KeyboardInterrupt:
        pass
    return _finish(words, arguments, data, error, code)


def handler(command: str) -> Callable[[Any], Answer]:
    """Import and return the function that runs a command.

    It returns what it has found. A command that acts, waits or follows prints as things happen, and returns the data of
    ``--json`` and the exit code.

    Every such function raises SeqlmError with a message that says what to do, and KeyboardInterrupt.
    """
    module, _, function = COMMANDS[command].handler.rpartition(".")
    found: Callable[[Any], Answer] = getattr(importlib.import_module(f"jobs.cli.{module}"), function)
    return found


def _is_json(words: Sequence[str]) -> bool:
    """Return whether a command line, which may be wrong elsewhere, asks for a document."""
    return any(word.partition("=")[0] in ("--json", "--fields") for word in words)


def _check_fields(arguments: Arguments) -> None:
    from jobs.cli.documents import check_names, document_of

    check_names(document_of(arguments), str(arguments.fields).split(","))


def _finish(words: Sequence[str], arguments: Arguments | None, data: Any, error: SeqlmError | None, code: int) -> int:
    """Print the error, what to do next, and with ``--json`` the document; return the exit code."""
    message = "interrupted" if error is None else error_text(error)
    is_interrupted = data is None and code == EXIT_INTERRUPTED
    if error is not None or is_interrupted:
        terminal.tell_error(message)
    is_json = _is_json(words)
    if is_json or not sys.stderr.isatty():  # a person reads the messages, and nobody waits for these imports
        from jobs.cli import answers, documents
        from jobs.cli.steps import steps_after

        steps = [] if is_interrupted else steps_after(words, arguments, data, error)
        if not is_json:
            sys.stdout.flush()  # this is the last line, also of `2>&1`
            terminal.tell(f"next: {steps[0].command}") if steps else None
            return code
        kind = answers.INTERRUPTED if error is None else error.kind
        failed = error is not None or is_interrupted
        why = answers.error_of(code, kind, message) if failed else answers.outcome_of(data, code)
        if arguments is not None and arguments.fields is not None:
            data = documents.with_fields(data, arguments.fields.split(","))
        answers.print_document(data, why, steps, terminal.told())
    return code


if __name__ == "__main__":
    sys.exit(main())
