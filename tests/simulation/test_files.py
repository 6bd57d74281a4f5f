"""The file server of the simulation: alone it behaves like a real folder, and its clients like those of NFS."""

from __future__ import annotations

import errno
import os
import random
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.files import Files, fault
from tests.simulation.kernel import Host, Kernel, Process

NAMES = ("a", "b")
PATHS = [*NAMES, *(f"{folder}/{name}" for folder in NAMES for name in NAMES)]
OPENING = (
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY,
)
KINDS = {
    "open": 8,
    "write": 4,
    "replace": 4,
    **dict.fromkeys(("mkdir", "link", "unlink", "read", "seek", "stat", "open in", "make in"), 2),
    **dict.fromkeys(("rmdir", "symlink", "readlink", "lstat", "listdir", "names"), 1),
    **dict.fromkeys(("close", "fstat", "stat in"), 1),
}
"""Call -> how often it comes."""
OF_NAMES = ("replace", "mkdir", "link", "unlink", "stat", "rmdir", "symlink", "readlink", "lstat", "listdir", "touch")
"""Calls that leave no file open."""


def draw_call(dice: random.Random, *, keeps_open: bool) -> tuple[Any, ...]:
    """Return a call, with the places or numbers of handles that it is about. ``keeps_open``: it may open files."""
    (kind,) = dice.choices(list(KINDS), list(KINDS.values())) if keeps_open else dice.choices(OF_NAMES)
    match kind:
        case "open" | "touch":
            return kind, dice.choice(PATHS), dice.choice(OPENING)
        case "replace" | "link" | "symlink":
            return kind, dice.choice(PATHS), dice.choice(PATHS)
        case "write":
            return kind, dice.randrange(8), dice.randbytes(dice.randint(1, 4))
        case "read" | "seek":
            return kind, dice.randrange(8), dice.randint(1, 6)
        case "close" | "fstat" | "names":
            return kind, dice.randrange(8)
        case "open in" | "make in" | "stat in":
            return kind, dice.randrange(8), dice.choice(NAMES)
    return kind, dice.choice(PATHS)


def real(call: str) -> Callable[..., Any]:
    """Return a function of the real file system."""
    others = {"seek": os.lseek}
    return others.get(call) or getattr(os, call)


class Tried:
    """A folder in which calls are made, and what has come of them."""

    def __init__(self, root: str, function: Callable[[str], Callable[..., Any]]) -> None:
        self.root, self.function = root, function
        self.handles: list[int] = []

    def make(self, call: tuple[Any, ...]) -> object:
        """Make a call; return what it returns, in a form that does not depend on the file system, or its error."""
        try:
            return self.plain(self.call(*call))
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def call(self, name: str, *words: Any) -> object:
        paths = [f"{self.root}/{word}" if isinstance(word, str) else word for word in words]
        if isinstance(words[0], int):
            if not self.handles:
                return None
            handle = self.handles[words[0] % len(self.handles)]
            match name:
                case "close":
                    self.handles.remove(handle)
                case "names":
                    return self.function("listdir")(handle)
                case "seek":
                    return self.function("seek")(handle, words[1], os.SEEK_SET)
                case "open in":
                    self.handles.append(self.function("open")(words[1], os.O_RDWR | os.O_CREAT, dir_fd=handle))
                    return None
                case "make in":
                    return self.function("mkdir")(words[1], dir_fd=handle)
                case "stat in":
                    return self.function("stat")(words[1], dir_fd=handle)
            return self.function(name)(handle, *words[1:])
        if name == "touch":
            self.function("close")(self.function("open")(*paths))
            return None
        if name == "open":
            self.handles.append(self.function("open")(*paths))
            return None
        if name == "symlink":
            paths[0] = words[0]
        if name == "link":
            return self.function("link")(*paths, follow_symlinks=False)
        return self.function(name)(*paths)

    def plain(self, found: object) -> object:
        if isinstance(found, list):
            return sorted(found)
        if isinstance(found, os.stat_result):
            kind = stat.S_IFMT(found.st_mode)
            return (kind, *((found.st_size, found.st_nlink) if kind == stat.S_IFREG else ()))
        return found


def simulated(files: Files) -> Callable[[str], Callable[..., Any]]:
    """Return the functions of a simulated file system."""
    others = {"lstat": lambda path: files.stat(path, follow_symlinks=False), "fstat": files.stat}
    return lambda call: others.get(call) or getattr(files, call)


def play(files: Files, *acts: tuple[Host, Callable[[], object]], gap: float = 1.0) -> list[Any]:
    """Have processes of hosts act one after the other; return what they return, or their errors' names."""
    found: list[Any] = []

    def tried(act: Callable[[], object]) -> Callable[[], int]:
        def run() -> int:
            try:
                found.append(act())
            except OSError as error:
                found.append(errno.errorcode[error.errno or 0])
            return 0

        return run

    for number, (host, act) in enumerate(acts):
        files.kernel.spawn(host, ["act"], tried(act), env={}, output=None, delay=gap * number)
    files.kernel.play(files.kernel.now + gap * len(acts) + 1000.0)
    return found


