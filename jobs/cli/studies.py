"""``list``, ``upgrade`` and ``clean``: the studies in the runs folder, their formats, and what may be deleted."""

import contextlib
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jobs.cli.arguments import Arguments, Common
from jobs.cli.naming import chosen_runs, find_trained, text_of
from jobs.cli.view import STATES, STATUS, records_of
from jobs.study.folder import (
    Observer,
    find_any_study,
    launching,
    observe_study,
    open_jobs,
    study_folders,
    study_name,
)
from jobs.study.record import UNPLANNED, KeptManifests
from jobs.study.scheduler import Claim, Views
from jobs.terminal import Column, Result, confirm, memory, perplexity, say, show, tell
from seqlm.errors import FileError, RunBusyError, SeqlmError, UnfitFileError, UsageError, file_errors, printable
from seqlm.files import delete, rename
from seqlm.lease import live_owner
from seqlm.reading import below, confine, exists, is_file, is_folder, is_link, is_mine, listed, status, timestamp
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import Requests, file_request
from seqlm.rundir import (
    AUDITS_FOLDER,
    BEHAVIOUR_FOLDER,
    CANARY_FOLDER,
    STUDY_FORMAT,
    RunDirectory,
    require_format,
    study_record_file,
)
from seqlm.state import State


@dataclass(frozen=True, kw_only=True)
class ListResult(Result):
    """The studies of a folder."""

    runs_dir: str
    studies: Sequence[Mapping[str, Any]]

    def render(self) -> None:
        show(COLUMNS, self.studies)
        if not self.studies:
            say(f"no study in {self.runs_dir}; `run` starts one")


def show_studies(arguments: Common) -> ListResult:
    """Return every folder of the runs folder, the last changed first; folders without a run come last.

    Hidden folders and reports are left out. Each scheduler is queried once.
    """
    runs_dir = arguments.runs_dir
    if is_file(runs_dir):
        raise FileError(f"cannot read {runs_dir}: Not a directory")
    folders = study_folders(runs_dir)
    for folder in folders:
        confine(folder)
    views = Views()
    views.of({job for folder in folders for job in _open_jobs(folder)})
    records = [summary(folder, views) for folder in folders]
    records.sort(key=lambda one: one["changed_at"] or "", reverse=True)
    return ListResult(runs_dir=str(runs_dir), studies=records)


def _open_jobs(study_dir: Path) -> Iterable[Claim]:
    with contextlib.suppress(SeqlmError, OSError):  # the summary of this study says what is wrong
        return [job for job, _ in open_jobs(study_dir).values() if job is not None]
    return ()


def summary(study_dir: Path, views: Views) -> dict[str, Any]:
    """Return what ``list`` has of one folder. A damaged one has a ``problem``.

    A run of the manifest that has no folder yet is pending.
    """
    record: dict[str, Any] = {"study": study_dir.name, "path": str(study_dir), "runs": 0, "states": {}}
    record |= {"unplanned": 0, "changed_at": None, "best_val_ppl": None, "texts": 0, "problem": None}
    states: Counter[State] = Counter()
    try:
        require_format(study_dir)
        runs, file = observe_study(study_dir, views), study_record_file(study_dir)
        if not runs and not is_file(file):
            return {**record, "problem": "holds no runs"}
        there = [one.run.path for one in runs if exists(one.run.path)] or [file if is_file(file) else study_dir]
        changed_at = datetime.fromtimestamp(max(status(path).st_mtime for path in there), UTC)
        known = [(ppl, text_of(one)) for one in runs if (ppl := one.observation.best_val_ppl) is not None]
        texts = len({text for _, text in known})
        best = min((ppl for ppl, _ in known), default=None) if texts == 1 else None
        record |= {"changed_at": changed_at.isoformat(timespec="seconds"), "best_val_ppl": best, "texts": texts}
        states.update(one.observation.state for one in runs if one.origin not in UNPLANNED)
        record["unplanned"] = len(runs) - states.total()
        problems: list[str] = []
        states["pending"] += len(KeptManifests(study_dir, problems.append).absent(one.run.id for one in runs))
        record["problem"] = next((line.removeprefix("warning: ") for line in problems), None)
    except SeqlmError as error:
        record["problem"] = str(error)
    except OSError as error:
        record["problem"] = str(FileError.from_os_error("read", error.filename or study_dir, error))
    return {**record, "runs": states.total(), "states": {state: states[state] for state in STATES if states[state]}}


def _state(record: Mapping[str, Any]) -> str:
    """Such as ``5 of 12 done, 1 running, 2 failed``; what is wrong with the folder, if anything is."""
    states = record["states"]
    others = [f"{number} {state}" for state, number in states.items() if state != "done"]
    counts = [f"{states.get('done', 0)} of {record['runs']} done", *others] if record["runs"] else []
    more = f"{record['unplanned']} more that no manifest asks for" if record["unplanned"] else None
    return "; ".join(filter(None, (", ".join(counts), more, record["problem"])))


