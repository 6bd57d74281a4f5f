"""Who uses the GPUs of this machine: what launches have booked in a common ledger, and what other programs use.

The ledger is a folder to which every user of the machine may write (:data:`seqlm.environment.GPU_LEDGER`). It has

    GPU-5d5b...b3f1.<token>    a booking: a share of this GPU, locked by the process that computes on it
    launch.<token>             a launch that takes GPUs of this machine, locked by its launcher

A file counts as long as a process has it locked (``flock``). A worker inherits the lock of its booking, so the kernel
frees the share when the last process that holds it is gone, whoever was killed. A file belongs to the user who has made
it, and nobody else can write to it. Books are made one after the other, under a lock of the folder.

Other programs are found by nvidia-smi. Standard library alone.
"""

import contextlib
import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from seqlm import machine
from seqlm.environment import GPU_LEDGER, GPU_OTHERS_GIB
from seqlm.errors import BackendError, FileError, file_errors, printable
from seqlm.processes import process_parent, this_host
from seqlm.reading import finite, listed, parse_json

TINY = 1e-6
"""Tolerance for rounding: shares are added in floating point."""
RECORD_BYTES = 2048
"""Size of each file of the ledger. It is filled up with spaces, so that a record is replaced in one write."""
LONGEST_NAME = 120
"""Characters of the name of a study or a run in a record."""
LOCK_SECONDS = 5.0
"""How long the lock of the folder is waited for. It is held for milliseconds."""
FOLDER_SECONDS = 1.0
"""How long a folder is waited for that another user makes at this moment."""
FRESH_SECONDS = 15.0
"""How long a launch that waits counts as waiting after its last sign of life: a stopped one must keep nobody waiting.
"""
ASK_SECONDS = 3.0
"""Least time between two questions to nvidia-smi."""
ASK_AGAIN_SECONDS = 60.0
"""The same after nvidia-smi has given no answer."""
SETTLE_SECONDS = 1.0
"""How long after the end of a booking the memory of a GPU is not yet taken for that of another program."""
MOST_PARENTS = 20
MPS_SERVER = "nvidia-cuda-mps-server"
"""The process of MPS. nvidia-smi lists its clients as well."""

_BOOKING = re.compile(r"((?:GPU|MIG)-[0-9A-Za-z_-]+)\.[0-9a-f]{16}")
_LAUNCH = re.compile(r"launch\.([0-9a-f]{16})")


class TakenError(Exception):
    """A GPU that seemed to be free is used by somebody else by now. Its text says by whom."""


def has_uuid(gpu: str) -> bool:
    """Return whether a GPU can be booked: a number may name another card to another process."""
    return gpu.startswith(("GPU-", "MIG-"))


def full_id(gpu: str) -> str:
    """Return the whole UUID of a GPU that is named by the beginning of it, as a scheduler was configured.

    It is ``gpu`` itself if nvidia-smi gives no answer, or lists none or several of that name.
    """
    with contextlib.suppress(BackendError):
        found = [one.id for card in machine.cards() for one in card.gpus if one.id.startswith(gpu)]
        if len(found) == 1:
            return found[0]
    return gpu


def who_has(gpu: str, share: float, *, asks_nvidia_smi: bool) -> str | None:
    """Return why a share of a GPU is not free, in a line. ``None``: it is free.

    With ``asks_nvidia_smi`` it is looked for other programs as well, which takes as long as nvidia-smi does.

    Raises:
        FileError: the ledger cannot be read.
    """
    bookings = Ledger().bookings()
    holders = [one for one in bookings if one.gpu == gpu]
    if sum(one.share for one in holders) + share > 1 + TINY:
        return used_by(gpu, holders)
    if asks_nvidia_smi:
        survey = Survey()
        try:
            use = survey.wait()
        finally:
            survey.close()
        if use is not None and (others := others_on(gpu, use, bookings)):
            return f"{machine.short_name(gpu)} is used by {others}"
    return None


# -- the ledger ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Booking:
    """A share of a GPU that a live process holds."""

    gpu: str
    share: float
    """Of the GPU, above 0 and at most 1."""
    user: str
    """The owner of the file."""
    study: str
    run: str
    launch: str
    """The token of its launch. Empty: not known."""
    pid: int | None
    """The process that computes, in the numbering of this process. ``None``: it is in a container, or not known."""

    @property
    def holder(self) -> str:
        return f"{self.user}'s {f'study {self.study}' if self.study else 'launch'}"


