"""``completion``: the script with which a shell completes command lines, written by shtab."""

from __future__ import annotations

import argparse
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments, parser
from seqlm.errors import UsageError
from seqlm.reading import is_folder, listed

STUDIES = {"bash": "_seqlm_studies", "zsh": "_seqlm_studies", "tcsh": "`seqlm completion studies`"}
"""Shell -> what completes a study."""
MANIFESTS = {
    "bash": "_seqlm_manifests",
    "zsh": "_files -g '*.toml'",
    "tcsh": "f:*.toml",
}
PREAMBLE = {
    "bash": """\
_seqlm_studies() {
  local found="$(compgen -W "$(seqlm completion studies 2>/dev/null)" -- "$1")"
  if [ -n "$found" ]; then echo "$found"; else compgen -f -- "$1"; fi
}
_seqlm_manifests() {
  compgen -f -X "!*.toml" -- "$1"
  compgen -S / -d -- "$1"
}
""",
    "zsh": """\
_seqlm_studies() {
  compadd -- ${(f)"$(seqlm completion studies 2>/dev/null)"}
  _files
}
""",
}


def completion(arguments: Arguments) -> tuple[Any, int]:
    """Print the completion script of a shell, or the names of the studies."""
    if arguments.shell == "studies":
        names = [path.name for path in listed(arguments.runs_dir, "[!.]*") if is_folder(path)]
        for name in names:
            terminal.say(name)
        return {"studies": names}, 0
    try:
        import shtab
    except ImportError:
        raise UsageError('completion: the package shtab is not installed; use: pip install "shtab>=1.10,<2"') from None
    top = parser("seqlm")
    found = list(top._actions)
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # the help lists the commands itself; shtab leaves out what is suppressed
            found += [inner for command in action.choices.values() for inner in command._actions]
    how = {"study": STUDIES, "manifest": MANIFESTS, "file": shtab.FILE, "folder": shtab.DIRECTORY}
    for action in found:
        if kind := getattr(action, "completes", ""):
            action.complete = how[kind]  # type: ignore[attr-defined]
    script = shtab.complete(top, arguments.shell, None, PREAMBLE.get(arguments.shell, ""))
    print(script, file=terminal.results())
    return {"shell": arguments.shell, "script": script}, 0
