"""The arguments of each command as a frozen record, which :func:`jobs.cli.parser.read` makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jobs import terminal

EXIT_RUN_FAILED = 1
"""Exit code of a command one of whose runs failed or was cancelled."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every command takes."""

    command: str
    argv: tuple[str, ...] = field(compare=False)
    """The words of the command line as typed, without the program's name."""
    json: bool
    color: terminal.Color
    quiet: bool
    verbose: bool
    runs_dir: Path


@dataclass(frozen=True, kw_only=True)
class ListArguments(Arguments):
    """``list``."""

    no_sizes: bool


@dataclass(frozen=True, kw_only=True)
class CleanArguments(Arguments):
    """``clean``."""

    study: str
    dry_run: bool
    yes: bool


@dataclass(frozen=True, kw_only=True)
class CompletionArguments(Arguments):
    """``completion``."""

    shell: str
    """``studies`` prints the names of the studies instead, for the scripts."""


@dataclass(frozen=True, kw_only=True)
class DataArguments(Arguments):
    """``data``."""

    corpus: str
    to: Path | None
    """``None``: the folder in which runs look for the corpus by default."""


@dataclass(frozen=True, kw_only=True)
class SchemaArguments(Arguments):
    """``schema``."""

    output: Path | None
    """``None``: stdout."""


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(Arguments):
    """``doctor``."""

    backend: str | None
    data: Path | None
    wait_s: int
    """Longest wait for the trial job, in seconds."""
    calibrate: bool


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """``report``."""

    studies: tuple[str, ...]
    output: Path | None
    watch: bool
    behaviour: bool | None
    """``None``: compute missing behaviour only in a study of this user."""


@dataclass(frozen=True, kw_only=True)
class Filters(Arguments):
    """Which runs of a study or manifest are meant."""

    only: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyArguments(Filters):
    """A study and some of its runs."""

    study: str
    """Folder, manifest or name."""


@dataclass(frozen=True, kw_only=True)
class StatusArguments(StudyArguments):
    """``status``."""

    watch: bool
    svg: Path | None


@dataclass(frozen=True, kw_only=True)
class LogsArguments(StudyArguments):
    """``logs``."""

    run: str | None
    follow: bool
    lines: int


@dataclass(frozen=True, kw_only=True)
class CancelArguments(StudyArguments):
    """``cancel``."""

    all: bool


@dataclass(frozen=True, kw_only=True)
class Placement(Arguments):
    """Where runs go. ``None`` in each field: the environment, the manifest or the default decides."""

    data: Path | None
    backend: str | None
    ray_address: str | None
    max_parallel: int | None
    retries: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlanArguments(Placement, Filters):
    """``plan``."""

    manifest: str
    changes: tuple[str, ...]
    """``KEY=VALUE`` of each ``--set``."""


@dataclass(frozen=True, kw_only=True)
class LaunchArguments(Placement, Filters):
    """What the commands that start something have in common."""

    no_wait: bool
    live_code: bool
    canary: bool | None = False
    report: bool = False
    then_report: bool = False
    behaviour: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RunArguments(LaunchArguments, PlanArguments):
    """``run``."""

    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class RetryArguments(LaunchArguments, StudyArguments):
    """``retry``."""

    kind: tuple[str, ...]
    """Kinds of failure; empty: all."""


@dataclass(frozen=True, kw_only=True)
class BehaviourArguments(LaunchArguments, StudyArguments):
    """``behaviour``. ``None`` in a setting: the default of :func:`jobs.launch.behaviour.default_settings`."""

    window: int | None
    samples: int | None
    temperature: float | None
    prompt: str | None
    seed: int | None
    force: bool


def output_of(arguments: Arguments) -> terminal.Output:
    """Return how a command prints. ``--quiet`` hides what a command has done, not the answer of a query."""
    acts = isinstance(arguments, LaunchArguments | CancelArguments)
    if isinstance(arguments, RunArguments) and arguments.dry_run:
        acts = False
    return terminal.Output(
        color=arguments.color,
        quiet=arguments.quiet,
        verbose=arguments.verbose,
        json=arguments.json,
        results=not (arguments.quiet and acts),
    )