@dataclass(frozen=True, kw_only=True)
class LaunchNote:
    """What a live launch says of itself."""

    token: str
    user: str
    study: str
    pid: int | None
    gpus: frozenset[str]
    """The GPUs that it may take."""
    needs: float | None
    """The fewest GPUs, or the least share, with which one of its waiting runs can start. ``None``: none waits."""
    turn: float
    """When it last took or gave back a GPU, else when it began, in seconds since 1970."""

    @property
    def holder(self) -> str:
        return f"{self.user}'s study {self.study}"


@final
class Claim:
    """A booking, or the note of a launch, that this process has made."""

    def __init__(self, path: Path, handle: int, record: Mapping[str, Any]) -> None:
        self._path = path
        self._record = dict(record)
        self._is_handed_over = False
        self.handle = handle
        """The open file, which is locked. A worker that inherits it holds the lock too."""

    def write(self, **changes: Any) -> None:
        """Change the record. A change that the file system refuses is left out, since the lock is what counts."""
        self._record |= changes
        with contextlib.suppress(OSError):
            os.pwrite(self.handle, _record_bytes(self._record), 0)

    def renew(self) -> None:
        """Give a sign of life, also to programs that delete old files of temporary folders."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def hand_over(self, pid: int) -> None:
        """Leave the lock to the process that has inherited it."""
        self.write(pid=pid)
        os.close(self.handle)
        self._is_handed_over = True

    def release(self) -> None:
        """Give up the lock, unless a process has inherited it."""
        if not self._is_handed_over:
            self.forget()
            os.close(self.handle)

    def forget(self) -> None:
        """Delete the file, once the processes that held the lock have ended."""
        with contextlib.suppress(OSError):
            self._path.unlink()


@final
class Ledger:
    """The bookings of this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        """Nothing is read yet. ``folder``: ``None`` means that of ``SEQLM_GPU_LEDGER``."""
        self.folder = folder or GPU_LEDGER.read()

    def make(self) -> None:
        """Make the folder unless it exists.

        Whoever comes first makes it. A folder of another user serves as well: what is in it decides which GPUs are
        given out, and nothing else.

        Raises:
            FileError: it cannot be made, or is no folder to which all users may write and delete only what is theirs.
        """
        deadline = time.monotonic() + FOLDER_SECONDS
        with file_errors("make folder", self.folder):
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir(mode=0o700, parents=True)
            while (problem := self._problem()) is not None:
                if time.monotonic() > deadline:
                    raise FileError(problem)
                time.sleep(0.02)  # its owner is making it

    def _problem(self) -> str | None:
        """Return what is wrong with the mode of the folder. One of this user's gets the right mode here.

        Raises:
            FileError: it is no folder.
        """
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise FileError(f"{self.folder}: expected a folder for the bookings of GPUs, found a link or a file")
        if found.st_mode & 0o1777 == 0o1777:
            return None
        if found.st_uid == os.geteuid():
            self.folder.chmod(0o1777)
            return None
        return (
            f"{self.folder}: expected a folder for the bookings of GPUs in which every user may write (mode 1777), "
            f"found mode {found.st_mode & 0o7777:o}; delete it, or set {GPU_LEDGER.name} to another one for all users"
        )

    def bookings(self) -> list[Booking]:
        """Return the shares that live processes hold.

        Raises:
            FileError: the folder cannot be read.
        """
        found = []
        for path in listed(self.folder):
            if (name := _BOOKING.fullmatch(path.name)) and (live := _live(path)) is not None:
                record, user, _ = live
                share = finite(record.get("share"))
                found.append(
                    Booking(
                        gpu=name[1].replace("_", "/"),
                        share=share if share is not None and 0 < share <= 1 else 1.0,
                        user=user,
                        study=_text(record, "study"),
                        run=_text(record, "run"),
                        launch=_text(record, "launch"),
                        pid=_pid(record),
                    )
                )
        return found

    def launches(self) -> list[LaunchNote]:
        """Return the live launches that take GPUs here.

        Raises:
            FileError: the folder cannot be read.
        """
        found = []
        for path in listed(self.folder):
            if (name := _LAUNCH.fullmatch(path.name)) and (live := _live(path)) is not None:
                record, user, changed_at = live
                named, is_fresh = record.get("gpus"), abs(time.time() - changed_at) < FRESH_SECONDS
                gpus = named if isinstance(named, list) else []
                found.append(
                    LaunchNote(
                        token=name[1],
                        user=user,
                        study=_text(record, "study"),
                        pid=_pid(record),
                        gpus=frozenset(gpu for gpu in gpus if isinstance(gpu, str)),
                        needs=finite(record.get("needs")) if is_fresh else None,
                        turn=finite(record.get("turn")) or 0.0,
                    )
                )
        return found

    def announce(self, token: str, record: Mapping[str, Any]) -> Claim:
        """File the note of a launch.

        Raises:
            FileError: it cannot be written.
        """
        with self._alone():
            return self._make(f"launch.{token}", record)

    def book(self, shares: Sequence[tuple[str, float]], record: Mapping[str, Any]) -> list[Claim]:
        """Book shares of GPUs, all or none, and return a claim for each. ``record`` says for whom.

        Raises:
            TakenError: one of them is not free any more.
            FileError: the ledger cannot be read or written.
        """
        claims: list[Claim] = []
        with self._alone():
            self._sweep()
            there = self.bookings()
            wanted = dict.fromkeys((gpu for gpu, _ in shares), 0.0)
            for gpu, share in shares:
                wanted[gpu] += share
            for gpu, share in wanted.items():
                holders = [one for one in there if one.gpu == gpu]
                if sum(one.share for one in holders) + share > 1 + TINY:
                    raise TakenError(used_by(gpu, holders))
            try:
                for gpu, share in shares:
                    name = f"{gpu.replace('/', '_')}.{secrets.token_hex(8)}"
                    claims.append(self._make(name, {**record, "share": share}))
            except BaseException:
                for claim in claims:
                    claim.release()
                raise
        return claims

    def _make(self, name: str, record: Mapping[str, Any]) -> Claim:
        """Make a file that is locked when it gets its name. Until then nobody else can open it."""
        path, made = self.folder / name, self.folder / f".{name}"
        record = {**record, "pid": os.getpid(), "pid_namespace": this_host()["pid_namespace"]}
        with file_errors("write", path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(made, flags, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(handle, _record_bytes(record), 0)
                os.fchmod(handle, 0o644)
                made.rename(path)
            except BaseException:
                os.close(handle)
                raise
        return Claim(path, handle, record)

    def _sweep(self) -> None:
        """Delete the files of processes that are gone, as far as this user may. The caller holds the lock."""
        for path in listed(self.folder):
            is_ours = _BOOKING.fullmatch(path.name.removeprefix(".")) or _LAUNCH.fullmatch(path.name.removeprefix("."))
            if is_ours and not _is_locked(path):
                with contextlib.suppress(OSError):
                    path.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the folder.

        Raises:
            FileError: there is no such folder, or another process does not give the lock back.
        """
        self.make()  # it may have been deleted
        with file_errors("lock", self.folder):
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                deadline = time.monotonic() + LOCK_SECONDS
                while True:
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > deadline:
                            raise FileError(
                                f"{self.folder}: another process has locked the bookings of GPUs for more than "
                                f"{LOCK_SECONDS:g} s (`fuser -v {self.folder}` names it)"
                            ) from None
                    time.sleep(0.005)
                yield
            finally:
                os.close(handle)


def used_by(gpu: str, holders: Iterable[Booking]) -> str:
    """Return who has booked a GPU, in a line."""
    names = ", ".join(dict.fromkeys(one.holder for one in holders))
    return f"{machine.short_name(gpu)} is used by {names or 'another launch'}"


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as the whole content of a file."""
    short = {key: value[:LONGEST_NAME] if isinstance(value, str) else value for key, value in record.items()}
    content = json.dumps(short).encode()
    if len(content) > RECORD_BYTES:  # more GPUs than a machine has, or names beyond ASCII
        short |= {"study": "", "run": "", "gpus": list(short.get("gpus", ()))[:16]}
        content = json.dumps(short).encode()
    return content[:RECORD_BYTES].ljust(RECORD_BYTES)


def _live(path: Path) -> tuple[Mapping[str, Any], str, float] | None:
    """Return the record of a file that is locked, its owner, and when it was last changed. ``None``: it is not locked.

    A record that cannot be read is empty.
    """
    try:
        handle = _open(path)
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or not _has_lock(handle):
            return None
        record: Any = None
        with contextlib.suppress(ValueError, OSError):
            record = parse_json(os.pread(handle, RECORD_BYTES, 0).decode())
        return record if isinstance(record, dict) else {}, user_name(found.st_uid), found.st_mtime
    finally:
        os.close(handle)


def _is_locked(path: Path) -> bool:
    """Return whether a process has a file locked. One that cannot be opened counts as locked."""
    try:
        handle = _open(path)
    except OSError:
        return True
    try:
        return _has_lock(handle)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _has_lock(handle: int) -> bool:
    """Return whether another open file has the lock. Two processes that ask at once do not disturb each other."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return printable(value[:LONGEST_NAME]) if isinstance(value, str) else ""


def _pid(record: Mapping[str, Any]) -> int | None:
    pid, is_here = record.get("pid"), record.get("pid_namespace") == this_host()["pid_namespace"]
    return pid if is_here and type(pid) is int and pid > 0 else None


# -- other programs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU, as nvidia-smi lists it."""

    pid: int
    memory_mib: float | None
    """``None``: nvidia-smi does not say."""
    name: str

    def describe(self) -> str:
        """Return whose it is, such as ``bob's python (process 77, 3.2 GiB)``."""
        user = ""
        with contextlib.suppress(OSError):
            user = f"{user_name(Path(f'/proc/{self.pid}').stat().st_uid)}'s "
        uses = "" if self.memory_mib is None else f", {self.memory_mib / 1024:.1f} GiB"
        return f"{user}{printable(Path(self.name).name) or 'program'} (process {self.pid}{uses})"


@dataclass(frozen=True, kw_only=True)
class Use:
    """What nvidia-smi said of the use of all GPUs."""

    at: float
    """When it was asked, on the monotonic clock."""
    processes: Mapping[str, Sequence[Process]] = field(default_factory=dict)
    """GPU -> the processes that compute on it."""
    memory_mib: Mapping[str, float] = field(default_factory=dict)
    """GPU -> its memory in use, by whatever program."""


QUERIES = (
    ("--query-compute-apps=gpu_uuid,pid,used_memory,process_name", "--format=csv,noheader,nounits"),
    ("--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"),
)
_PROCESS = re.compile(r"((?:GPU|MIG)-[^, ]+), (\d+), ([^,]*), (.*)")
_MEMORY = re.compile(r"(GPU-[^, ]+), (\d+)\s*")


def parse_use(processes: str, memory: str, at: float) -> Use:
    """Return what the answers to :data:`QUERIES` say. Other lines are skipped."""
    found: dict[str, list[Process]] = {}
    for gpu, pid, used, name in filter(None, (_fields(_PROCESS, line) for line in processes.splitlines())):
        mib = float(used) if used.strip().isdigit() else None
        found.setdefault(gpu, []).append(Process(int(pid), mib, name.strip()))
    memories = filter(None, (_fields(_MEMORY, line) for line in memory.splitlines()))
    return Use(at=at, processes=found, memory_mib={gpu: float(used) for gpu, used in memories})


def _fields(pattern: re.Pattern[str], line: str) -> Sequence[str]:
    match = pattern.fullmatch(line)
    return match.groups() if match else ()


@final
class Survey:
    """Asks nvidia-smi now and then who uses the GPUs, and waits for no answer."""

    def __init__(self) -> None:
        self._asked: list[subprocess.Popen[str]] = []
        """The processes that have not answered yet."""
        self._asked_at = 0.0
        self._next = 0.0
        self._last: Use | None = None
        self.has_failed = False
        """Whether nvidia-smi has given no answer the last time."""

    def look(self) -> Use | None:
        """Return a recent answer. ``None``: there is none now; another call may have it."""
        now = time.monotonic()
        if self._asked:
            self._collect(now)
        if not self._asked and now >= self._next:
            self._ask(now)
        is_recent = self._last is not None and now - self._last.at < 2 * ASK_SECONDS
        return self._last if is_recent else None

    @property
    def is_asking(self) -> bool:
        """Whether an answer is on its way, as far as is known."""
        return bool(self._asked) and not self.has_failed

    def wait(self) -> Use | None:
        """Return an answer to a question that is asked now. ``None``: nvidia-smi gives none in the time that it has."""
        now = time.monotonic()
        self._next = 0.0
        self.look()
        while self._asked and not self.has_failed:
            time.sleep(0.02)
            self._collect(time.monotonic())
        return self._last if self._last is not None and self._last.at >= now else None

    def close(self) -> None:
        """Kill what has not answered."""
        for process in self._asked:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=1.0)
        self._asked = []

    def _ask(self, now: float) -> None:
        self._asked_at, self._next = now, now + ASK_SECONDS
        if (program := shutil.which("nvidia-smi")) is None:
            self._last = Use(at=now)
            return
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            for words in QUERIES:
                self._asked.append(subprocess.Popen([program, *words], text=True, errors="replace", **pipes))
        except OSError:
            self._fail(now)

    def _collect(self, now: float) -> None:
        codes = [process.poll() for process in self._asked]
        if None not in codes:
            answers = [process.communicate()[0] for process in self._asked]
            self._asked = []
            self._last, self.has_failed = parse_use(answers[0], answers[1], self._asked_at), False
        elif now - self._asked_at > machine.NVIDIA_SMI_SECONDS:
            # One that waits for the driver outlives SIGKILL. No other is started before it is gone.
            self._fail(now)

    def _fail(self, now: float) -> None:
        self.has_failed, self._next = True, now + ASK_AGAIN_SECONDS
        for process in self._asked:
            process.kill()


def others_on(
    gpu: str, use: Use, bookings: Iterable[Booking], *, held_at: float = -1e9, mine: Collection[int] = ()
) -> str | None:
    """Return what other programs than seqlm's are on a GPU, such as ``bob's python (process 77)``. ``None``: none.

    A process is seqlm's if it has a booking of this GPU, descends from one that has, or is in ``mine``. On a GPU that
    nobody has booked, memory in use counts as well, since processes in containers are not seen. ``held_at`` is when the
    GPU was last seen to be booked, on the monotonic clock: what was in use until then may have been of that booking.
    """
    holders = [one for one in bookings if one.gpu == gpu]
    if any(one.pid is None or not _exists(one.pid) for one in holders):
        return None  # a process of theirs cannot be told from others
    ours = {one.pid for one in holders if one.pid is not None} | {*mine}
    there = [one for one in use.processes.get(gpu, ()) if _exists(one.pid) and Path(one.name).name != MPS_SERVER]
    others = [one.describe() for one in there if not _descends(one.pid, ours)]
    if others:
        more = f" and {len(others) - 2} more" if len(others) > 2 else ""
        return f"{', '.join(others[:2])}{more}"
    used_gib = use.memory_mib.get(gpu, 0.0) / 1024
    if not holders and not mine and used_gib > GPU_OTHERS_GIB.read() and use.at > held_at + SETTLE_SECONDS:
        return f"programs that nvidia-smi does not name, with {used_gib:.1f} GiB"
    return None


def others_beside_this_process() -> str | None:
    """Return what other programs are on the GPU that this process has booked. ``None``: none, or it has booked none."""
    gpu, pid = os.environ.get(machine.VISIBLE, ""), os.getpid()
    if not has_uuid(gpu):
        return None
    with contextlib.suppress(FileError):
        bookings = Ledger().bookings()
        if any(one.gpu == gpu and one.pid == pid for one in bookings):
            survey = Survey()
            try:
                use = survey.wait()
            finally:
                survey.close()
            return None if use is None else others_on(gpu, use, bookings, mine=[pid])
    return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # of another user
    except (OSError, OverflowError):
        return False
    return True


def _descends(pid: int, ancestors: Collection[int]) -> bool:
    """Return whether a process is one of these, or has been started by one."""
    one: int | None = pid
    for _ in range(MOST_PARENTS):
        if one is None or one in ancestors:
            break
        one = process_parent(one)
    return one in ancestors
