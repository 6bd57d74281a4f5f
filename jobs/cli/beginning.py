"""``init`` and ``open``: a first manifest, and the report of a study in the browser."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.manifests.entries import StudyTable
from jobs.study.folder import find_study
from jobs.terminal import Result
from seqlm.errors import ConfigError, UsageError
from seqlm.files import write_text
from seqlm.reading import exists, is_file
from seqlm.schema import read

MANIFEST = """\
[study]
name = "{name}"                              # results go to runs/{name}

[defaults]
data = {{ corpus = "pydoc", vocab_size = 1000 }}  # text that comes with Python
model = {{ embedding_size = 32, hidden_size = 32, num_layers = 1 }}
train.epochs = 4                           # raise it later: only missing epochs are trained

[[grid]]                                   # lists multiply: 2 x 2 = 4 runs
model.arch = ["rnn", "gru"]
optim = {{ optimizer = "adam", lr = [1e-3, 1e-2] }}
"""

# -- init ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InitResult(Result):
    """A new manifest."""

    manifest: str

    def render(self) -> None:
        program = terminal.program()
        terminal.say(
            f"{self.manifest} is written",
            f"  {program} plan {self.manifest}           shows its runs",
            f"  {program} run {self.manifest} --report   trains them and writes the report",
        )


def init(arguments: Arguments) -> InitResult:
    """Write a manifest that runs into the current folder.

    Raises:
        UsageError: the name is not valid for a study, or the file exists.
    """
    name = arguments.name.removesuffix(".toml")
    try:
        read(StudyTable, {"name": name})
    except ConfigError as error:
        raise UsageError("; ".join(error.problems)) from None
    path = Path(f"{name}.toml")
    if exists(path):
        raise UsageError(f"{path} exists and is not replaced; choose another name")
    write_text(path, MANIFEST.format(name=name))
    return InitResult(manifest=str(path))


# -- open ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenResult(Result):
    """The report of a study."""

    report: str
    opened: bool
    """A browser has been started."""
    why_not: str | None
    """Why no browser has been started."""

    def render(self) -> None:
        terminal.say(self.report)
        if self.why_not is not None:
            here = f"{socket.gethostname()}:{Path(self.report).parent}"
            terminal.tell(f"{self.why_not}; copy its folder to your machine: scp -r {here} .")


def open_report(arguments: Arguments) -> OpenResult:
    """Show the report of a study in the browser, or say where it is.

    Raises:
        UsageError: there is no such study, or it has no report.
    """
    study_dir = find_study(arguments.study, arguments.runs_dir)
    page = (study_dir / "report" / "index.html").absolute()
    if not is_file(page):
        raise UsageError(f"{study_dir.name} has no report yet; {terminal.program()} report {arguments.study} writes it")
    why_not = _why_no_browser()
    if why_not is None:
        import webbrowser

        if not webbrowser.open_new_tab(page.as_uri()):
            why_not = "found no browser"
    return OpenResult(report=str(page), opened=why_not is None, why_not=why_not)


def _why_no_browser() -> str | None:
    """Return why a browser of this machine would not be seen. ``None``: it would."""
    if any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY")):
        return "no browser is started over ssh"
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        return "this machine has no display"
    return None
