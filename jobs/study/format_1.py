"""Convert a study of format 1, which version 0.2.0 wrote, for :mod:`jobs.study.upgrade`.

What differs: the number of epochs was part of a run's identity; `failure.json` said how a run had failed, in the run's
folder, or in that of an attempt if the run was tried again; `job.json` was about the newest attempt alone;
`worker.json` had the end of a rank's process; `provenance.json` had the versions of packages; locks stood next to
leases; a cancelled run was one that had failed so.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from seqlm.config import FORMER_KEYS, RunConfig, nested
from seqlm.errors import ConfigError, DamagedFileError, file_errors, printable
from seqlm.files import copy_file, delete, make_directory, open_at, read_json, read_json_lines, write_json, write_once
from seqlm.reading import LARGEST_HASHED, below, exists, is_file, is_folder, listed, open_regular, timestamp
from seqlm.records.attempts import Environment, Exit, LauncherProcess, RankEnd, Start
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import RUN_ID, file_request
from seqlm.resources import Resources
from seqlm.rundir import BEHAVIOUR_FOLDER, CANARY_FOLDER, FINGERPRINT_DIGITS, STUDY_FORMAT, study_record_file
from seqlm.schema import fields_of, read

Tell: TypeAlias = Callable[[str], None]
Plain: TypeAlias = Mapping[str, Any]

LAUNCH_LOCK, WORKER_LOCK = "launch.lock", "worker.lock"
_JOBS = "slurm/jobs.json"
_REPLACED = ("study.json", "queue.json", LAUNCH_LOCK, "slurm", CANARY_FOLDER, BEHAVIOUR_FOLDER)
"""Files and folders of a study that have no place in it any more, or get another content, besides its runs."""
_COPIED = ("provenance.json", "metrics.jsonl", "checkpoints/position.json")
_CHECKPOINTS = ("last.pt", "previous.pt", "best.pt")
_KINDS = ("oom", "diverged", "node", "preempted", "timeout", "code", "cancelled")
_LATER_KEYS = (("model", "implementation", "fused"), ("model", "attention", "own"), ("train", "precision", "fp32"))
"""Section, key and value of what was left out of a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run of format 1."""

    path: Path
    config: RunConfig
    fingerprint: str
    """Of format 1."""
    epochs: int
    """Finished ones."""
    result: Plain | None

    @property
    def id(self) -> str:
        """Its id in this version."""
        slug = self.path.name.rpartition("-")[0]
        return f"{slug}-{self.config.fingerprint()[:FINGERPRINT_DIGITS]}"


def is_done(run: Path) -> bool:
    """Return whether a run or canary is done. It has its result for good in both formats."""
    return exists(run / "result.json") or exists(run / "canary.json")


def jobs_of(study_dir: Path) -> Sequence[str]:
    """Return the ids of the jobs, such as ``12_3``, of the runs of a study that are not done."""
    found: list[str] = []
    for folder in (study_dir, study_dir / BEHAVIOUR_FOLDER, study_dir / CANARY_FOLDER):
        jobs = _read(folder / _JOBS).get("jobs")
        for run_id, job in jobs.items() if isinstance(jobs, dict) else ():
            if isinstance(job, str) and RUN_ID.fullmatch(run_id) and not is_done(folder / run_id):
                found.append(job)
    return found


def convert(study_dir: Path, new: Path, tell: Tell) -> list[str]:
    """Write a study of this version into the folder ``new``. Return the paths in the study of what it replaces.

    ``tell`` gets a line about each run that is left out.

    Raises:
        FileError: a file cannot be read or written.
    """
    runs = _runs_in(study_dir, tell)
    prints: dict[str, str] = {run.fingerprint: run.config.fingerprint() for run in runs}
    by_identity: defaultdict[str, list[_Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.config.fingerprint()].append(run)
    cancelled: list[str] = []
    for same in by_identity.values():
        kept = max(same, key=lambda run: (run.epochs, run.result is not None))
        for other in same:
            if other is not kept:
                tell(
                    f"{other.path.name} is the same run as {kept.path.name}, with other epochs, and stays in "
                    "earlier/format-1 alone"
                )
        if _convert_run(kept, new / kept.id, new):
            cancelled.append(kept.id)
    if any(exists(run.path / "behaviour.json") for run in runs):
        tell("`behaviour` or `report` computes the behaviour of the models again: its measures have changed since")
    if cancelled:
        wanted = dict.fromkeys(cancelled, Wanted())
        file_request(new, RequestFile(kind="cancel", at=timestamp(), runs=wanted))
    raw = _read(study_record_file(study_dir))
    write_json(study_record_file(new), _study_record(raw, prints))
    names = [*_REPLACED, *(run.path.name for run in runs)]
    return [name for name in names if exists(study_dir / name)]


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON file of format 1; nothing if it is missing or damaged, which that version took for the same."""
    with contextlib.suppress(DamagedFileError):
        return read_json(path) or {}
    return {}


