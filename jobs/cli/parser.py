"""The parser of the command line.

To add a command, write its record in :mod:`jobs.cli.arguments`, its parser in :func:`parser`, and its handler in
``launch.handler``. Building the parser imports little, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs import terminal
from jobs.cli.arguments import (
    Arguments,
    BehaviourArguments,
    CancelArguments,
    CleanArguments,
    CompletionArguments,
    DataArguments,
    DoctorArguments,
    ListArguments,
    LogsArguments,
    PlanArguments,
    ReportArguments,
    RetryArguments,
    RunArguments,
    SchemaArguments,
    StatusArguments,
)
from seqlm import __version__
from seqlm.errors import UsageError, nearest

COMMAND = "COMMAND"
"""What the command is called in usage texts."""
BACKENDS = ("local", "ray", "slurm")
SHELLS = ("bash", "zsh", "tcsh")
KINDS = ("oom", "diverged", "node", "preempted", "timeout", "code", "cancelled")


def read(words: Sequence[str]) -> Arguments | None:
    """Return the arguments of a command line; ``None`` for an empty one.

    Raises:
        UsageError: a word is wrong; the message says what would be right.
        SystemExit: ``--help`` or ``--version`` was printed.
    """
    found = vars(parser().parse_args(list(words)))
    record = found.pop("record", None)
    if record is None:
        return None
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    made: Arguments = record(argv=tuple(words), **values)
    return made


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises :class:`UsageError` and lists its commands in groups."""

    def __init__(self, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": formatter, **options, "allow_abbrev": False})
        self.groups: dict[str, list[str]] = {}
        """Heading -> names of the commands below it."""
        self._commands: argparse._SubParsersAction[Parser] | None = None

    def command(
        self, group: str, name: str, text: str, *parents: Parser, record: type[Arguments], example: str
    ) -> Parser:
        """Add a command and return its parser. ``example`` is its words after the program's name."""
        if self._commands is None:
            self._commands = self.add_subparsers(metavar=COMMAND, dest="command", parser_class=Parser)
        epilog = f"example:\n  {self.prog} {example}"
        made = self._commands.add_parser(name, help=text, description=text, epilog=epilog, parents=list(parents))
        made.set_defaults(record=record)
        self.groups.setdefault(group, []).append(name)
        self.epilog = f"{self.epilog or 'examples:'}\n  {self.prog} {example}"
        return made

    def format_help(self) -> str:
        if self._commands is None:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        entries = {entry.dest: entry for entry in self._commands._get_subactions()}
        for heading, names in self.groups.items():
            formatter.start_section(heading)
            formatter.add_arguments([entries[name] for name in names])
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
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            has_filter = any(word in ("--only", "--exclude") for word in args or ())
            hint = "; --only and --exclude take one argument each: --only 'arch=gru lr>1'" if has_filter else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def parser(prog: str | None = None) -> Parser:
    """Return the parser of the whole command line. ``prog`` is the program's name in help; ``None``: as started."""
    common = _common()
    filters = _filters()
    data = _parent()
    data.add_argument("--data", type=Path, metavar="PATH", help="folder or zip of the corpus (default: SEQLM_DATA)")
    manifest = _parent()
    manifest.add_argument("manifest", help="the study: a TOML, YAML or JSON file")
    manifest.add_argument(
        "--set", action="append", default=[], dest="changes", metavar="KEY=VALUE", help="such as train.epochs=2"
    )
    study = _parent()
    study.add_argument("study", help="a study's folder, its manifest, or its name")
    placing = _placing()
    leaving = _leaving(placing)
    reporting = _parent()
    reporting.add_argument(
        "--behaviour",
        action=argparse.BooleanOptionalAction,
        help="compute missing behaviour of the trained models before the report, also in another user's study "
        "(default: only in your own)",
    )
    launching = _launching(leaving, reporting)

    top = Parser(prog=prog or terminal.program(), description="Run a whole language-model study from one manifest.")
    top.add_argument("--version", action="version", version=f"seqlm {__version__}")
    group = "launch"
    top.command(
        group,
        "plan",
        "show what run would do, and its costs",
        *(manifest, filters, data, placing, common),
        record=PlanArguments,
        example="plan first.toml",
    )
    run = top.command(
        group,
        "run",
        "launch every run that is not done yet, and wait",
        *(manifest, filters, data, launching, common),
        record=RunArguments,
        example="run first.toml --report",
    )
    run.add_argument("-n", "--dry-run", action="store_true", help="do what plan does, and start nothing")
    group = "follow a study"
    status = top.command(
        group,
        "status",
        "show the state of each run",
        *(study, filters, common),
        record=StatusArguments,
        example="status first --watch",
    )
    form = status.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="show changes until every run is over")
    form.add_argument("--svg", type=Path, metavar="FILE", help="write the table of --watch as a picture")
    listing = top.command(
        group, "list", "show the studies in the runs folder", common, record=ListArguments, example="list --no-sizes"
    )
    listing.add_argument("--no-sizes", action="store_true", help="leave out sizes, which take longest on a slow disk")
    logs = top.command(
        group,
        "logs",
        "print the logs of the latest attempts",
        *(study, filters, common),
        record=LogsArguments,
        example="logs first rnn-adam-lr0.001 -f",
    )
    logs.add_argument("run", nargs="?", help="one run: its name, its id, or a unique beginning of its id")
    logs.add_argument("-f", "--follow", action="store_true", help="print new lines until the run is over")
    logs.add_argument("-n", "--lines", type=_positive, default=20, help="last lines of each log (default: 20)")
    cancel = top.command(
        group,
        "cancel",
        "stop runs that are not over",
        *(study, filters, common),
        record=CancelArguments,
        example="cancel first --only 'arch=gru lr>0.001'",
    )
    cancel.add_argument("--all", action="store_true", help="stop every run, without a question")
    retry = top.command(
        "launch",
        "retry",
        "launch failed and cancelled runs again",
        *(study, filters, data, launching, common),
        record=RetryArguments,
        example="retry first --kind oom",
    )
    retry.add_argument(
        "--kind", action="append", default=[], choices=KINDS, help="only failures of this kind; repeat for more kinds"
    )
    clean = top.command(
        group,
        "clean",
        "delete from a study what no report and no run needs any more",
        *(study, common),
        record=CleanArguments,
        example="clean first --dry-run",
    )
    clean.add_argument("-n", "--dry-run", action="store_true", help="show what would be deleted, and delete nothing")
    clean.add_argument("--yes", action="store_true", help="delete without asking")
    behaviour = top.command(
        "results",
        "behaviour",
        "compute what trained models do",
        *(study, filters, data, leaving, common),
        record=BehaviourArguments,
        example="behaviour first --prompt 'the'",
    )
    _add_settings(behaviour)
    report = top.command(
        "results",
        "report",
        "write the report of one study, or of several together",
        *(reporting, common),
        record=ReportArguments,
        example="report first second",
    )
    report.add_argument("studies", nargs="+", metavar="study", help="a study's folder, its manifest, or its name")
    report.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where to write (default: report in the study's folder; of several studies: next to their folders)",
    )
    report.add_argument("--watch", action="store_true", help="write the report at each change until every run is over")
    _add_machine_commands(top, data, common)
    return top


