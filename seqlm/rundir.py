"""The files of one run: their names, how they are written, and what they say about the state of the run.

A run directory explains itself: launching, training and reporting meet only here. Standard library alone.

One writer per file: the launcher writes ``config.json``, ``provenance.json`` and ``job.json``; the worker writes
everything else. Only for a worker that died without a word, or for a cancelled run, does the launcher write
``failure.json``.

A canary, the short trial of a run before its grid starts, has a folder like any other run,
``runs/<study>/canary/<run id>/``: one level deeper, so that no list of the study's runs holds it. It trains a few
steps, writes ``canary.json`` in place of metrics, checkpoints and result, and with that it is done.

The behaviour of a trained model is computed by a job of its own in ``runs/<study>/behaviour/<run id>/``, whose files
are those of a run, ``task.json`` beside them. It writes ``behaviour.json`` and ``samples.jsonl`` into the run's folder.
The folder ``behaviour`` is looked at like a study: ``status``, ``logs`` and ``cancel`` take it for one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from seqlm.atomic import file_beside, flush
from seqlm.config import RunConfig
from seqlm.errors import ConfigError, DamagedFileError, FileError, RunBusyError
from seqlm.lease import NO_LINKS, Terms, is_alive, live_owner, this_process
from seqlm.reading import LARGEST_HASHED, open_regular, parse_json, read_bytes

State: TypeAlias = Literal["pending", "queued", "running", "done", "failed", "cancelled"]
FailureKind: TypeAlias = Literal["oom", "diverged", "node", "preempted", "timeout", "code", "cancelled"]

Guard: TypeAlias = Callable[[], None]
"""Asked right before a new file takes its place; raises where the run belongs to somebody else by now."""


def unguarded() -> None:
    """The guard of files that have one writer anyway."""


NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""How a file system without locks refuses one: Lustre mounted without ``flock``, NFS without a lock daemon."""

LOOKS = 5
LOOK_SECONDS = 0.02
"""How often a lock is looked at again, and after how long, before it is believed to be somebody else's."""