@pytest.mark.parametrize("late_seconds", [0.0, 60.0], ids=["strict", "late"])
@pytest.mark.parametrize("seed", range(3))
def test_files_of_one_host_do_what_those_of_a_real_folder_do(seed: int, late_seconds: float) -> None:
    dice = random.Random(seed)
    errors = set[str]()
    for _ in range(40):
        calls = [draw_call(dice, keeps_open=not late_seconds) for _ in range(60)]
        files = Files(Kernel(0))
        files.late_seconds = late_seconds
        files.put("/sim/first", b"")
        ours = Tried("/sim", simulated(files))
        (found,) = play(files, (Host("n1"), lambda ours=ours, calls=calls: [ours.make(call) for call in calls]))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "first").touch()
            theirs = Tried(folder, real)
            expected = [theirs.make(call) for call in calls]
            for handle in theirs.handles:
                os.close(handle)
        assert list(zip(calls, found, strict=True)) == list(zip(calls, expected, strict=True))
        errors |= {one for one in found if isinstance(one, str)}
    assert len(errors) > 6


# -- clients of one server ---------------------------------------------------------------------------------------------

ONE, OTHER = Host("n1"), Host("n2")


def late(seed: int = 0) -> Files:
    """Return a server with a folder that two hosts see late."""
    files = Files(Kernel(seed), seed)
    files.put("/sim/d/old", b"old")
    files.late_seconds = 60.0
    return files


def write(files: Files, path: str, data: bytes) -> Callable[[], None]:
    def act() -> None:
        with files.open_object(path, "wb", 0) as file:
            file.write(data)

    return act


def read(files: Files, path: str) -> Callable[[], bytes]:
    def act() -> bytes:
        with files.open_object(path, "rb") as file:
            return bytes(file.read())

    return act


def outcomes(scene: Callable[[Files], object]) -> list[object]:
    """Return what comes of a scene with different draws of how late things are."""
    return [scene(late(seed)) for seed in range(40)]


