"""The commands and their arguments: a frozen record for each command, of which the parser is built.

To add a command, write its record below :func:`command`. Importing this imports little, so that ``--help`` is quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, dataclass_transform, get_args

from jobs import terminal
from jobs.cli.parser import Command, Parser, option, positional, seed, whole
from jobs.registry import BACKENDS
from seqlm import __version__
from seqlm.environment import RUNS
from seqlm.state import FailureKind

EXIT_RUN_FAILED = 1
"""Exit code of a command one of whose runs failed or was cancelled."""
SHELLS = ("bash", "zsh", "tcsh")
STUDY = "a study's folder, its manifest, or its name"
RUN = "one run: its name, its number in the report, its id, or a unique beginning of its id"
MISSING_BEHAVIOUR = (
    "compute missing behaviour of the trained models before the report, also in another user's study "
    "(default: only in your own)"
)


COMMANDS: dict[str, Command] = {}
"""The commands, by name, in the order of the help."""
RecordT = TypeVar("RecordT")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def command(group: str, handler: str, example: str) -> Callable[[type[RecordT]], type[RecordT]]:
    """Make a class the record of a command: ``PlanArguments`` for ``plan``, ``CheckModelArguments``: ``check-model``.

    The arguments are fields of ``Command``.
    """

    def register(record: type[RecordT]) -> type[RecordT]:
        made = dataclass(frozen=True, kw_only=True)(record)
        name = re.sub("(?<=[a-z])(?=[A-Z])", "-", made.__name__.removesuffix("Arguments")).lower()
        COMMANDS[name] = Command(group, made, handler, example)
        return made

    return register


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What every command takes."""

    command: str
    argv: tuple[str, ...] = field(compare=False)
    """The words of the command line as typed, without the program's name."""
    json: bool = option("print one JSON document on stdout, all else on stderr")
    color: terminal.Color = option(
        "default: auto, on a terminal without NO_COLOR", choices=terminal.COLORS, default="auto"
    )
    quiet: bool = option("print only warnings, errors and what a query asks for", "-q", exclusive="level")
    verbose: bool = option("print the settings in use too, and the traceback of an error", "-v", exclusive="level")
    runs_dir: Path = option("folder of the studies (default: SEQLM_RUNS, else runs)", completes="folder", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class CorpusArguments(Arguments):
    """Where the corpus is."""

    data: Path | None = option("folder or zip of the corpus (default: SEQLM_DATA)", completes="file", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class Filters(Arguments):
    """Which runs of a study or manifest are meant."""

    only: tuple[str, ...] = option(
        "runs that meet all conditions: 'arch=gru lr>1'; repeat --only for runs that meet these or those",
        metavar="CONDITIONS",
    )
    exclude: tuple[str, ...] = option(
        "leave out runs that meet all conditions; repeat --exclude to leave out more", metavar="CONDITIONS"
    )


@dataclass(frozen=True, kw_only=True)
class StudyArguments(Filters):
    """A study and some of its runs."""

    study: str = positional(STUDY, completes="study")


@dataclass(frozen=True, kw_only=True)
class Placement(CorpusArguments):
    """Where runs go. ``None`` in each field: the environment, the manifest or the default decides."""

    backend: str | None = option(
        "where runs go (default: SEQLM_BACKEND, the manifest's, ray, local)", choices=tuple(BACKENDS)
    )
    ray_address: str | None = option(
        "join this Ray cluster (default: RAY_ADDRESS, else start one here)", sets="ray.address", metavar="ADDRESS"
    )
    max_parallel: int | None = option("run at most N runs at once", sets="max_parallel")


@dataclass(frozen=True, kw_only=True)
class LaunchArguments(Placement, Filters):
    """What the commands that start something have in common."""

    max_stalled_retries: int | None = option(
        "retries in a row without progress (default: policy.max_stalled_retries, 10); --retries: its earlier name",
        "--retries",
        sets="retries",
        type=whole,
    )
    no_wait: bool = option("launch in the background")
    live_code: bool = option("run the working tree, not the copy kept with the study")
    canary: bool | None = False
    report: bool = False
    then_report: bool = False
    behaviour: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TrainArguments(LaunchArguments):
    """What the commands that train have in common."""

    canary: bool | None = option(
        "try a few steps of each architecture with each optimizer first (default: above 10 runs)"
    )
    behaviour: bool | None = option(MISSING_BEHAVIOUR)
    then_report: bool = option("submit a job that writes the report after the last run (slurm)")
    report: bool = option("write the report at the end")


@command("launch", "jobs.cli.planning.plan", "plan first.toml")
class PlanArguments(Placement, Filters):
    """Show what run would do, and its costs."""

    manifest: str = positional(
        "the study: a TOML file; quickstart, search, ablation, strong and paper come with seqlm", completes="manifest"
    )
    changes: tuple[str, ...] = option("such as train.epochs=2", flag="set", metavar="KEY=VALUE")


@command("launch", "jobs.cli.launching.run", "run first.toml --report")
class RunArguments(TrainArguments, PlanArguments):
    """Launch every run that is not done yet, and wait."""

    dry_run: bool = option("do what plan does, and start nothing", "-n")


@command("follow a study", "jobs.cli.studying.status", "status first --watch")
class StatusArguments(StudyArguments):
    """Show the state of each run."""

    watch: bool = option("show changes until every run is over")


@command("follow a study", "jobs.cli.studies.show_studies", "list --no-sizes")
class ListArguments(Arguments):
    """Show the studies in the runs folder."""

    no_sizes: bool = option("leave out sizes, which take longest on a slow disk")


@command("follow a study", "jobs.cli.studying.logs", "logs first rnn-adam-lr0.001 -f")
class LogsArguments(StudyArguments):
    """Print the logs of the latest attempts."""

    run: str | None = positional(RUN, nargs="?")
    follow: bool = option("print new lines until the run is over", "-f")
    lines: int = option("last lines of each log (default: 20)", "-n", default=20)


@command("follow a study", "jobs.cli.studying.cancel", "cancel first --only 'arch=gru lr>0.001'")
class CancelArguments(StudyArguments):
    """Stop runs that are not over."""

    all: bool = option("stop every run, without a question")


@command("launch", "jobs.cli.launching.retry", "retry first --kind oom")
class RetryArguments(TrainArguments, StudyArguments):
    """Launch failed and cancelled runs again."""

    kind: tuple[str, ...] = option(
        "only failures of this kind, or runs that a search stopped; repeat for more kinds",
        choices=(*get_args(FailureKind), "stopped"),
    )


@command("follow a study", "jobs.cli.studies.clean_study", "clean first --dry-run")
class CleanArguments(StudyArguments):
    """Delete from a study what no report and no run needs any more, or runs."""

    runs: bool = option("delete the runs that --only chooses, with their results")
    dry_run: bool = option("show what would be deleted, and delete nothing", "-n")
    yes: bool = option("delete without asking")


@command("results", "jobs.cli.results.results", "results first --sort test_ppl")
class ResultsArguments(StudyArguments):
    """Show what came of the runs, each at its best epoch of all, and what differs. The report compares equal epochs."""

    sort: str = option("a column of --csv, lowest first (default: val_ppl)", metavar="KEY", default="val_ppl")
    csv: bool = option("print comma-separated values with all columns")


@command("results", "jobs.cli.results.generate", "generate first gru-adam-lr0.01 'the first' --temperature 0.8")
class GenerateArguments(Arguments):
    """Print text that a trained model writes after a prompt."""

    study: str = positional(STUDY, completes="study")
    run: str = positional(RUN)
    prompt: str = positional("how the text begins, one word or several")
    tokens: int = option("tokens to write (default: 50)", default=50)
    temperature: float = option("below 1: likelier tokens (default: 1, the model's own distribution)", default=1.0)
    seed: int = option("another seed, another text (default: 1)", type=whole, default=1)


@command("results", "jobs.cli.launching.behaviour", "behaviour first --prompt 'the'")
class BehaviourArguments(LaunchArguments, StudyArguments):
    """Compute what trained models do.

    ``None`` in a setting: the default of :func:`jobs.launch.behaviour.default_settings`.
    """

    window: int | None = option("tokens of context (default: 2 seq_len)")
    samples: int | None = option("texts of each length (default: 10)")
    temperature: float | None = option("temperature of the sampling (default: 1)")
    prompt: str | None = option("how the texts begin (default: nothing)", metavar="TEXT")
    seed: int | None = option("seed of the sampling (default: the run's)", type=seed)
    force: bool = option("compute it again, even if nothing has changed")


@command("results", "jobs.cli.launching.report", "report first second")
class ReportArguments(Arguments):
    """Write the report of one study, or of several together."""

    studies: tuple[str, ...] = positional(STUDY, completes="study", nargs="+", metavar="study")
    behaviour: bool | None = option(MISSING_BEHAVIOUR)
    output: Path | None = option(
        "where to write (default: report in the study's folder; of several studies: next to their folders)",
        completes="folder",
        metavar="DIR",
    )
    watch: bool = option("write the report at each change until every run is over")


@command("results", "jobs.cli.proposing.propose_runs", "propose first --count 9")
class ProposeArguments(Arguments):
    """Propose settings for the next runs of a study."""

    study: str = positional(STUDY, completes="study")
    count: int = option("how many (default: 9)", default=9)
    seed: int = option("seed of the sampler (default: 0)", type=seed, default=0)


@command("this machine", "jobs.cli.doctor.doctor", "doctor --calibrate")
class DoctorArguments(CorpusArguments):
    """Check this machine, or a cluster."""

    backend: str | None = option("slurm: also check the cluster, with a trial job", choices=tuple(BACKENDS))
    wait_s: int = option("longest wait for the trial job (default: 120)", metavar="S", default=120)
    calibrate: bool = option(
        "check fused operations on this device, then measure training speed, for the times of plan"
    )


@command("launch", "jobs.cli.own_model.check_model", "check-model lstm.py:LSTM --arguments 'hidden_size = 64'")
class CheckModelArguments(Arguments):
    """Test your own model in seconds."""

    source: str = positional("the class, as in model.source", metavar="FILE.py:CLASS")
    arguments: str | None = option(
        "its arguments, as in model.arguments: 'hidden_size = 64, keep = 0.5'", metavar="TABLE"
    )
    files: tuple[str, ...] = option(
        "a further file that it imports, as in model.files; repeat --files for more", metavar="FILE"
    )


@command("this machine", "jobs.cli.studying.schema", "schema --output manifest.schema.json")
class SchemaArguments(Arguments):
    """Print the JSON Schema of manifests, with which editors complete and check them."""

    output: Path | None = option("write it to this file instead", completes="file", metavar="FILE")


@command("this machine", "jobs.cli.studying.data", "data ptb")
class DataArguments(Arguments):
    """Download a corpus."""

    corpus: str = positional("ptb: Penn Treebank", choices=("ptb",))
    to: Path | None = option("default: the folder in which runs look for it", completes="folder", metavar="DIR")


@command(
    "this machine",
    "jobs.cli.completion.completion",
    "completion bash > ~/.local/share/bash-completion/completions/seqlm",
)
class CompletionArguments(Arguments):
    """Print the completion script of a shell."""

    shell: str = positional(
        "a shell; studies: print the names of the studies, for the scripts", choices=(*SHELLS, "studies")
    )


def parser(prog: str | None = None) -> Parser:
    """Return the parser of the whole command line. ``prog`` is the program's name in help; ``None``: as started."""
    top = Parser(prog=prog or terminal.program(), description="Run a whole language-model study from one manifest.")
    top.add_argument("--version", action="version", version=f"seqlm {__version__}")
    top.add_commands(COMMANDS, Arguments)
    return top


def read(words: Sequence[str]) -> Arguments | None:
    """Return the arguments of a command line; ``None`` for an empty one.

    Raises:
        UsageError: a word is wrong; the message says what would be right.
        SystemExit: ``--help`` or ``--version`` was printed.
    """
    found = vars(parser().parse_args(list(words)))
    if found["command"] is None:
        return None
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    values["runs_dir"] = values["runs_dir"] or RUNS.read()
    made: Arguments = COMMANDS[found["command"]].record(argv=tuple(words), **values)
    return made


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
