"""The commands that follow a study: status, wait, logs, export, cancel; and schema, data.

Each command imports what only it needs inside its function, so that ``status``, ``logs`` and ``cancel`` start fast.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from jobs import terminal
from jobs.cli.arguments import EXIT_RUN_FAILED, EXIT_UNFINISHED, Arguments
from jobs.cli.naming import chosen_runs, find_trained, named_runs, text_of
from jobs.cli.view import STATES, StatusResult, Watcher, changes, status_of, watch
from jobs.registry import BACKENDS, backend_class
from jobs.study.folder import (
    ObservedRun,
    find_study,
    is_behaviour_study,
    launcher_dir,
    launcher_of,
    observe_study,
    study_name,
    this_launcher,
)
from jobs.study.stopping import Stopping
from jobs.terminal import Result
from seqlm.errors import FileError, UnfitFileError, UsageError, printable
from seqlm.lease import wait_until_free
from seqlm.reading import LARGEST_HASHED, open_regular, timestamp
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import Requests, file_request
from seqlm.rundir import CANARY_FOLDER, RunDirectory

FOLLOW_SECONDS = 1.0
"""Interval at which a followed log and the state of its run are polled, as with ``tail -f``."""
EXPORT_SECONDS = 10.0
"""Least time between two exports of ``export --watch``."""
STOP_SECONDS = 90.0
"""Seconds that `cancel` waits for workers to stop: more than a launcher gives them before it kills them."""
LARGEST_TAIL = 4 * 2**20
"""Bytes read from the end of a log to find its last lines. Longer lines are cut."""

# -- status --------------------------------------------------------------------------------------------------------


def status(arguments: Arguments) -> Result | tuple[Any, int]:
    """Return the state of each run, or print it at each change; or return who uses the GPUs of this machine."""
    if arguments.machine:
        if arguments.any_study or arguments.watch or arguments.only or arguments.exclude:
            raise UsageError("--machine is about this machine; use it without a study and other options")
        from jobs.cli.sharing import machine_status

        return machine_status()
    if not arguments.any_study:
        raise UsageError(f"expected a study, or --machine (see {terminal.program()} status --help)")
    if arguments.watch and arguments.json:
        raise UsageError("--watch shows changes as they come, --json prints one document; use one of them")
    study_dir = find_study(arguments.any_study, arguments.runs_dir)
    runs = chosen_runs(arguments, study_dir)
    if arguments.watch:
        watch(Watcher(study_dir, {run.run.id for run in runs} if arguments.only or arguments.exclude else None))
        return None, 0
    return status_of(runs, study_dir)


# -- wait ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WaitResult(StatusResult):
    """The state of each run after a wait."""

    HIDDEN = frozenset({"lines", "seconds"})

    is_over: bool
    changed: Sequence[str]
    """A line for each change."""
    seconds: float | None
    """How long the command was to wait at most."""

    @property
    def exit_code(self) -> int:
        return 0 if self.is_over else EXIT_UNFINISHED

    def render(self) -> None:
        states = ", ".join(f"{self.counts[state]} {state}" for state in STATES if state in self.counts) or "no runs"
        end = "over" if self.is_over else f"goes on after {self.seconds:g} s"
        terminal.say(f"{self.study}: {end}: {states}")


def wait(arguments: Arguments) -> WaitResult:
    """Wait until the runs of a study are over, for so many seconds at most, and print what changes."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    chosen = chosen_runs(arguments, study_dir)
    ids = {run.run.id for run in chosen} if arguments.only or arguments.exclude else None
    watcher, changed = Watcher(study_dir, ids), list[str]()
    until = time.monotonic() + (math.inf if arguments.seconds is None else arguments.seconds)
    before = study = watcher.look()
    while not study.is_over and time.monotonic() < until:
        time.sleep(max(0.0, min(watcher.pause_seconds, until - time.monotonic())))
        before, study = study, watcher.look()
        lines = changes(before, study)
        terminal.say(*lines) if lines else None
        changed += lines
    runs = [run for run in observe_study(study_dir) if ids is None or run.run.id in ids]
    found = status_of(runs, study_dir)
    return WaitResult(**vars(found), is_over=study.is_over, changed=changed, seconds=arguments.seconds)