def _local_time(changed_at: str | None) -> str:
    return datetime.fromisoformat(changed_at).astimezone().strftime("%Y-%m-%d %H:%M") if changed_at else "-"


def _best(record: Mapping[str, Any]) -> str:
    """The lowest validation perplexity. Those of several texts or vocabularies do not compare."""
    return f"({record['texts']} texts)" if record["texts"] > 1 else perplexity(record["best_val_ppl"])


COLUMNS = (
    Column("study"),
    Column("state", _state),
    Column("changed", "changed_at", _local_time),
    Column("best val ppl", _best, right=True),
)


# -- upgrade -------------------------------------------------------------------------------------------------------


def upgrade_study(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Convert a study of an earlier format into one that this version reads."""
    from jobs.study.upgrade import upgrade  # it reads files of earlier versions

    study_dir = find_any_study(arguments.study, arguments.runs_dir)
    notes: list[str] = []
    done = upgrade(study_dir, notes.append)
    for line in notes:
        tell(line)
    name, now = study_name(study_dir), f"format {STUDY_FORMAT}"
    if done is None:
        say(f"{name} is of {now} already, which this version reads")
    else:
        say(f"{name} is of {now} now; its files of format {done.format} are in {done.earlier}")
    before, earlier = (None, None) if done is None else (done.format, str(done.earlier))
    return {"study": name, "format": STUDY_FORMAT, "before": before, "earlier": earlier, "notes": notes}, 0


# -- clean ---------------------------------------------------------------------------------------------------------
# A finished run keeps all that a report, a behaviour job or a reader needs: only its last checkpoint goes, which serves
# nothing but going on. Whole runs go only if a user has chosen them. What is a link, or is reached through one, stays.

Kind: TypeAlias = Literal["run", "last checkpoint"]

KINDS: dict[Kind, str] = {
    "run": "chosen with --runs, with their results, behaviour jobs, canaries and audits",
    "last checkpoint": "of runs that are done; their best.pt stays, and they cannot go on to more epochs",
}
"""Each kind, in the order in which it is shown, with a note for a person."""
LEFTOVERS = (Column("kind"), Column("path"), Column("size", "size_bytes", memory, right=True))


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or folder that may be deleted."""

    kind: Kind
    path: Path
    """Relative to the study's folder."""
    size_bytes: int
    problem: str | None = None
    """Why it was not deleted; `None`: it was, or nothing has been tried."""


def clean_study(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Show what may be deleted, ask, and delete it."""
    study_dir = find_trained(arguments)
    run_ids = _runs_to_delete(arguments, study_dir)
    items = find_leftovers(study_dir, run_ids, tell)
    only_shows = arguments.dry_run or not items
    name = printable(study_name(study_dir))
    if items:
        show(LEFTOVERS, items)
        for kind in dict.fromkeys(item.kind for item in items):
            say(f"{kind}: {KINDS[kind]}")
    else:
        say(f"nothing to delete in {name}")
    if not only_shows:
        what = f"{_what(items)} of {name}"
        if not arguments.yes:
            confirm(
                f"delete {what}",
                without_terminal=f"clean would delete {what}; add --yes to delete, or --dry-run to look",
                refused="nothing is deleted; expected y or yes",
            )
        items = delete_leftovers(study_dir, items, run_ids)
        for item in items:
            if item.problem:
                tell(f"error: {item.problem}")
        say(f"deleted {_what([item for item in items if not item.problem])}")
    freed = 0 if only_shows else sum(item.size_bytes for item in items if item.problem is None)
    records = [{**vars(item), "path": str(item.path)} for item in items]
    document = {"study": study_dir.name, "dry_run": arguments.dry_run, "freed_bytes": freed}
    return {**document, "items": records}, int(any(item.problem for item in items))


def _runs_to_delete(arguments: Arguments, study_dir: Path) -> list[str] | None:
    """Show the runs that are chosen with ``--runs``, and return their ids. ``None``: the flag is not given."""
    if arguments.runs != bool(arguments.only):
        raise UsageError("--runs and --only belong together: clean STUDY --runs --only state=failed")
    if not arguments.runs:
        return None
    chosen = chosen_runs(arguments, study_dir)
    runs = [run for run in chosen if run.config is not None]
    for run in chosen:
        if run.config is None:  # it may be done, and only look like a failed one
            tell(f"{run.name} stays: {run.observation.reason}")
    if runs:
        show(STATUS, records_of(runs))
    return [run.run.id for run in runs]


def _what(items: Sequence[Leftover]) -> str:
    what = "file or folder" if len(items) == 1 else "files and folders"
    return f"{len(items)} {what} ({memory(sum(item.size_bytes for item in items))})"


def find_leftovers(
    study_dir: Path, run_ids: Collection[str] | None = None, tell: Callable[[str], None] = lambda line: None
) -> list[Leftover]:
    """List what may be deleted from a study. Writes nothing.

    With ``run_ids``, it lists the folders of these runs, and nothing else. ``tell`` is called with a line for each
    folder that is left alone because it is a link.

    Raises:
        RunBusyError: one of these runs is running or queued.
        UsageError: the study belongs to another user.
        FileError: a folder or a record of the study's jobs cannot be read.
    """
    confine(study_dir)
    found: list[Leftover] = []
    views = Views()

    @contextlib.contextmanager
    def left_alone() -> Iterator[None]:
        try:
            yield
        except UnfitFileError as error:  # a link in the place of a folder
            tell(f"left alone: {error}")

    def add(kind: Kind, path: Path) -> None:
        if not is_link(path):
            there = map(status, (path, *below(path)) if exists(path) else ())
            size_bytes = sum(one.st_size for one in there if not stat.S_ISDIR(one.st_mode))
            found.append(Leftover(kind=kind, path=path.relative_to(study_dir), size_bytes=size_bytes))

    def look(observer: Observer, run: RunDirectory) -> None:
        state = observer.look_at(run).observation.state  # "failed" if a file of it is damaged
        # A worker may be at it whatever its files say of its state.
        is_busy = live_owner(run.lease_dir) is not None or state in ("running", "queued")
        if run_ids is not None and is_busy:
            raise RunBusyError(f"{run.path} is running or queued; `cancel` stops it; nothing was deleted")
        if run_ids is not None and (exists(run.path) or run.launched()):
            add("run", run.path)
        elif run_ids is None and state == "done" and not is_busy:
            has_best = is_file(run.best_checkpoint) and status(run.best_checkpoint).st_size > 0
            for path in (run.last_checkpoint, run.previous_checkpoint) if has_best else ():
                if exists(path):
                    add("last checkpoint", path)

    with file_errors("read", study_dir, within=True):
        if not is_mine(study_dir):
            raise UsageError(f"{study_dir} belongs to another user; clean deletes only in your own studies")
        below_study = [study_dir / BEHAVIOUR_FOLDER, study_dir / CANARY_FOLDER, *_audits(study_dir)]
        for folder in (study_dir, *below_study):
            with left_alone():
                observer = Observer(folder, views)
                chosen = [RunDirectory(folder / run_id) for run_id in run_ids or ()]
                for run in RunDirectory.unordered_in(folder) if run_ids is None else chosen:
                    with left_alone():
                        look(observer, run)
    return found


def delete_leftovers(
    study_dir: Path, shown: Sequence[Leftover], run_ids: Collection[str] | None = None
) -> list[Leftover]:
    """Delete what was shown, unless it has come into use since; return each item with its ``problem``.

    Owns the study, its behaviour jobs and its audits meanwhile.

    Raises:
        RunBusyError: a launcher is at work on the study, its behaviour jobs or an audit, or as :func:`find_leftovers`.
        UsageError, FileError: as :func:`find_leftovers`.
    """
    with contextlib.ExitStack() as owned:
        owned.enter_context(launching(study_dir))
        for folder in (study_dir / BEHAVIOUR_FOLDER, *_audits(study_dir)):
            if is_folder(folder) and not is_link(folder):
                owned.enter_context(launching(folder))
        now = {item.path for item in find_leftovers(study_dir, run_ids)}
        in_use = "stays: it has come into use meanwhile"
        deleted = [
            replace(item, problem=_delete(study_dir / item.path) if item.path in now else f"{item.path} {in_use}")
            for item in shown
        ]
        gone = [item.path for item in deleted if item.kind == "run" and item.problem is None]
        for folder in dict.fromkeys(path.parent for path in gone):  # their runs are listed no more as runs to train
            names = {path.name for path in gone if path.parent == folder}
            if ids := sorted(names & Requests(study_dir / folder).by_run().keys()):
                runs = dict.fromkeys(ids, Wanted())
                file_request(study_dir / folder, RequestFile(kind="remove", at=timestamp(), runs=runs))
        return deleted


def _audits(study_dir: Path) -> list[Path]:
    """Return the folders of the audits of a study; none if a link is in their place."""
    return [] if is_link(study_dir / AUDITS_FOLDER) else listed(study_dir / AUDITS_FOLDER, "[0-9]*")


def _delete(path: Path) -> str | None:
    """Delete a file or folder; return what went wrong. A link inside a folder goes, and what it names stays."""
    try:
        if is_folder(path):
            # Under a temporary file's name first: a run of which half is deleted must not look like a run.
            hidden = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
            rename(path, hidden)
            path = hidden
        with contextlib.suppress(FileNotFoundError):
            delete(path)
    except FileError as error:
        return str(error)
    except OSError as error:
        return str(FileError.from_os_error("delete", path, error))
    return None