FINGERPRINT_DIGITS = 8
"""Digits of the fingerprint in a folder's name."""
MAX_RUNS = 10_000
"""Most runs of a study."""
CANARY_FOLDER = "canary"
"""Folder of a study in which its canaries lie."""
BEHAVIOUR_FOLDER = "behaviour"
"""Folder of a study in which the jobs lie that compute the behaviour of its models."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The state of a run as its files tell it."""

    state: State
    epoch: int | None
    """Last finished epoch, counted from 0 as in ``metrics.jsonl``; none before the first."""
    best_val_ppl: float | None
    """Lowest validation perplexity so far."""
    reason: str | None
    """Why the run is in this state, for a person."""
    kind: FailureKind | None = None
    """Kind of failure, where there is one."""


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder, ``runs/<study>/<slug>-<fingerprint8>/``."""

    path: Path

    @property
    def id(self) -> str:
        """The run's own id: the name of its folder."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def provenance_file(self) -> Path:
        return self.path / "provenance.json"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def canary_file(self) -> Path:
        """What a canary has measured; no other run has one."""
        return self.path / "canary.json"

    @property
    def behaviour_file(self) -> Path:
        """How the trained model behaves, written after training by :mod:`analysis.behaviour`."""
        return self.path / "behaviour.json"

    @property
    def samples_file(self) -> Path:
        """Texts that the trained model has written, one on each line, beside :attr:`behaviour_file`."""
        return self.path / "samples.jsonl"

    @property
    def failure_file(self) -> Path:
        return self.path / "failure.json"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before :attr:`last_checkpoint`, for when that one turns out to be damaged."""
        return self.path / "checkpoints" / "previous.pt"

    @property
    def position_file(self) -> Path:
        """Which epoch and step :attr:`last_checkpoint` holds, for who does not read tensors."""
        return self.path / "checkpoints" / "position.json"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def worker_lock_file(self) -> Path:
        return self.path / "worker.lock"

    @property
    def lease_dir(self) -> Path:
        """Who owns the run, where locks are not seen between hosts (:mod:`seqlm.lease`)."""
        return self.path / "lease"

    @property
    def task_file(self) -> Path:
        """What a behaviour job is asked to do; no run has one."""
        return self.path / "task.json"

    def attempt_dir(self, attempt: int) -> Path:
        """Folder of one attempt, counted from 1: ``attempts/0001``."""
        return self.path / "attempts" / f"{attempt:04d}"

    def stdout_log(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "stdout.log"

    def stderr_log(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "stderr.log"

    def worker_file(self, attempt: int, rank: int = 0) -> Path:
        """Where and with what a rank of an attempt runs: ``worker.json`` of the first, ``worker-1.json``, ..."""
        return self.attempt_dir(attempt) / (f"worker-{rank}.json" if rank else "worker.json")

    def progress_file(self, attempt: int) -> Path:
        """Where an attempt stands within its epoch, written by its first rank now and then."""
        return self.attempt_dir(attempt) / "progress.json"

    def attempts(self) -> list[int]:
        """Numbers of the attempts made so far, ascending."""
        found = [entry for entry in (self.path / "attempts").glob("[0-9]*") if re.fullmatch("[0-9]{4,9}", entry.name)]
        return sorted(int(entry.name) for entry in found if entry.is_dir())

    def last_attempt(self) -> int:
        """Number of the newest attempt, 0 before the first."""
        return (self.attempts() or [0])[-1]

    @property
    def is_canary(self) -> bool:
        """Whether this is the folder of a canary, by its place."""
        return self.path.parent.name == CANARY_FOLDER

    @classmethod
    def canary(cls, study_dir: Path, run_id: str) -> RunDirectory:
        """The folder for the canary of a study's run."""
        return cls(study_dir / CANARY_FOLDER / run_id)

    # -- creating and finding ------------------------------------------------------------------------------------

    @classmethod
    def folders(cls, study_dir: Path) -> dict[str, Path]:
        """The folders of a study's runs by the digits of their fingerprints."""
        found = sorted((path for path in study_dir.glob("*-*") if path.is_dir()), reverse=True)
        return {path.name.rpartition("-")[2]: path for path in found}

    @classmethod
    def locate(
        cls, study_dir: Path, name: str, fingerprint: str, folders: Mapping[str, Path] | None = None
    ) -> RunDirectory:
        """The folder of the run with ``fingerprint``: the existing one whatever it was called, else the one to make.

        A run is its configuration, so renaming an entry of a manifest does not start it again. Who asks for many runs
        gives what :meth:`folders` said, so that the study's folder is read once.
        """
        digits = fingerprint[:FINGERPRINT_DIGITS]
        existing = (cls.folders(study_dir) if folders is None else folders).get(digits)
        return cls(existing or study_dir / f"{slugify(name)}-{digits}")

    @classmethod
    def any_in(cls, study_dir: Path) -> bool:
        """Whether the folder holds a run."""
        return next(cls.unordered_in(study_dir), None) is not None

    @classmethod
    def all_in(cls, study_dir: Path) -> list[RunDirectory]:
        """Every run directory of a study, in manifest order, then by id."""

        def place(run: RunDirectory) -> tuple[float, str]:
            provenance = {}
            with contextlib.suppress(FileError):  # a run with a damaged file hides no other
                provenance = run.read_provenance()
            return run.place(provenance)

        return sorted(cls.unordered_in(study_dir), key=place)

    @classmethod
    def unordered_in(cls, study_dir: Path) -> Iterator[RunDirectory]:
        """Every run directory of a study, for who reads their provenance anyway."""
        return (cls(config.parent) for config in study_dir.glob("*/config.json"))

    def place(self, provenance: Mapping[str, Any]) -> tuple[float, str]:
        """What the runs of a study are sorted by: their place in the manifest, then their id."""
        order = provenance.get("order")
        return (order if isinstance(order, int) else math.inf, self.id)

    def create(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        """Make the folder, ``config.json`` (never changed once written) and ``provenance.json``.

        Raises:
            FileError: the folder cannot be written, or holds another configuration.
        """
        make_directory(self.path / "checkpoints")
        if self.config_file.exists():
            if self.read_config() != config:
                raise FileError(f"{self.config_file} holds another configuration than the manifest; move it away")
        else:
            write_json(self.config_file, config.to_dict())
        write_json(self.provenance_file, provenance)

    def sweep(self, attempt: int) -> None:
        """Remove what dead owners of the run have begun to write and not put in place; called by a new owner.

        Files of ``attempt``, and those that launchers write, too, stay. An owner that is not dead, only late, cannot
        put its file in place after this.
        """
        begun = [*self.path.glob("checkpoints/.*.tmp"), *self.lease_dir.glob(".*.tmp")]
        begun += _begun(self.metrics_file, self.result_file, self.canary_file)
        for earlier in self.attempts():
            if earlier != attempt:
                begun += [path for kind in ("worker", "progress") for path in self._begun_in(earlier, kind)]
        _remove(begun)

    def sweep_launch(self) -> None:
        """Remove what launchers have begun to write and not put in place; called by one that owns the launch.

        No worker of the run lives, so that files which both may write go too.
        """
        begun = _begun(self.config_file, self.provenance_file, self.job_file, self.failure_file)
        _remove([*begun, *self.path.glob("attempts/*/.failure.json.*.tmp")])

    def _begun_in(self, attempt: int, kind: str) -> Iterator[Path]:
        return self.attempt_dir(attempt).glob(f".{kind}*.tmp")

    # -- reading -------------------------------------------------------------------------------------------------

    def read_config(self) -> RunConfig:
        """The resolved configuration.

        Raises:
            FileError: the file is missing or damaged.
        """
        raw = read_json(self.config_file)
        if raw is None:
            raise FileError(f"{self.config_file} is missing; {self.path} is not a run directory")
        try:
            return RunConfig.from_dict(raw)
        except ConfigError as error:
            raise FileError(f"{self.config_file} is not a configuration of this version: {error.problems[0]}") from None

    def read_provenance(self) -> dict[str, Any]:
        return read_json(self.provenance_file) or {}

    def read_job(self) -> dict[str, Any] | None:
        return read_json(self.job_file)

    def read_result(self) -> dict[str, Any] | None:
        return read_json(self.result_file)

    def read_canary(self) -> dict[str, Any] | None:
        return read_json(self.canary_file)

    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.last_checkpoint.exists() or self.previous_checkpoint.exists()

    def cannot_go_on(self, epochs: int) -> str | None:
        """Return why a run of ``epochs`` epochs cannot go on: its last checkpoint was deleted at its end. Else `None`.

        ``clean`` and ``policy.keep_last = false`` delete that checkpoint and leave ``position.json``.
        """
        if self.has_checkpoint():
            return None
        position: Mapping[str, Any] = {}
        with contextlib.suppress(FileError, OSError):  # a run without a readable record starts from its first epoch
            position = read_json(self.position_file) or {}
        if (position.get("epoch"), position.get("step")) != (epochs, 0):
            return None
        return f"its last.pt was deleted after the training had ended; move {self.path} away to train it again"

    def read_failure(self) -> dict[str, Any] | None:
        """The run's failure, or none. A damaged record is one of kind ``node``, so that its run goes on.

        Such a file is put in place whole and flushed: only a machine or a disk that fails damages it.

        Raises:
            FileError: the file cannot be read.
        """
        try:
            return read_json(self.failure_file)
        except DamagedFileError:
            message = f"{self.failure_file.name} is damaged: the machine may have crashed while it was written"
            return {"kind": "node", "message": message}

    def read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The epochs of ``metrics.jsonl`` and, for each line that is no complete record, one warning.

        A file cut in the middle of a line (a full disk, a copy made too early) loses that line alone.
        """
        try:
            text = read_bytes(self.metrics_file).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return [], []
        epochs: list[dict[str, Any]] = []
        warnings: list[str] = []
        whole = _parse_lines(text)
        if whole is not None and all(_is_epoch(record) for record in whole):
            return whole, []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if _is_epoch(record):
                epochs.append(record)
            else:
                warnings.append(f"{self.metrics_file}: line {number} is cut or damaged and was left out")
        return epochs, warnings

    def write_failure_once(self, failure: Mapping[str, Any], *, guard: Guard = unguarded) -> None:
        """Write ``failure.json`` unless one stands there: the first cause is not covered by what followed from it."""
        with contextlib.suppress(FileExistsError), _beside(self.failure_file) as temporary:
            temporary.write_text(_dump(failure), "utf-8")
            flush(temporary)
            guard()
            try:
                os.link(temporary, self.failure_file)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                if not self.failure_file.exists():  # of two writers at the same moment the second one wins
                    temporary.replace(self.failure_file)
            flush(self.path)

    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled the run."""
        with contextlib.suppress(FileError):
            return (self.read_failure() or {}).get("kind") == "cancelled"
        return False

    def observe(self, *, queued: bool = False, waits_for: str | None = None) -> Observation:
        """The state of the run.

        ``queued`` says that a launcher is alive that has taken this run on (asked of the backend): it tells
        "queued" from "pending"; ``waits_for`` is why it has not started.

        A worker on this machine is known for certain. Of others the heartbeat is believed, by its age: a run whose
        machine has died stays "running" for some minutes (``SEQLM_STALE_LEASE_MINUTES``), unless a launcher has said
        that it failed. A locked ``worker.lock`` that names no live process does not count, and is the reason given.
        """
        epochs, _ = self.read_metrics()
        epoch = epochs[-1]["epoch"] if epochs else None
        finite = [e["val_ppl"] for e in epochs if isinstance(e["val_ppl"], int | float) and math.isfinite(e["val_ppl"])]
        best = min(finite, default=None)

        def observed(state: State, reason: str | None, kind: FailureKind | None = None) -> Observation:
            return Observation(state=state, epoch=epoch, best_val_ppl=best, reason=reason, kind=kind)

        if self.read_result() is not None or self.read_canary() is not None:
            return observed("done", None)
        stranger = None
        if is_locked(self.worker_lock_file):
            if self._has_worker():
                return observed("running", None)
            stranger = _held_by_a_stranger(self.worker_lock_file)
        failure = self.read_failure()
        if failure is not None:
            kind = failure.get("kind", "code")
            if kind == "cancelled":
                return observed("cancelled", failure.get("message"), kind)
            return observed("failed", f"{kind}: {failure.get('message')}", kind)
        if live_owner(self.lease_dir, Terms.from_environment(os.environ).stale_seconds):
            return observed("running", None)
        if queued:
            return observed("queued", stranger or waits_for)
        if stranger:
            return observed("pending", stranger)
        if self.attempts():
            after = "before the first epoch ended" if epoch is None else f"after {epoch + 1} epochs"
            return observed("pending", f"interrupted {after}; run again to resume")
        return observed("pending", None)

    def _has_worker(self) -> bool:
        """Whether the locked ``worker.lock`` names a process that may hold it.

        Of another host: one that has locked it a moment ago or whose lease on the run is fresh.
        """
        for _ in range(LOOKS):
            holder = read_lock_holder(self.worker_lock_file)
            alive = is_alive(holder) if holder else False
            if alive:
                return True
            if holder and alive is None:
                seconds = Terms.from_environment(os.environ).stale_seconds
                owner = live_owner(self.lease_dir, seconds) or {}
                is_owner = all(owner.get(key) == holder.get(key) for key in ("pid", "host"))
                return is_owner or _is_younger(self.worker_lock_file, seconds)
            time.sleep(LOOK_SECONDS)  # a process that has just taken the lock has yet to write its name
        return False


def study_record_file(study_dir: Path) -> Path:
    """``study.json``: what the manifest says to the report; written by launchers, which hold the study's lock."""
    return study_dir / "study.json"


def slugify(name: str) -> str:
    """A name as a folder name: lower-case letters, digits, ``_``, ``.`` and ``-`` only, at most 80 characters.

    >>> slugify("GRU / adam, lr=0.1")
    'gru-adam-lr-0.1'
    """
    slug = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")[:80].strip("-.")
    return slug or "run"


# -- files ---------------------------------------------------------------------------------------------------------


def sweep_beside(*files: Path) -> None:
    """Remove what somebody who is dead has begun to write for these files or folders and not put in place.

    The name ``*`` stands for all in its folder.
    """
    _remove(_begun(*files))


def _begun(*files: Path) -> list[Path]:
    return [begun for file in files for begun in file.parent.glob(f".{file.name}.*.tmp")]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def make_directory(path: Path) -> None:
    """``mkdir -p``, with a clear error."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError.from_os_error("make folder", path, error) from None


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, guard: Guard = unguarded) -> Iterator[Path]:
    """Write beside ``path``, flush to disk, then put the new file in its place in one step.

    Without ``sync`` it is not flushed: for what a crash of the machine makes worthless anyway. ``guard`` is asked when
    all is written, right before the new file takes its place; what it raises leaves the old one there.

    Yields the temporary path to write to. Whoever reads ``path`` sees the old file or the new one, never a part;
    when anything goes wrong the old file stays.

    Raises:
        FileError: full disk, read-only folder, a directory in place of the file.
    """
    with _beside(path) as temporary:
        yield temporary
        if sync:
            flush(temporary)
        guard()
        try:
            temporary.replace(path)
        except FileNotFoundError:
            guard()  # a new owner sweeps the temporary files of the one before: then this is how that one learns of it
            raise
        if sync:
            flush(path.parent)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file in the folder of ``path``, removed at the end if it is still there; system errors in one line."""
    try:
        with file_beside(path) as temporary:
            yield temporary
    except FileExistsError:
        raise
    except OSError as error:
        raise FileError.from_os_error("write", path, error) from None


def write_text(path: Path, text: str, *, sync: bool = True, guard: Guard = unguarded) -> None:
    """Write a text file in one step."""
    with replacing(path, sync=sync, guard=guard) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, data: Any, *, sync: bool = True, guard: Guard = unguarded) -> None:
    """Write a JSON file in one step; NaN and infinities become null, since JSON has none."""
    write_text(path, _dump(data), sync=sync, guard=guard)