# -- logs ----------------------------------------------------------------------------------------------------------


def logs(arguments: Arguments) -> tuple[Any, int]:
    """Print the last lines of each run's latest attempt, or follow one run."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    runs = chosen_runs(arguments, study_dir)
    if arguments.one_run:
        runs = named_runs(runs, arguments.one_run, study_dir)
    if arguments.follow:
        if arguments.json:
            raise UsageError("--follow prints lines as they come, --json one document at the end; use one of them")
        if len(runs) != 1:
            raise UsageError(f"--follow: expected one run, got {len(runs)}; name it: logs {arguments.study} RUN -f")
        follow_logs(runs[0], arguments.lines)
        return None, 0
    records, code = [], 0
    for run in runs:
        try:
            records.append(print_log(run, arguments.lines, terminal.results())[0])
        except FileError as error:  # the logs of the other runs can be read
            terminal.tell(f"error: {error}")
            code = EXIT_RUN_FAILED
    return {"study": study_dir.name, "runs": records}, code


def print_log(run: ObservedRun, lines: int, stream: TextIO) -> tuple[dict[str, Any], dict[Path, int]]:
    """Print the last ``lines`` lines that the latest attempt wrote to stdout and stderr.

    Returns them as data, and the positions up to which the logs were read.
    """
    folder, name = run.run, run.name
    if not folder.last_attempt():
        canary = RunDirectory.canary(folder.path.parent, folder.id)
        folder, name = (canary, f"{name}, canary") if canary.last_attempt() else (folder, name)
    attempt, positions = folder.last_attempt(), dict[Path, int]()
    record: dict[str, Any] = {"name": name, "id": folder.id, "attempt": attempt or None, "stdout": [], "stderr": []}
    if not attempt:
        why = run.observation.reason
        print(printable(f"== {name}: no attempt yet{f': {why}' if why else ''}"), file=stream)
        return record, positions
    print(printable(f"== {name}, attempt {attempt}: {folder.attempt_dir(attempt)}"), file=stream)
    for path in folder.logs(attempt):
        raw, positions[path] = _tail(path)
        output, _, first_rank = path.stem.partition("-")
        shown = _lines(raw)[-lines:]
        record[output] += shown
        labels = [f"node of rank {first_rank}"] * bool(first_rank) + ["stderr"] * (output == "stderr")
        for line in shown:
            print(printable(f"{', '.join(labels)}: {line}" if labels else line), file=stream)
    return record, positions


def follow_logs(run: ObservedRun, lines: int) -> None:
    """Print the log of a run as it grows, across attempts, until the state of the run is final."""
    attempt = 0
    positions: dict[Path, int] = {}
    watcher = Watcher(run.run.path.parent, [run.run.id])
    while True:
        newest, over = run.run.last_attempt(), watcher.look().is_over
        if newest > attempt:
            record, positions = print_log(run, lines, sys.stdout)
            attempt = record["attempt"]
        for path in run.run.logs(attempt) if attempt else ():  # another node may begin later
            positions.setdefault(path, 0)
        for path, position in positions.items():
            positions[path] = _print_from(path, position, rest=over)
        if over:
            return
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def _tail(path: Path) -> tuple[bytes, int]:
    """Return the end of a log, and the position after it."""
    with contextlib.suppress(FileNotFoundError), open_regular(path, largest=LARGEST_HASHED) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LARGEST_TAIL))
        return file.read(LARGEST_TAIL), file.tell()
    return b"", 0


def _lines(raw: bytes) -> list[str]:
    """Return the lines of a log, each as a terminal would show it after carriage returns."""
    text = raw.decode("utf-8", errors="replace")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []


def _print_from(path: Path, position: int, *, rest: bool) -> int:
    """Print the complete lines after ``position``, with ``rest`` also an incomplete one. Return the new position."""
    with contextlib.suppress(FileNotFoundError), open_regular(path, largest=LARGEST_HASHED) as file:
        file.seek(position)
        while raw := file.read(LARGEST_TAIL):
            end = raw.rfind(b"\n") + 1
            if not end and (rest or len(raw) == LARGEST_TAIL):
                end = len(raw)
            if not end:
                break
            for line in _lines(raw[:end]):
                print(printable(line))
            position += end
            file.seek(position)
    return position


# -- export --------------------------------------------------------------------------------------------------------


def export(arguments: Arguments) -> tuple[Any, int]:
    """Export what is new of each run, once or until every run is over."""
    from analysis.export import export_run

    if arguments.target is None or arguments.output is None:
        raise UsageError("export: expected --to and --output, such as: --to csv --output exported")
    study_dir = find_trained(arguments)
    watcher, points, problems = Watcher(study_dir), Counter[str](), dict[str, None]()
    while True:
        is_over = not arguments.watch or watcher.look().is_over
        for run in _top(chosen_runs(arguments, study_dir), arguments.top):
            if run.config is None:
                terminal.tell(f"warning: {run.name} is left out: {run.observation.reason}")
                continue
            try:
                new = export_run(run.run, run.name, arguments.target, arguments.output)
            except UnfitFileError as error:  # the files of the other runs can be read
                problems[str(error)] = None
                continue
            if new:
                points[run.run.id] += new
                terminal.say(f"{run.name}: {new} new points")
        if is_over:
            for problem in problems:
                terminal.tell(f"error: {problem}")
            document = {"study": study_dir.name, "output": str(arguments.output), "points": dict(points)}
            return document, EXIT_RUN_FAILED if problems else 0
        time.sleep(max(EXPORT_SECONDS, watcher.pause_seconds))


def _top(runs: Sequence[ObservedRun], number: int | None) -> Sequence[ObservedRun]:
    """Return the ``number`` runs of each text with the lowest validation perplexity. ``None``: all runs."""
    if number is None:
        return runs
    ranked = sorted(
        (run for run in runs if run.observation.best_val_ppl is not None),
        key=lambda run: run.observation.best_val_ppl or 0.0,
    )
    places = Counter[str]()
    found = []
    for run in ranked:
        places[text_of(run)] += 1
        if places[text_of(run)] <= number:
            found.append(run)
    return found


# -- cancel --------------------------------------------------------------------------------------------------------


def cancel(arguments: Arguments) -> tuple[Any, int]:
    """Stop runs that are not over, and wait until they have stopped. Exit code 1 if one has not."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    runs = chosen_runs(arguments, study_dir)
    if arguments.all and arguments.only:
        raise UsageError("--all cancels every run, --only some of them; use one of them")
    if arguments.dry_run:
        return _would_cancel(runs, study_dir), 0
    number = len(not_over(runs))
    if number and not arguments.all and not arguments.only:
        what = f"all {number} runs" if number > 1 else "the one run"
        what = f"{what} of {printable(study_name(study_dir))} that {'are' if number > 1 else 'is'} not over"
        terminal.confirm(
            f"cancel {what}",
            without_terminal=f"cancel would stop {what}; add --all, or choose some with --only",
            refused="nothing is cancelled; choose runs with --only, or answer y",
        )
    marked = mark(runs)
    problems: dict[Path, str] = {}
    requests = Requests(study_dir).newest_first() if marked else ()
    for name in BACKENDS.keys() & {request.record.backend for request in requests}:
        if (kind := backend_class(name)).is_scheduled:
            problems |= kind.cancel(study_dir, marked)
    canaries = cancel_canaries(study_dir) if marked else []
    problems = wait_until_stopped([*marked, *canaries]) | problems
    for one in canaries:
        if one.run.path in problems:
            terminal.tell(f"error: the canary of {one.name}: {problems[one.run.path]}")
    for one in marked:
        if (problem := problems.get(one.run.path)) is None:
            terminal.say(f"cancelled {one.name}")
        else:
            terminal.tell(f"error: {one.name}: {problem}")
    if not marked:
        such = " such" if arguments.only or arguments.exclude else ""
        terminal.say(f"nothing to cancel: every{such} run is over")
    after = observe_study(study_dir)
    if marked and not any(run.observation.state in ("queued", "running") for run in after):
        # Its launcher is about to exit; a `retry` now must not find it there.
        wait_until_free([launcher_dir(study_dir)], seconds=10)
    ids = {one.run.id for one in marked}
    records = [{**run.to_dict(), "problem": problems.get(run.run.path)} for run in after if run.run.id in ids]
    return {"study": study_dir.name, "runs": records}, EXIT_RUN_FAILED if problems else 0