def test_a_name_that_another_host_has_made_may_be_missing_for_a_while_but_cannot_be_made_again() -> None:
    def scene(files: Files) -> object:
        looks = lambda: files.listdir("/sim/d")  # noqa: E731
        opens = lambda: files.open("/sim/d/new", os.O_RDONLY) > 0  # noqa: E731
        makes = lambda: files.open("/sim/d/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)  # noqa: E731
        first = [
            (ONE, looks),
            (ONE, opens),
            (OTHER, write(files, "/sim/d/new", b"new")),
            (OTHER, looks),
            (OTHER, opens),
        ]
        return play(files, *first, (ONE, looks), (ONE, opens), (ONE, makes), gap=5.0)

    found = outcomes(scene)
    assert all(one[:5] == [["old"], "ENOENT", None, ["old", "new"], True] for one in found), "its maker sees it"
    assert all(one[7] == "EEXIST" for one in found)
    assert {tuple(one[5]) for one in found} == {("old",), ("old", "new")}
    assert {one[6] for one in found} == {"ENOENT", True}
    for one in (scene_after(late(seed), 61.0) for seed in range(40)):
        assert one == [["old"], "ENOENT", None, ["old", "new"], b"new"]


def scene_after(files: Files, seconds: float) -> list[Any]:
    """Return what a host sees that looks again so much later."""
    looks, reads = lambda: files.listdir("/sim/d"), read(files, "/sim/d/new")
    made = write(files, "/sim/d/new", b"new")
    return play(files, (ONE, looks), (ONE, reads), (OTHER, made), (ONE, looks), (ONE, reads), gap=seconds)


def test_attributes_are_late_until_the_file_is_opened() -> None:
    def scene(files: Files) -> object:
        size = lambda: files.stat("/sim/d/old").st_size  # noqa: E731
        longer = write(files, "/sim/d/old", b"longer")
        return play(files, (ONE, size), (OTHER, longer), (ONE, size), (ONE, read(files, "/sim/d/old")), (ONE, size))

    found = outcomes(scene)
    assert {one[2] for one in found} == {3, 6}
    assert all(one[3:] == [b"longer", 6] for one in found)


def test_what_is_written_is_seen_elsewhere_once_it_is_closed_or_flushed() -> None:
    for ends in ("close", "fsync"):
        files = late()
        handles: list[int] = []

        def begin(files: Files = files, handles: list[int] = handles) -> None:
            handles.append(files.open("/sim/d/new", os.O_RDWR | os.O_CREAT))
            files.write(handles[0], b"new")

        looks = read(files, "/sim/d/new")
        end = lambda files=files, handles=handles, ends=ends: getattr(files, ends)(handles[0])  # noqa: E731
        lasting = lambda begin=begin, files=files, end=end: (begin(), files.kernel.sleep(50.0), end())  # noqa: E731
        found = play(files, (ONE, lasting), (ONE, looks), (OTHER, looks), (OTHER, looks), gap=20.0)
        assert sorted(found[:2], key=len) == [b"", b"new"], "the writer's host alone has it before"
        assert found[3] == b"new"


def test_a_file_that_is_removed_elsewhere_is_stale_and_one_that_is_removed_here_stays_until_it_is_closed() -> None:
    for host, reads, names in ((OTHER, "ESTALE", []), (ONE, b"old", [".nfs"])):
        files = late()

        def hold(files: Files = files) -> object:
            handle = files.open("/sim/d/old", os.O_RDONLY)
            files.kernel.sleep(10.0)
            try:
                return files.read(handle, 9)
            finally:
                files.close(handle)

        removes = lambda files=files: files.unlink("/sim/d/old")  # noqa: E731
        looks = lambda files=files: [name[:4] for name in files.root.names["d"].names]  # noqa: E731
        found = play(files, (ONE, hold), (host, removes), (ONE, looks), gap=4.0)
        assert found[:2] == [None, names]
        assert found[2] == reads
        assert not files.root.names["d"].names


def test_the_name_of_a_file_that_was_replaced_elsewhere_may_be_stale_once() -> None:
    def scene(files: Files) -> object:
        def replaces() -> None:
            write(files, "/sim/d/beside", b"new")()
            files.replace("/sim/d/beside", "/sim/d/old")

        reads = read(files, "/sim/d/old")
        return play(files, (ONE, reads), (OTHER, replaces), (ONE, reads), (ONE, reads))[2:]

    assert {tuple(one) for one in outcomes(scene)} == {("ESTALE", b"new"), (b"new", b"new")}


@pytest.mark.parametrize(
    ("call", "words", "error"),
    [
        ("link", ("/sim/d/old", "/sim/d/new"), "EEXIST"),
        ("replace", ("/sim/d/old", "/sim/d/new"), "ENOENT"),
        ("mkdir", ("/sim/d/new",), "EEXIST"),
        ("open", ("/sim/d/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "EEXIST"),
        ("unlink", ("/sim/d/old",), "ENOENT"),
    ],
)
def test_a_call_whose_answer_is_lost_has_happened_and_fails(call: str, words: tuple[Any, ...], error: str) -> None:
    files = late()
    files.loses_reply = lambda process, call, path: True
    assert play(files, (ONE, lambda: getattr(files, call)(*words))) == [error]
    assert ("new" in files.root.names["d"].names) == (call != "unlink")


@pytest.mark.parametrize("late_seconds", [0.0, 60.0])
@pytest.mark.parametrize("ends", ["close", "fsync"])
def test_a_quota_is_found_when_a_file_is_closed_or_flushed(ends: str, late_seconds: float) -> None:
    files = late()
    files.late_seconds = late_seconds

    def refuse(process: Process, call: str, path: str) -> None:
        if call == "flush":
            raise fault(errno.EDQUOT, path)

    def act() -> None:
        handle = files.open("/sim/d/new", os.O_WRONLY | os.O_CREAT)
        for _ in range(2):
            files.write(handle, b"12345678")
        getattr(files, ends)(handle)

    files.meddler = refuse
    assert play(files, (ONE, act)) == ["EDQUOT"]
    assert len(files.root.names["d"].names["new"].content) < 16


def test_a_host_that_loses_power_loses_what_it_has_not_sent() -> None:
    files = late()

    def act() -> None:
        write(files, "/sim/d/closed", b"closed")()
        handle = files.open("/sim/d/open", os.O_WRONLY | os.O_CREAT)
        files.write(handle, b"flushed")
        files.fsync(handle)
        files.write(handle, b" and not")
        files.kernel.sleep(100.0)

    def loses_power() -> None:
        files.lose(ONE)

    play(files, (ONE, act), (OTHER, loses_power), gap=5.0)
    names = files.root.names["d"].names
    assert {name: bytes(one.content) for name, one in names.items()} == {
        "old": b"old",
        "closed": b"closed",
        "open": b"flushed",
    }


def test_a_disk_that_loses_power_may_lose_what_was_not_flushed_and_nothing_else() -> None:
    found = set()
    for seed in range(40):
        files = late(seed)
        files.late_seconds, files.loses_unflushed = 0.0, True

        def act(files: Files = files) -> None:
            handle = files.open("/sim/d/flushed", os.O_WRONLY | os.O_CREAT)
            files.write(handle, b"flushed")
            files.fsync(handle)
            files.close(handle)
            write(files, "/sim/d/beside", b"new")()
            files.replace("/sim/d/beside", "/sim/d/old")
            files.lose(ONE)

        assert play(files, (ONE, act)) == [None]
        names = {name: bytes(one.content) for name, one in files.root.names["d"].names.items()}
        assert names.pop("flushed") == b"flushed"
        found.add(tuple(sorted(names.items())))
    assert (("old", b"old"),) in found
    assert (("old", b"new"),) in found
    assert any(dict(names).get("old") in (b"", b"n") for names in found), "an order without a flush may tear it"
