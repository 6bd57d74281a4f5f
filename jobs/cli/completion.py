"""Completion of a command line in a shell: commands, options, studies and runs; and the command that sets it up.

The shell starts this program with ``_ARGCOMPLETE`` set whenever Tab is pressed. No other start imports this module.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from jobs import terminal
from jobs.cli.arguments import MANIFESTS, Arguments
from jobs.cli.parser import Parser
from jobs.study.folder import find_study
from jobs.study.record import KeptManifests
from jobs.terminal import Result
from seqlm.environment import RUNS
from seqlm.errors import SeqlmError
from seqlm.naming import BEST
from seqlm.reading import is_file, listed
from seqlm.rundir import study_record_file


@dataclass(frozen=True, kw_only=True)
class CompletionResult(Result):
    """The lines that set up completion in a shell."""

    shell: str
    script: str

    def render(self) -> None:
        terminal.say(*self.script.strip().split("\n"))


def completion(arguments: Arguments) -> CompletionResult:
    """Return the lines that set up completion in a shell."""
    return CompletionResult(shell=arguments.shell, script=shellcode(["seqlm"], shell=arguments.shell))


def complete(parser: Parser) -> None:
    """Write what may follow on the command line that the shell asks about, and exit."""
    for action in (action for command in parser.of_commands for action in command._actions):
        if action.dest in COMPLETERS:
            vars(action)["completer"] = COMPLETERS[action.dest]  # argcomplete looks for it
    argcomplete.autocomplete(parser, always_complete_options=False)


# -- what may follow -------------------------------------------------------------------------------------------------


def _runs_dir(given: Any) -> Path:
    return getattr(given, "runs_dir", None) or RUNS.read()


def _studies(prefix: str, parsed_args: Any, **_: Any) -> list[str]:
    """Return the studies in the runs folder, and folders."""
    names = list[str]()
    with contextlib.suppress(SeqlmError):
        names = [folder.name for folder in listed(_runs_dir(parsed_args)) if is_file(study_record_file(folder))]
    return [*names, *DirectoriesCompleter()(prefix)]


def _runs_of(study: str, given: Any) -> list[str]:
    """Return the names of the runs that a study's manifests plan."""
    with contextlib.suppress(SeqlmError):
        kept = KeptManifests(find_study(study, _runs_dir(given)), only=("manifest", "planned"))
        return [BEST, *(entry.name for entry in kept.planned)]
    return []


def _runs(parsed_args: Any, **_: Any) -> list[str]:
    return _runs_of(parsed_args.study, parsed_args)


def _words(parsed_args: Any, **how: Any) -> list[str]:
    """Return studies, and after the first one also its runs."""
    words = getattr(parsed_args, "words", None)
    return [*(_runs_of(words[0], parsed_args) if words else ()), *_studies(parsed_args=parsed_args, **how)]


def _sides(prefix: str, parsed_args: Any, **how: Any) -> list[str]:
    """Return studies, or after a slash their runs."""
    study, slash, _ = prefix.rpartition("/")
    runs = [f"{study}/{name}" for name in _runs_of(study, parsed_args)] if slash else []
    return runs or _studies(prefix, parsed_args, **how)


def _manifests(prefix: str, **how: Any) -> list[str]:
    return [*MANIFESTS, *FilesCompleter(("toml",))(prefix), *_studies(prefix, **how)]


COMPLETERS: Mapping[str, Callable[..., Iterable[str]]] = {
    **dict.fromkeys(("study", "any_study", "studies", "earlier"), _studies),
    **dict.fromkeys(("run", "one_run"), _runs),
    **dict.fromkeys(("a", "b"), _sides),
    "words": _words,
    "manifest": _manifests,
}
"""Name of an argument -> what may follow. Arguments with choices have those, and others files."""