def _add_machine_commands(top: Parser, data: Parser, common: Parser) -> None:
    group = "this machine"
    doctor = top.command(
        group,
        "doctor",
        "check this machine, or a cluster",
        *(data, common),
        record=DoctorArguments,
        example="doctor --calibrate",
    )
    doctor.add_argument("--backend", choices=BACKENDS, help="slurm: also check the cluster, with a trial job")
    doctor.add_argument(
        "--wait-s", type=_positive, default=120, metavar="S", help="longest wait for the trial job (default: 120)"
    )
    doctor.add_argument(
        "--calibrate",
        action="store_true",
        help="check fused operations on this device, then measure training speed, for the times of plan",
    )
    schema = top.command(
        group,
        "schema",
        "print the JSON Schema of manifests, with which editors complete and check them",
        common,
        record=SchemaArguments,
        example="schema --output manifest.schema.json",
    )
    schema.add_argument("--output", type=Path, metavar="FILE", help="write it to this file instead")
    fetch = top.command(group, "data", "download a corpus", common, record=DataArguments, example="data ptb")
    fetch.add_argument("corpus", choices=("ptb",), help="ptb: Penn Treebank")
    fetch.add_argument("--to", type=Path, metavar="DIR", help="default: the folder in which runs look for it")
    completion = top.command(
        group,
        "completion",
        "print the completion script of a shell",
        common,
        record=CompletionArguments,
        example="completion bash > ~/.local/share/bash-completion/completions/seqlm",
    )
    completion.add_argument(
        "shell", choices=(*SHELLS, "studies"), help="a shell; studies: print the names of the studies, for the scripts"
    )