def _config_of(raw: Plain) -> RunConfig | None:
    """Return a configuration of format 1. ``None``: it is damaged.

    What computed a model's function was a key then; all that stands for the same function is one configuration now.
    """
    model = raw.get("model")
    if not isinstance(model, dict):
        return None
    with contextlib.suppress(ConfigError):
        return RunConfig.from_dict({**raw, "model": {key: v for key, v in model.items() if key not in FORMER_KEYS}})
    return None


def _runs_in(study_dir: Path, tell: Tell) -> list[_Run]:
    found = []
    for path in listed(study_dir, "[!.]*-*"):
        raw = _read(path / "config.json") if is_folder(path) and RUN_ID.fullmatch(path.name) else {}
        config = _config_of(raw)
        if config is None or path.name.rpartition("-")[2] != former_fingerprint(raw)[:FINGERPRINT_DIGITS]:
            if raw:
                tell(f"{printable(path.name)} stays as it is: its config.json is damaged")
            continue
        epochs, _ = read_json_lines(path / "metrics.jsonl", lambda line: isinstance(line, dict) and "epoch" in line)
        result = _read(path / "result.json") if exists(path / "result.json") else None
        run = _Run(path=path, config=config, fingerprint=former_fingerprint(raw), epochs=len(epochs), result=result)
        found.append(run)
    return found


def former_fingerprint(raw: Plain) -> str:
    """Return the fingerprint that version 0.2.0 gave to a configuration, which ``config.json`` has in full."""
    identity = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for section, key, neutral in _LATER_KEYS:
        if identity[section].get(key) == neutral:
            del identity[section][key]
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


# -- a run -----------------------------------------------------------------------------------------------------------


def _convert_run(run: _Run, target: Path, new: Path) -> bool:
    """Make the folder of a run. Return whether it was cancelled before its first attempt, which a request then says.

    ``new`` is the folder of its study, for the environment of its workers.
    """
    make_directory(target / "checkpoints")
    write_json(target / "config.json", run.config.to_dict())
    for name in _COPIED:
        if is_file(run.path / name):
            copy_file(run.path / name, target / name)
    for name in _CHECKPOINTS:
        if is_file(run.path / "checkpoints" / name):
            _convert_checkpoint(run, run.path / "checkpoints" / name, target / "checkpoints" / name)
    if run.result is not None:
        epochs = run.result.get("final_epoch")
        known = {"epochs": epochs + 1} if type(epochs) is int else {}
        write_json(target / "result.json", {**known, **run.result})
    _copy_tree(run.path / "lease", target / "lease")
    _copy_tree(run.path / "attempts", target / "attempts")
    failure = _read(run.path / "failure.json") if run.result is None else {}
    attempts = [int(path.name) for path in listed(target / "attempts", "[0-9]*") if path.name.isdecimal()]
    digest = _environment(_read(run.path / "provenance.json"), new)
    for attempt in attempts:
        is_last = attempt == max(attempts)
        folder = target / "attempts" / f"{attempt:04d}"
        own = failure if failure.get("attempt", max(attempts)) == attempt else {}
        job = _read(run.path / "job.json") if is_last else {}
        is_done = is_last and run.result is not None
        _convert_attempt(folder, own or _read(folder / "failure.json"), job, digest, is_done=is_done)
    if failure and not attempts and failure.get("kind") != "cancelled":
        _exit_of(failure).write(_made(target / "attempts" / "0001"))
    return bool(failure) and not attempts and failure.get("kind") == "cancelled"