def not_over(runs: Iterable[ObservedRun]) -> list[ObservedRun]:
    """Return the runs that `cancel` stops."""
    return [run for run in runs if run.observation.state in ("pending", "queued", "running")]


def _would_cancel(runs: Iterable[ObservedRun], study_dir: Path) -> dict[str, Any]:
    """Say which runs `cancel` would stop."""
    found = not_over(runs)
    for run in found:
        terminal.say(f"would cancel {run.name}: {run.observation.state}")
    if not found:
        terminal.say("nothing to cancel: every run that was chosen is over")
    return {"study": study_dir.name, "runs": [run.to_dict() for run in found]}


def mark(runs: Iterable[ObservedRun]) -> list[ObservedRun]:
    """Mark every run that has not ended as cancelled, and return these runs in the order of ``runs``.

    The mark is one request that names all of them. A launcher or a job on any machine skips a marked run in its queue
    and stops one that is running. Workers check for it as well. A run that finishes at the same moment stays done.

    Raises:
        FileError: the request cannot be written; nothing is cancelled.
    """
    found = not_over(runs)
    if found:
        wanted = {one.run.id: Wanted() for one in found}
        record = RequestFile(kind="cancel", at=timestamp(), launcher=this_launcher(), runs=wanted)
        file_request(found[0].run.path.parent, record)
    return found


