"""What to do next, as commands: after an error, and about the runs of a study.

A command is offered only if it loses nothing and needs no decision of a person: none raises a budget, trusts what
somebody else has made, deletes, or goes on with what was cancelled.
"""

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.answers import Step, is_spent, problem_of, without_list
from jobs.cli.arguments import Arguments
from jobs.study.folder import find_any_study, observe_study
from jobs.study.record import KeptManifests
from seqlm.errors import RunBusyError, SeqlmError
from seqlm.reading import is_file, read_bytes, status
from seqlm.rundir import RunDirectory
from seqlm.state import KINDS
from seqlm.trust import distrusted, of_run

WAIT_SECONDS = 300
"""How long the next command waits if runs go on."""
LOOKS = ("status", "why", "logs", "wait", "run", "retry", "behaviour", "upgrade", "compare")
"""Commands after which the runs of their study say what is next."""
_PLAIN = re.compile(r"[\w.-]+")
"""What has no meaning for a shell or for sed."""
Record = Mapping[str, Any]
"""A run as in ``status --json``."""


def steps_after(words: Sequence[str], arguments: Arguments | None, data: Any, error: SeqlmError | None) -> list[Step]:
    """Return what to do after a command, the most advisable first.

    ``words`` are those of its command line. ``arguments`` is ``None`` if they cannot be read, ``data`` if it failed.
    A name with control characters is in no command.
    """
    try:
        found = list(_steps_after(words, arguments, data, error))
    except SeqlmError:  # a file cannot be read; the answer itself is complete
        return []
    return [step for step in found if step.command.isprintable()]


def _steps_after(
    words: Sequence[str], arguments: Arguments | None, data: Any, error: SeqlmError | None
) -> Iterable[Step]:
    if error is not None:
        return _after_error(_without_form(words), arguments, error)
    if arguments is None or not isinstance(data, Mapping):
        return ()
    if arguments.command == "plan" or arguments.dry_run:
        return _after_plan(words, data) if arguments.command in ("plan", "run") else ()
    if arguments.command == "list":
        return [
            _seqlm("status", one["study"], *_place(arguments), why=f"{one['study']}: {one['runs']} runs")
            for one in data["studies"]
            if one["runs"] and one["states"].keys() != {"done"}
        ]
    if arguments.command == "audit":
        return _after_audit(arguments, data)
    return _about_study(arguments, data) if arguments.command in LOOKS and "study" in data else ()


def _seqlm(*words: str, why: str) -> Step:
    return Step(f"{terminal.program()} {shlex.join(words)}", why)


def _place(arguments: Arguments | None) -> list[str]:
    """Return the option that says where the studies are, if it was given."""
    given = arguments is not None and any(word.startswith("--runs-dir") for word in arguments.argv)
    return ["--runs-dir", str(arguments.runs_dir)] if arguments is not None and given else []


# -- after an error ----------------------------------------------------------------------------------------------------