def _made(folder: Path) -> Path:
    make_directory(folder)
    return folder


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder, without its links."""
    for path in below(source):
        if is_folder(path):
            make_directory(target / path.relative_to(source))
        elif is_file(path):
            make_directory((target / path.relative_to(source)).parent)
            copy_file(path, target / path.relative_to(source))


def _convert_checkpoint(run: _Run, source: Path, target: Path) -> None:
    """Copy a checkpoint, with the fingerprint of this version in place of that of format 1.

    A checkpoint is an archive of uncompressed parts, one of which is a pickle with the fingerprint as a text. One that
    is damaged is copied as it is; training then says so.
    """
    before, after = run.fingerprint.encode(), run.config.fingerprint().encode()
    with (
        file_errors("write", target),
        open_regular(source, largest=LARGEST_HASHED) as file,
        os.fdopen(open_at(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as copy,
    ):
        try:
            _copy_archive(file, copy, before, after)
        except (zipfile.BadZipFile, EOFError):
            for stream in (file, copy):
                stream.seek(0)
            copy.truncate()
            shutil.copyfileobj(file, copy)


def _copy_archive(file: BinaryIO, copy: BinaryIO, before: bytes, after: bytes) -> None:
    """Copy an archive of uncompressed parts, and replace a text of its pickle by one of the same length.

    Raises:
        BadZipFile, EOFError: it is damaged, or no such archive.
    """
    with zipfile.ZipFile(file) as old_archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as new_archive:
        for part in old_archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile
            name = zipfile.ZipInfo(part.filename)
            with old_archive.open(part) as content, new_archive.open(name, "w", force_zip64=True) as new_content:
                if part.filename.endswith("/data.pkl"):
                    new_content.write(content.read().replace(before, after))
                else:
                    shutil.copyfileobj(content, new_content)


# -- an attempt ------------------------------------------------------------------------------------------------------


def _convert_attempt(folder: Path, failure: Plain, job: Plain, digest: str | None, *, is_done: bool) -> None:
    """Write ``start.json``, ``end.json``, ``exit.json``, and the digest of the environment into ``worker.json``."""
    start = _start_of(job)
    if start is not None:
        start.write(folder)
    is_ranks = type(failure.get("rank")) is int
    for path in listed(folder, "worker*.json"):
        worker = _read(path)
        if digest is not None:
            write_json(path, {**worker, "environment": digest})
        rank = worker.get("rank", 0)
        ended_at = worker.get("ended_at")
        if type(rank) is not int or not isinstance(ended_at, str):
            continue  # a rank that was killed has not recorded its end
        outcome = "done" if is_done else "interrupted"
        end = RankEnd(rank=rank, ended_at=ended_at, outcome=outcome)
        if is_ranks and failure["rank"] == rank:
            end = _end_of(failure, rank, ended_at)
        end.write_file(folder / (f"end-{rank}.json" if rank else RankEnd.FILE))
    if is_ranks and not exists(folder / (f"end-{failure['rank']}.json" if failure["rank"] else RankEnd.FILE)):
        rank = failure["rank"]
        _end_of(failure, rank, None).write_file(folder / (f"end-{rank}.json" if rank else RankEnd.FILE))
    elif failure and not is_ranks:
        _exit_of(failure).write(folder)
    with file_errors("delete", folder), contextlib.suppress(FileNotFoundError):
        delete(folder / "failure.json")


def _start_of(job: Plain) -> Start | None:
    """Return how the newest attempt was started. ``None``: nothing is known of it."""
    if not job:
        return None
    launcher, resources = job.get("launcher"), Resources()
    with contextlib.suppress(ConfigError):
        resources = read(Resources, {k: v for k, v in _table(job, "resources").items() if k in fields_of(Resources)})
    is_slurm = job.get("backend") == "slurm"
    argv = job.get("argv")
    return Start(
        backend=_text(job, "backend"),
        job_id=_text(job, "job_id") if is_slurm else None,
        launcher=LauncherProcess(pid=_whole(launcher, "pid"), host=_text(launcher, "host")) if launcher else None,
        resources=resources,
        micro_batches=_whole(job, "micro_batches") or 1,
        argv=tuple(word for word in argv if isinstance(word, str)) if isinstance(argv, list) else (),
        code=_text(job, "code") or "",
        started_at=_text(job, "submitted_at"),
    )


def _end_of(failure: Plain, rank: int, ended_at: str | None) -> RankEnd:
    return RankEnd(
        rank=rank,
        ended_at=_text(failure, "failed_at") or ended_at,
        progress=_progress(failure),
        outcome="failed",
        kind=_kind(failure),
        message=_text(failure, "message"),
        where=_text(failure, "where"),
        peer_lost=True if failure.get("peer_lost") is True else None,
        node=_text(failure, "node"),
        micro_batches=_whole(failure, "micro_batches") or None,
    )


def _exit_of(failure: Plain) -> Exit:
    return Exit(
        ended_at=_text(failure, "failed_at"),
        progress=_progress(failure),
        kind=_kind(failure),
        message=_text(failure, "message") or "",
        where=_text(failure, "where"),
        micro_batches=_whole(failure, "micro_batches") or None,
        exit_code=_whole(failure, "exit_code"),
        node=_text(failure, "node"),
        stands=True if failure.get("stands") is True else None,
    )


def _environment(provenance: Plain, new: Path) -> str | None:
    """Write with what versions and variables a run was launched, and return the digest. ``None``: it is not known."""
    versions, variables = _texts(provenance, "versions"), _texts(provenance, "environment")
    if not versions:
        return None
    python = versions.pop("python", None)
    environment = Environment(python=python, packages=versions, variables=variables)
    content = environment.to_text().encode()
    digest = hashlib.sha256(content).hexdigest()
    write_once(_made(new / "environments") / f"{digest}.json", content)
    return digest


# -- study.json ------------------------------------------------------------------------------------------------------


def _study_record(raw: Plain, prints: dict[str, str]) -> dict[str, Any]:
    """Return what ``study.json`` says in this version. ``prints``: fingerprint of format 1 -> that of this version."""
    planned: dict[str, dict[str, Any]] = {}
    epochs_of: dict[str, int] = {}
    for entry in _tables(raw, "planned"):
        before, config = entry.get("fingerprint"), _config_of(nested(_table(entry, "config")))
        if config is None or not isinstance(before, str):
            continue
        fingerprint, epochs = config.fingerprint(), config.train.epochs
        prints[before] = fingerprint
        if epochs <= epochs_of.get(fingerprint, 0):
            continue  # the same run for fewer epochs
        epochs_of[fingerprint] = epochs
        published = _table(entry, "published")
        planned[fingerprint] = {
            **entry,
            "fingerprint": fingerprint,
            "config": config.by_key(),
            "published": {"epochs": epochs, **published} if published else {},
        }

    def after(listed_prints: Any) -> list[str]:
        found = listed_prints if isinstance(listed_prints, list) else []
        return list(dict.fromkeys(prints.get(text, text) for text in found if isinstance(text, str)))

    policy = dict(_table(raw, "policy"))
    if "without_progress" in policy:
        policy["max_stalled_retries"] = policy.pop("without_progress")
    estimates = {
        prints[before]: {"seconds": estimate.get("seconds"), "epochs": epochs_of[prints[before]]}
        for before, estimate in _table(raw, "estimates").items()
        if isinstance(estimate, dict) and prints.get(before) in epochs_of
    }
    return {
        **{key: value for key, value in raw.items() if key != "untracked"},
        "version": STUDY_FORMAT,
        "planned": list(planned.values()),
        "expectations": [
            {**one, "lower": after(one.get("lower")), "higher": after(one.get("higher"))}
            for one in _tables(raw, "expectations")
        ],
        "groups": [{**one, "runs": after(one.get("runs"))} for one in _tables(raw, "groups")],
        "behaviour": after(raw.get("behaviour")),
        "policy": policy,
        "estimates": estimates,
    }


# -- values, as far as they are what they should be -------------------------------------------------------------------


def _table(raw: Plain, key: str) -> dict[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, dict) else {}


def _tables(raw: Plain, key: str) -> list[dict[str, Any]]:
    found = raw.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _texts(raw: Plain, key: str) -> dict[str, str]:
    return {name: text for name, text in _table(raw, key).items() if isinstance(text, str)}


def _text(raw: Any, key: str) -> str | None:
    found = raw.get(key) if isinstance(raw, dict) else None
    return found if isinstance(found, str) else None


def _whole(raw: Any, key: str) -> int | None:
    found = raw.get(key) if isinstance(raw, dict) else None
    return found if type(found) is int else None


def _kind(failure: Plain) -> str:
    kind = failure.get("kind")
    return kind if kind in _KINDS else "code"


def _progress(failure: Plain) -> tuple[int, int] | None:
    match failure.get("progress"):
        case [int(epochs), int(steps)]:
            return epochs, steps
    return None
