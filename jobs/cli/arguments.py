"""The commands and their arguments: each argument once, in one frozen record, and the names that a command takes.

To add a command, write a line of :data:`COMMANDS`. Importing this imports little, so that ``--help`` is quick.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.parser import Command, Parser, above_zero, not_negative, option, part, positional, seed, share, whole
from jobs.registry import BACKENDS
from seqlm import __version__
from seqlm.environment import RUNS
from seqlm.state import KINDS

EXIT_RUN_FAILED = 1
"""Exit code of a command one of whose runs failed or was cancelled."""
EXIT_UNFINISHED = 4
"""Exit code of ``wait`` if runs go on."""
MANIFESTS = ("quickstart", "search", "ablation", "strong", "paper")
"""The manifests that come with seqlm, for users."""
STUDY = "a study: its name, folder or manifest"
RUN = "a run: its name, id, unique beginning of its id, or best (lowest validation perplexity)"


@dataclass(frozen=True, kw_only=True)
class Common:
    """The arguments of every command."""

    json: bool = option("print one JSON document on stdout, warnings and errors on stderr")
    fields: str | None = option("print only these fields of each run as JSON: name,state", metavar="NAMES")
    verbose: bool = option("print the settings in use, and tracebacks of errors", "-v")
    runs_dir: Path = option("folder of the studies (default: SEQLM_RUNS, else runs)", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which runs a command is about."""

    only: tuple[str, ...] = option(
        "runs that meet all conditions of every --only: 'arch=gru lr>1 val_ppl<100'",
        metavar="CONDITIONS",
        empty=(),
    )
    exclude: tuple[str, ...] = option(
        "leave out runs that meet all conditions; repeatable", metavar="CONDITIONS", empty=()
    )


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where runs go. ``None``: the environment, the manifest or the default decides."""

    data: Path | None = option("folder or zip of the corpus (default: SEQLM_DATA)", metavar="PATH")
    backend: str | None = option(
        "where runs go (default: SEQLM_BACKEND, the manifest's, ray with two GPUs or an address, local)",
        choices=tuple(BACKENDS),
    )
    ray_address: str | None = option(
        "join this Ray cluster (default: RAY_ADDRESS, else start one here)", sets="ray.address", metavar="ADDRESS"
    )
    max_parallel: int | None = option("run at most N runs at once", sets="max_parallel")
    max_stalled_retries: int | None = option(
        "retries in a row without progress (default: policy.max_stalled_retries, 10)", sets="retries", type=whole
    )


@dataclass(frozen=True, kw_only=True)
class PlanArguments(Common, Filters, Where):
    """The arguments of ``plan``, and what other commands that open a manifest take of it."""

    manifest: str = positional(
        f"a TOML file, a launched study (its manifest as of then), or one that comes with seqlm: {', '.join(MANIFESTS)}"
    )
    changes: tuple[str, ...] = option("set a key of the runs: train.epochs=2", "--set", metavar="KEY=VALUE", empty=())
    oversized: bool = option("also start runs that need more memory than there is", "--force")


@dataclass(frozen=True, kw_only=True)
class Launching:
    """How runs are launched, and what follows."""

    no_wait: bool = option("launch in the background")
    live_code: bool = option("run the working tree, not the study's copy")
    canary: bool | None = option(
        "first try a few steps of each architecture with each optimizer (default: above 10 runs)"
    )
    behaviour: bool | None = option(
        "compute missing behaviour of trained models before the report, also of others' runs (default: only your own)"
    )
    then_report: bool = option("submit a job that writes the report at the end (slurm)")
    report: bool = option("write the report at the end")


@dataclass(frozen=True, kw_only=True)
class Arguments(PlanArguments, Launching):
    """The arguments of a command. Those that it does not take are as if they were not given.

    ``None``: the environment, the manifest or the default decides.
    """

    command: str
    argv: tuple[str, ...] = field(compare=False)
    """The words of the command line as typed, without the program's name."""
    # What a command is about:
    study: str = positional(STUDY)
    any_study: str = positional(STUDY, nargs="?", metavar="study")
    studies: tuple[str, ...] = positional(STUDY, nargs="+", metavar="study")
    words: tuple[str, ...] = positional(f"{STUDY}; then runs of it, and further studies", nargs="+", metavar="study")
    audited: str = positional(f"{STUDY}, or an archive of its folder (.tar.gz, .zip)", metavar="study")
    run: str = positional(RUN)
    one_run: str = positional(RUN, nargs="?", metavar="run")
    a: str = positional("the first study, or a run as STUDY/RUN")
    b: str = positional("the second study or run")
    side_a: str = positional("conditions on a setting's runs, as after --only: 'arch=gru lr=0.01'", metavar="A")
    side_b: str = positional("conditions on the runs of the other setting", metavar="B")
    margin: Any = option("smaller differences do not matter, in nats (default: 0.02)", type=not_negative, metavar="X")
    error: Any = option("share of studies with a false claim (default: 0.05)", type=share, metavar="X")
    beginning: str = positional("how the text begins, one word or several", metavar="prompt", type=str)
    name: str = positional("name of the study and its file NAME.toml")
    source: str = positional("the class, as in model.source", metavar="FILE.py:CLASS")
    document: str = positional("command whose JSON document to describe (default: manifests)", nargs="?")
    shell: str = positional("the shell", choices=("bash", "zsh", "fish"))
    corpus: str = positional("ptb: Penn Treebank", choices=("ptb",))
    kind: tuple[str, ...] = option(
        "only failures of this kind, or runs that a search or comparison stopped; repeatable",
        choices=(*KINDS, "stopped"),
    )
    trust: bool = option("from now on, run this study's models and commands as if you had launched it")
    dry_run: bool = option("show what would be done; do nothing", "-n")
    kept_models: bool = option("train your own models as the study keeps them, though their files changed")
    # What one command takes:
    machine: bool = option("show who uses this machine's GPUs, and who waits for one")
    watch: bool = option("show changes, draw or export them, until every run is over")
    seconds: float | None = option(
        "longest wait (default: until every run is over)", "--for", type=above_zero, metavar="SECONDS"
    )
    follow: bool = option("print new lines until the run is over", "-f")
    lines: int = option("last lines of each log (default: 20)", "-n", default=20)
    all: bool = option("stop every run, without a question")
    runs: bool = option("delete runs that --only chooses, with their results")
    yes: bool = option("delete without asking")
    sort: str = option(
        "columns of --csv, lowest first: lr,-val_ppl; -KEY: highest first (default: val_ppl)",
        metavar="KEYS",
        default="val_ppl",
    )
    top: int | None = option("first N of each text (export: those with the lowest validation perplexity)")
    key: str = option("number of each epoch to draw (default: val_ppl)", metavar="NAME", default="val_ppl")
    csv: bool = option("print comma-separated values with all columns")
    patch: bool = option("print how code files differ")
    tokens: int = option("tokens to write (default: 50)", default=50)
    window: int | None = option("tokens of context (default: 2 seq_len)")
    samples: int | None = option("texts of each length (default: 10)")
    temperature: Any = option(
        "temperature of sampling (default: 1, the model's distribution); below 1: likelier tokens",
        type=above_zero,
        metavar="X",
    )
    prompt: str | None = option("how the texts begin (default: nothing)", metavar="TEXT")
    seed: Any = option("seed of sampling (behaviour: default the run's; audit: of the draw)", type=seed, metavar="N")
    tag: tuple[str, ...] = option(
        "tag for --only tag=..., in place of earlier ones; repeatable; --tag none leaves none",
        metavar="TAG",
    )
    add: bool = option("add the tags of --tag to earlier ones")
    text: str | None = option("text about the runs, in place of the earlier one", metavar="TEXT")
    share: Any = option(
        "train randomly drawn epochs again with this share of all steps (0.02: 2 %%)", type=part, metavar="F"
    )
    whole: bool = option("train the chosen runs again from first to last step")
    trust_models: bool = option("run your own models that the study keeps; read them first")
    force: bool = option("compute it again, even if nothing changed")
    output: Path | None = option(
        "where to write (report: default report in the study's folder; of several: next to their folders)",
        metavar="DIR",
    )
    count: int = option("how many (default: 9)", default=9)
    earlier: str | None = option("an earlier study, whose runs count too", "--from", metavar="STUDY")
    wait_s: int = option("longest wait for the trial job (default: 120)", metavar="S", default=120)
    write_site: Path | None = option("write a site file for this cluster (slurm)", metavar="FILE")
    record: Path | None = option("write what the cluster reports of itself, to send in (slurm)", metavar="FILE")
    calibrate: bool = option("measure training speed here, for the times of plan")
    arguments: str | None = option(
        "its arguments, as in model.arguments: 'hidden_size = 64, keep = 0.5'", metavar="TABLE"
    )
    files: tuple[str, ...] = option("a file that it imports, as in model.files; repeatable", metavar="FILE")
    test: bool = option("send one message")
    target: str | None = option("the tracker", "--to", choices=("csv", "tensorboard", "mlflow", "wandb"))
    to: Path | None = option("default: where runs look for it", metavar="DIR")