def write_json_lines(path: Path, records: list[dict[str, Any]], *, guard: Guard = unguarded) -> None:
    """Write one JSON object per line, the whole file in one step."""
    lines = [json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_text(path, "".join(lines), guard=guard)


def _dump(data: Any) -> str:
    return json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Path):
        return str(data)
    return data


def _parse_lines(text: str) -> list[Any] | None:
    """The JSON values of a file with one on each line, read as one document, which is several times as fast.

    None where the file is anything else, such as cut in the middle of a line.
    """
    lines = text.splitlines()
    try:
        values = parse_json(f"[{','.join(lines)}]")
    except ValueError:
        return None
    return values if isinstance(values, list) and len(values) == len(lines) else None


def _is_epoch(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("epoch"), int) and "val_ppl" in record


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file's bytes, 64 hex digits; none where there is no file.

    Raises:
        FileError: it cannot be read, or is no regular file.
    """
    try:
        with open_regular(path, largest=LARGEST_HASHED) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None


def append_to(path: Path) -> BinaryIO:
    """Open a log to write at its end. A link in its place is removed, and what it names is not touched.

    Raises:
        OSError: the file cannot be written.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or none where there is no file.

    Raises:
        FileError: the file cannot be read.
        DamagedFileError: it is not a JSON object.
    """
    try:
        data = parse_json(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged (not JSON: {error}); move it away") from None
    if not isinstance(data, dict):
        raise DamagedFileError(f"{path} is damaged (not a JSON object); move it away")
    return data


# -- locks ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock on ``path`` while the block runs; the system releases it when the process dies.

    The file then names its holder (:func:`seqlm.lease.this_process`). On a file system without locks that name is all
    there is: it keeps out later processes of this host, and no others. A run has its lease as well.

    Raises:
        RunBusyError: with the text ``busy``, followed by the holder, when another process holds it. If the file names
            no live process, the text says that instead.
        FileError: the file cannot be opened or locked.
    """
    try:
        handle = open_lock(path)
    except OSError as error:
        raise FileError.from_os_error("open", path, error) from None
    try:
        try:
            is_locked = _try_lock(handle)
        except OSError as error:
            raise FileError.from_os_error("lock", path, error) from None
        holder = read_lock_holder(path)
        alive = is_alive(holder) if holder else False
        if is_locked is False and (holder is None or alive is False):
            raise RunBusyError(_held_by_a_stranger(path))
        if holder and (is_locked is False or (is_locked is None and alive)):
            raise RunBusyError(f"{busy} (pid {holder.get('pid')} on {holder.get('host')})")
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(this_process()).encode())
        try:
            yield
        finally:
            if is_locked is None:
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def open_lock(path: Path) -> int:
    """Open a lock file to read and write. It is for owner and group only: who may read a file can hold its lock.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    state = os.fstat(handle)
    if state.st_uid == os.geteuid() and state.st_mode & 0o007:
        os.fchmod(handle, stat.S_IMODE(state.st_mode) & ~0o007)
    return handle


def _held_by_a_stranger(path: Path) -> str:
    advice = f"`fuser {path}` lists the holder: end it, or move the file away"
    return f"{path} is locked, but names no live process; {advice}"


def _is_younger(path: Path, seconds: float) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < seconds
    except OSError:
        return False


def _try_lock(handle: int) -> bool | None:
    # A reader that asks is_locked holds a shared lock for an instant, so one refusal is not yet an owner.
    for _ in range(4 * LOOKS):
        is_locked = _flock(handle, fcntl.LOCK_EX)
        if is_locked is not False:
            return is_locked
        time.sleep(LOOK_SECONDS)
    return False


def _flock(handle: int, kind: int) -> bool | None:
    """Try to take a lock of the system. ``None``: this file system has none."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock on ``path``. Leaves no file behind and takes no exclusive lock.

    Without locks: whether the file names a live process of this host.

    Raises:
        FileError: the lock cannot be asked for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        is_free = _flock(handle, fcntl.LOCK_SH)
    except OSError as error:
        raise FileError.from_os_error("lock", path, error) from None
    finally:
        os.close(handle)
    return not is_free if is_free is not None else bool(is_alive(read_lock_holder(path) or {}))


def read_lock_holder(path: Path) -> dict[str, Any] | None:
    """Who wrote the lock file last (:func:`seqlm.lease.this_process`). Trust it only while the lock is held."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