def _without_form(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without the options that say how its answer is printed."""
    found: list[str] = []
    for before, word in itertools.pairwise(("", *words)):
        if before != "--fields" and word.partition("=")[0] not in ("--json", "--fields"):
            found.append(word)
    return found


def _after_error(words: Sequence[str], arguments: Arguments | None, error: SeqlmError) -> Iterator[Step]:
    message = str(error)
    for command, word in re.findall(r"`seqlm ([\w-]+) ([\w./-]+)`", message):
        yield _seqlm(command, word, *_place(arguments), why=message)
    if isinstance(error, RunBusyError) and arguments is not None and arguments.study:
        yield _seqlm("wait", arguments.study, "--for", str(WAIT_SECONDS), *_place(arguments), why=message)
    lines = message.split("\n")
    corrected, edits = list(words), list[str]()
    problems = list(map(problem_of, lines))
    meant = {found["suggestion"] for found in problems} - {None}
    for found in problems:
        wrong, right = found["got"], found["suggestion"]
        if found["key"] in meant:  # missing, since it is misspelt
            continue
        if wrong is None or right is None:
            return  # the rest would be refused again
        changed = _corrected(corrected, wrong, right)
        if changed != corrected:
            corrected = changed
        elif (edit := _edit(arguments, wrong, right)) is not None:
            edits.append(edit)
        else:
            return
    yield Step(" && ".join([*edits, f"{terminal.program()} {shlex.join(corrected)}"]), without_list(lines[0]))


def _corrected(words: Sequence[str], wrong: str, right: str) -> list[str]:
    """Return the words of a command line with what was wrong corrected."""
    option, _, setting = right.partition(" ")
    if option != "--set":
        return [_replaced(word, wrong, right) for word in words]
    key, _, value = setting.partition("=")
    if not value or " " in value:  # a formula
        return list(words)
    for typed in (
        ["--set", key, "=", value],
        ["--set", f"{key}=", value],
        ["--set", key, f"={value}"],
        ["--set", key, value],
        [wrong, value],
        [f"{wrong}={value}"],
    ):
        for place in range(len(words)):
            if [*words[place : place + len(typed)]] == typed:
                return [*words[:place], "--set", setting, *words[place + len(typed) :]]
    return list(words)


def _replaced(word: str, wrong: str, right: str) -> str:
    """Return a word of a command line with what was wrong corrected: the word itself, or a key in it."""
    if word == wrong:
        return right
    key = re.compile(rf"(?<![\w.]){re.escape(wrong)}(?=\s*[=<>!])")
    return key.sub(lambda _: right, word)


def _edit(arguments: Arguments | None, wrong: str, right: str) -> str | None:
    """Return the command that corrects a key or value of the manifest. ``None``: it is not clear where it stands."""
    if arguments is None:
        return None
    path = Path(arguments.manifest or arguments.study or arguments.any_study)
    if path.suffix != ".toml" or not is_file(path):
        return None
    old, new = wrong, right
    if not (_PLAIN.fullmatch(old) and _PLAIN.fullmatch(new)):
        return None
    lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    while True:  # `optim.lrate`, or `lrate` in a table [defaults.optim]
        word = re.compile(rf"(?<![\w.-]){re.escape(old)}(?![\w.-])")
        places = [number for number, line in enumerate(lines, start=1) if word.search(line.partition("#")[0])]
        if len(places) == 1:
            return f"sed -i.bak '{places[0]}s/{re.escape(old)}/{new}/' {shlex.quote(str(path))}"
        (section, _, old), (other, _, new) = old.partition("."), new.partition(".")
        if places or not old or section != other:
            return None


def _after_plan(words: Sequence[str], data: Mapping[str, Any]) -> Iterator[Step]:
    counts = Counter(run["action"] for run in data["runs"] if run["action"] != "skip")
    if counts and not data["refused"]:
        rest = [word for word in _without_form(words)[1:] if word not in ("-n", "--dry-run")]
        does = ", ".join(f"{number} {action}" for action, number in counts.items())
        yield _seqlm("run", *rest, why=f"runs to do: {does}")


def _after_audit(arguments: Arguments, data: Mapping[str, Any]) -> Iterator[Step]:
    """Yield the training of all epochs of each run with a number that differs: it names the first false one."""
    if arguments.whole or "audit" not in data:
        return
    study_dir = Path(data["audit"]).parent.parent
    study = study_dir.name if study_dir == arguments.runs_dir / study_dir.name else str(study_dir)
    place = _place(arguments) if study == study_dir.name else []
    text = ["--data", str(arguments.data)] if arguments.data is not None else []
    for run in data["runs"]:
        differs = next((found for found in run["findings"] if found["verdict"] == "differs"), None)
        if differs is not None:
            why = f"{differs['part']}: {differs['text']}; this names the first epoch that differs"
            yield _seqlm("audit", study, "--only", f"name={run['name']}", "--whole", *text, *place, why=why)


# -- about the runs of a study ----------------------------------------------------------------------------------------


def _about_study(arguments: Arguments, data: Mapping[str, Any]) -> Iterator[Step]:
    typed = arguments.study or arguments.any_study or data["study"]
    study_dir = find_any_study(typed, arguments.runs_dir)
    study = [study_dir.name if study_dir == arguments.runs_dir / study_dir.name else str(study_dir)]
    place = _place(arguments) if study == [study_dir.name] else []
    has_all = "counts" in data and not arguments.only and not arguments.exclude
    runs = data["runs"] if has_all else [one.to_dict() for one in observe_study(study_dir)]
    states = Counter(run["state"] for run in runs)
    live = states["running"] + states["queued"]
    is_starting = "launcher_pid" in data or data.get("jobs")
    if live or is_starting:
        actions = dict.fromkeys(filter(None, (run.get("action") for run in data.get("runs", ()))))
        commands = [action[1:-1] for action in actions if re.fullmatch(r"`[^`]+`", action)]
        for command in commands:
            yield Step(command, "; ".join(run["headline"] for run in data["runs"] if run["action"] == f"`{command}`"))
        if states["queued"] and not states["running"] and not commands and arguments.command in ("status", "wait"):
            reason = next((run["reason"] for run in runs if run["state"] == "queued" and run["reason"]), "they wait")
            yield _seqlm("why", *study, *place, why=f"no run is running: {reason}")
        what = f"{states['running']} running, {states['queued']} queued" if live else "runs are about to start"
        yield _seqlm("wait", *study, "--for", str(WAIT_SECONDS), *place, why=what)
        return
    yield from _after_failures(arguments, runs, study, place)
    if states["pending"] and not is_spent(data):
        yield from _go_on(study_dir, place)
    if _lacks_report(study_dir, runs):
        yield _seqlm(
            "report", *study, *place, why=f"the report of {states['done']} done and {states['stopped']} stopped runs"
        )


def _after_failures(
    arguments: Arguments, runs: Sequence[Record], study: Sequence[str], place: Sequence[str]
) -> Iterator[Step]:
    """Yield a retry for each kind of failure that a retry may cure, and a look at the others."""
    failed = [run for run in runs if run["state"] == "failed"]
    for kind, number in Counter(run["kind"] for run in failed).items():
        reason = next(run["reason"] for run in failed if run["kind"] == kind)
        if kind in KINDS and KINDS[kind].retries != 0:
            yield _seqlm("retry", *study, "--kind", kind, *place, why=f"{number} failed: {reason}")
        elif kind == "code" and arguments.command not in ("why", "logs"):
            run = next(run for run in failed if run["kind"] == kind)
            yield _seqlm("why", *study, run["name"], *place, why=str(reason))
        elif kind == "code" and arguments.command == "why":
            run = next(run for run in failed if run["kind"] == kind)
            yield _seqlm("logs", *study, run["name"], *place, why="its log has more; then correct the code, and `run`")


def _go_on(study_dir: Path, place: Sequence[str]) -> Iterator[Step]:
    """Yield the launch that goes on with interrupted runs, if this user has launched them before."""
    pending = [one for one in observe_study(study_dir) if one.observation.state == "pending" and one.config is not None]
    launched = [one for one in pending if one.config and not distrusted(of_run(one.config, one.name, whole=True))]
    manifest = KeptManifests(study_dir, only=("folder", "manifest")).manifest
    if launched == pending and manifest.name and is_file(manifest):
        path = manifest.relative_to(Path.cwd()) if manifest.is_relative_to(Path.cwd()) else manifest
        yield _seqlm("run", str(path), *place, why=f"{len(pending)} runs have not started, or were interrupted")


def _lacks_report(study_dir: Path, runs: Iterable[Record]) -> bool:
    """Return whether a run has ended since the report was written."""
    ended = [study_dir / run["id"] for run in runs if run["state"] in ("done", "stopped")]
    times = [
        status(RunDirectory(folder).metrics_file).st_mtime for folder in ended if is_file(folder / "metrics.jsonl")
    ]
    page = study_dir / "report" / "index.html"
    return bool(times) and (not is_file(page) or status(page).st_mtime < max(times))