COMMON = ("json", "fields", "verbose", "runs_dir")
"""What every command takes; the help shows it last."""
FILTERS = ("only", "exclude")
PLACEMENT = ("backend", "data", "max_parallel", "ray_address")
LAUNCH = (*PLACEMENT, "no_wait", "max_stalled_retries", "live_code")
TRAIN = ("report", "dry_run", *LAUNCH, "canary", "behaviour", "then_report", "oversized")
"""These commands list what is used most first."""
COMMANDS = {
    "init": Command(
        "launch", "beginning.init", "first", "write a short manifest that runs, with comments", ("name",)
    ),
    "plan": Command(
        "launch", "planning.plan", "first.toml", "show what run would do, and its costs",
        ("manifest", "changes", *FILTERS, *PLACEMENT),
    ),
    "run": Command(
        "launch", "launching.run", "first.toml --report", "launch every run that is not done yet, and wait",
        ("manifest", "changes", *FILTERS, *TRAIN),
    ),
    "status": Command(
        "follow a study", "studying.status", "first --watch", "show the state of each run",
        ("any_study", *FILTERS, "watch", "machine"),
    ),
    "curves": Command(
        "follow a study", "curves.curves", "first --only arch=gru --watch",
        "draw curves of runs in the terminal, also while they train",
        ("words", *FILTERS, "key", "watch"),
    ),
    "list": Command("follow a study", "studies.show_studies", "--json", "show the studies in the runs folder", ()),
    "wait": Command(
        "follow a study", "studying.wait", "first --for 300",
        "wait until every run is over, and print changes; exit code 4 if runs go on",
        ("study", *FILTERS, "seconds"),
    ),
    "logs": Command(
        "follow a study", "studying.logs", "first rnn-adam-lr0.001 -f", "print the logs of the latest attempts",
        ("study", "one_run", *FILTERS, "follow", "lines"),
    ),
    "why": Command(
        "follow a study", "why.why", "first rnn-adam-lr0.001",
        "say why a run waits, failed, stopped or is slow, and what to do; without RUN, a line for each not well",
        ("study", "one_run", *FILTERS),
    ),
    "cancel": Command(
        "follow a study", "studying.cancel", "first --only 'arch=gru lr>0.001'", "stop runs that are not over",
        ("study", *FILTERS, "all", "dry_run"),
    ),
    "limit": Command(
        "follow a study", "sharing.limit", "first --max-parallel 2",
        "change how many runs of a live launch run at once",
        ("study", "max_parallel"),
    ),
    "retry": Command(
        "launch", "launching.retry", "first --kind oom", "launch failed and cancelled runs again",
        ("study", *FILTERS, "kind", "kept_models", *TRAIN, "trust"),
    ),
    "notify": Command(
        "follow a study", "messages.notify_of", "first.toml --test",
        "show who gets messages about a study or manifest, or send one as a test",
        ("study", "test", "trust"),
    ),
    "clean": Command(
        "follow a study", "studies.clean_study", "first --dry-run",
        "delete what no report and no run of a study needs any more, or runs",
        ("study", *FILTERS, "runs", "dry_run", "yes"),
    ),
    "upgrade": Command(
        "follow a study", "studies.upgrade_study", "first",
        "convert a study of an earlier version for this one; its old files stay", ("study",),
    ),
    "results": Command(
        "results", "results.results", "first --sort test_ppl",
        "show each run at its best epoch of all, and what differs. The report compares equal epochs",
        ("studies", *FILTERS, "sort", "top", "csv"),
    ),
    "note": Command(
        "results", "results.note", "first --only lr=0.01 --tag good --text 'rerun with more seeds'",
        "write tags and a text about runs, or show them",
        ("study", *FILTERS, "tag", "add", "text"),
    ),
    "diff": Command(
        "results", "results.diff", "first/gru-adam-lr0.01 first/gru-adam-lr0.001",
        "show what differs between two runs, or two studies run by run, and where their losses part",
        ("a", "b", *FILTERS, "patch"),
    ),
    "audit": Command(
        "results", "auditing.audit", "first --share 0.02",
        "check a study's numbers: its records, its models' scores and, with --share or --whole, by training again",
        ("audited", *PLACEMENT, *FILTERS, "share", "whole", "seed", "no_wait", "live_code", "trust_models"),
    ),
    "compare": Command(
        "results", "comparing.compare", "first 'arch=gru' 'arch=rnn'",
        "say whether a setting is better than another, or it was the seed; all comparisons of a study count",
        ("study", "side_a", "side_b", "margin", "error"),
    ),
    "generate": Command(
        "results", "results.generate", "first best 'the first' --temperature 0.8",
        "print text that a trained model writes after a prompt",
        ("study", "run", "beginning", "tokens", "temperature", "seed", "trust"),
    ),
    "behaviour": Command(
        "results", "launching.behaviour", "first --prompt 'the'", "compute what trained models do",
        ("study", *FILTERS, "window", "samples", "temperature", "prompt", "seed", "force", *LAUNCH, "trust"),
    ),
    "report": Command(
        "results", "launching.report", "first second", "write the report of one study, or of several together",
        ("studies", "behaviour", "trust", "output"),
    ),
    "open": Command(
        "results", "beginning.open_report", "first", "show a study's report in the browser; over ssh, say where it is",
        ("study",),
    ),
    "export": Command(
        "results", "studying.export", "first --to tensorboard --output events",
        "export steps, epochs and results to files of another tracker, as far as checkpoints cover them",
        ("study", *FILTERS, "top", "target", "output", "watch"),
    ),
    "propose": Command(
        "results", "proposing.propose_runs", "first --count 9", "propose settings for the next runs of a study",
        ("study", "count", "seed", "earlier"),
    ),
    "doctor": Command(
        "this machine", "doctor.doctor", "--calibrate",
        "check this machine, and with --backend slurm the cluster, with a trial job",
        ("data", "backend", "wait_s", "write_site", "record", "calibrate"),
    ),
    "check-model": Command(
        "launch", "planning.check_model", "lstm.py:LSTM --arguments 'hidden_size = 64'",
        "test your own model in seconds", ("source", "arguments", "files"),
    ),
    "schema": Command(
        "this machine", "studying.schema", "> manifest.schema.json",
        "print the JSON Schema of manifests, for editors to complete and check them; or of a command's --json",
        ("document",),
    ),
    "completion": Command(
        "this machine", "completion.completion", "bash",
        "print a shell's completion of commands, options, studies and runs", ("shell",),
    ),
    "data": Command("this machine", "studying.data", "ptb", "download a corpus", ("corpus", "to")),
}  # fmt: skip
"""The commands, by name, in the order of the help."""


@functools.cache
def parser(prog: str) -> Parser:
    """Return the parser of the whole command line. ``prog`` is the program's name in help."""
    top = Parser(prog=prog, description="Run a whole language-model study from one manifest.")
    top.add_argument("--version", action="version", version=f"seqlm {__version__}")
    top.add_commands(COMMANDS, {one.name: one for one in fields(Arguments)}, COMMON)
    return top


def read(words: Sequence[str]) -> Arguments | None:
    """Return the arguments of a command line; ``None`` for an empty one.

    Raises:
        UsageError: a word is wrong; the message says what would be right.
        SystemExit: ``--help`` or ``--version`` was printed.
    """
    found = vars(parser(terminal.program()).parse_args(list(words)))
    if found["command"] is None:
        return None
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    values["json"] = values["json"] or values["fields"] is not None
    return Arguments(argv=tuple(words), **{**values, "runs_dir": values["runs_dir"] or RUNS.read()})