def cancel_canaries(study_dir: Path) -> list[ObservedRun]:
    """Mark the canaries of a study as cancelled if no run is left for which they run, and return them."""
    folder = study_dir / CANARY_FOLDER
    if is_behaviour_study(study_dir) or not RunDirectory.any_in(folder):
        return []
    left = [one for one in observe_study(study_dir) if one.observation.state in ("queued", "running")]
    if not all(one.run.is_cancelled() for one in left):
        return []
    has_launcher = launcher_of(study_dir) is not None
    canaries = observe_study(folder)
    return mark(one for one in canaries if has_launcher or one.observation.state in ("queued", "running"))


def wait_until_stopped(runs: Iterable[ObservedRun]) -> dict[Path, str]:
    """Wait until no worker trains any of these runs. Return the folder of each that is trained on, and a line."""
    stopping = Stopping([one.run for one in runs])
    return {
        folder: f"marked as cancelled, but {who} has not stopped yet; see status, and end it there if it hangs"
        for folder, who in stopping.wait(STOP_SECONDS).items()
    }


# -- schema, data -------------------------------------------------------------------------------------------------


def schema(arguments: Arguments) -> tuple[Any, int]:
    """Print the JSON Schema of manifests, or of the document of a command."""
    if arguments.document:
        from jobs.cli.documents import schema_of

        found = schema_of(arguments.document)
    else:
        from jobs.manifests.json_schema import manifest_schema  # it imports pydantic

        found = manifest_schema()
    if not arguments.json:
        terminal.say(*json.dumps(found, indent=1).split("\n"))
    return found, 0


def data(arguments: Arguments) -> tuple[Any, int]:
    """Download a corpus and verify it."""
    from seqlm.data.corpus import downloaded_ptb
    from seqlm.data.ptb_download import download_ptb

    folder = arguments.to or downloaded_ptb()
    fetched = download_ptb(folder)
    terminal.say(f"Penn Treebank is in {folder} ({len(fetched)} files fetched, all verified)")
    return {"directory": str(folder), "fetched": [str(path) for path in fetched]}, 0