def _parent(*parents: Parser) -> Parser:
    return Parser(add_help=False, parents=list(parents))


def _common() -> Parser:
    made = _parent()
    made.add_argument("--json", action="store_true", help="print one JSON document on stdout, all else on stderr")
    made.add_argument(
        "--color", choices=terminal.COLORS, default="auto", help="default: auto, on a terminal without NO_COLOR"
    )
    level = made.add_mutually_exclusive_group()
    level.add_argument(
        "-q", "--quiet", action="store_true", help="print only warnings, errors and what a query asks for"
    )
    level.add_argument(
        "-v", "--verbose", action="store_true", help="print the settings in use too, and the traceback of an error"
    )
    made.add_argument(
        "--runs-dir",
        type=Path,
        default=Path(os.environ.get("SEQLM_RUNS", "runs")),
        metavar="DIR",
        help="folder of the studies (default: SEQLM_RUNS, else runs)",
    )
    return made


def _filters() -> Parser:
    made = _parent()
    for name, text in (
        ("--only", "runs that meet all conditions: 'arch=gru lr>1'; repeat --only for runs that meet these or those"),
        ("--exclude", "leave out runs that meet all conditions; repeat --exclude to leave out more"),
    ):
        made.add_argument(name, action="append", default=[], metavar="CONDITIONS", help=text)
    return made


def _placing() -> Parser:
    made = _parent()
    made.add_argument(
        "--backend", choices=BACKENDS, help="where runs go (default: SEQLM_BACKEND, the manifest's, ray, local)"
    )
    made.add_argument(
        "--ray-address", metavar="ADDRESS", help="join this Ray cluster (default: RAY_ADDRESS, else start one here)"
    )
    made.add_argument("--max-parallel", type=_positive, metavar="N", help="run at most N runs at once")
    return made


def _leaving(placing: Parser) -> Parser:
    made = _parent(placing)
    made.add_argument(
        "--retries", type=_whole, metavar="N", help="retries in a row without progress (default: the policy's, 10)"
    )
    made.add_argument("--no-wait", action="store_true", help="launch in the background")
    made.add_argument("--live-code", action="store_true", help="run the working tree, not the copy kept with the study")
    return made


def _launching(leaving: Parser, reporting: Parser) -> Parser:
    made = _parent(leaving, reporting)
    made.add_argument(
        "--canary",
        action=argparse.BooleanOptionalAction,
        help="try a few steps of each architecture with each optimizer first (default: above 10 runs)",
    )
    made.add_argument(
        "--then-report", action="store_true", help="submit a job that writes the report after the last run (slurm)"
    )
    made.add_argument("--report", action="store_true", help="write the report at the end")
    return made


def _add_settings(behaviour: Parser) -> None:
    behaviour.add_argument("--window", type=_positive, metavar="N", help="tokens of context (default: 2 seq_len)")
    behaviour.add_argument("--samples", type=_positive, metavar="N", help="texts of each length (default: 10)")
    behaviour.add_argument(
        "--temperature", type=_above_zero, metavar="X", help="temperature of the sampling (default: 1)"
    )
    behaviour.add_argument("--prompt", metavar="TEXT", help="how the texts begin (default: nothing)")
    behaviour.add_argument("--seed", type=_whole, metavar="N", help="seed of the sampling (default: the run's)")
    behaviour.add_argument("--force", action="store_true", help="compute it again, even if nothing has changed")


def _whole(text: str) -> int:
    return int(_checked(text, int, lambda number: number >= 0, "a whole number, 0 or more"))


def _positive(text: str) -> int:
    return int(_checked(text, int, lambda number: number >= 1, "a whole number, 1 or more"))


def _above_zero(text: str) -> float:
    return _checked(text, float, lambda number: 0 < number < math.inf, "a number above 0")


def _checked(text: str, kind: Callable[[str], float], is_valid: Callable[[float], bool], valid: str) -> float:
    with contextlib.suppress(ValueError):
        if is_valid(number := kind(text)):
            return number
    raise argparse.ArgumentTypeError(f"expected {valid}, got {text}")
