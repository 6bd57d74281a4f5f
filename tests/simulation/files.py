"""Files and folders below ``/sim``, in memory: one file server that all hosts see alike.

Each call is one step of the kernel, and takes effect at its end. Renaming, linking, making a folder and exclusive
creation are atomic, as on a local disk and on NFS.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

from tests.simulation.kernel import Kernel, Process

ROOT = "/sim"
FIRST_HANDLE = 10**6
"""Numbers of handles begin here, above any of the system."""
OWNER = os.geteuid()
Path = Any


@final
@dataclass(eq=False)
class Inode:
    """A file, a folder or a symbolic link."""

    number: int
    kind: int
    """``stat.S_IFREG``, ``S_IFDIR`` or ``S_IFLNK``."""
    mode: int
    changed_at: float
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, Inode] = field(default_factory=dict)
    """Of a folder."""
    target: str = ""
    """Of a link."""
    links: int = 1

    def status(self) -> os.stat_result:
        size = len(self.content) if self.kind == stat.S_IFREG else len(self.target)
        nanoseconds = round(self.changed_at * 1e9)
        values = (self.kind | self.mode, self.number, 1, self.links, OWNER, OWNER, size, *[int(self.changed_at)] * 3)
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), nanoseconds / 1e9)
        exact = dict.fromkeys(("st_atime_ns", "st_mtime_ns", "st_ctime_ns"), nanoseconds)
        return os.stat_result(values, {**times, **exact})


@final
@dataclass(eq=False)
class Opened:
    """An open file or folder."""

    inode: Inode
    process: Process
    flags: int = os.O_RDONLY
    place: int = 0


def fault(number: int, path: Any = "") -> OSError:
    return OSError(number, os.strerror(number), path)


@final
class Files:
    """The file server."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._numbers = itertools.count(1)
        self._handles = itertools.count(FIRST_HANDLE)
        self.open_files: dict[int, Opened] = {}
        self.root = self._new(stat.S_IFDIR, 0o755)
        self.meddler: Callable[[Process, str, str], None] = lambda process, call, path: None
        """Called before each call with its process, name and path; it may raise an ``OSError``."""
        self.on_write: list[Callable[[Process, str], None]] = []
        """Called with the process and the path of each name that is made, replaced or removed."""

    def _new(self, kind: int, mode: int) -> Inode:
        return Inode(next(self._numbers), kind, mode, self.kernel.now)

    # -- names -------------------------------------------------------------------------------------------------------

    def is_here(self, path: Any, folder: int | None = None) -> bool:
        """Return whether a path, or a handle, is of this server."""
        if isinstance(path, int):
            return path >= FIRST_HANDLE
        if folder is not None and folder >= FIRST_HANDLE:
            return True
        text = os.fspath(path)
        text = os.fsdecode(text) if isinstance(text, bytes) else text
        if not text.startswith("/") and (me := self.kernel.current) is not None:
            text = f"{me.process.cwd}/{text}"
        return text == ROOT or text.startswith(f"{ROOT}/")

    def _split(self, path: Any, folder: int | None) -> tuple[Inode, list[str]]:
        text = os.fspath(path)
        text = os.fsdecode(text) if isinstance(text, bytes) else text
        if folder is not None and not text.startswith("/"):
            return self.open_files[folder].inode, [name for name in text.split("/") if name not in ("", ".")]
        if not text.startswith("/"):
            assert self.kernel.current is not None
            text = f"{self.kernel.current.process.cwd}/{text}"
        return self.root, [name for name in text.split("/")[2:] if name not in ("", ".")]

    def _parent(self, path: Any, folder: int | None) -> tuple[Inode, str]:
        """Return the folder that has the last name of a path, and that name."""
        at, names = self._split(path, folder)
        for name in names[:-1]:
            at = self._enter(at, name, path)
        return at, names[-1] if names else ""

    def _enter(self, at: Inode, name: str, path: Any) -> Inode:
        if at.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if (inner := at.names.get(name)) is None:
            raise fault(errno.ENOENT, path)
        if inner.kind == stat.S_IFLNK:
            return self.find(inner.target, None)
        return inner

    def find(self, path: Any, folder: int | None, *, follow: bool = True) -> Inode:
        at, names = self._split(path, folder)
        for place, name in enumerate(names):
            if at.kind == stat.S_IFDIR and not follow and place == len(names) - 1 and name in at.names:
                return at.names[name]
            at = self._enter(at, name, path)
        return at

    @staticmethod
    def _told(path: Any) -> str:
        """Return a path in short, for the digest and for accidents."""
        return path if isinstance(path, str) else f"#{path}" if isinstance(path, int) else os.fsdecode(path)

    def _begin(self, call: str, path: Any) -> Process:
        told = self._told(path)
        process = self.kernel.step(f"{call} {told}")
        self.meddler(process, call, told)
        return process

    def _note(self, process: Process, path: Any) -> None:
        for act in self.on_write:
            act(process, self._told(path))

    # -- what the system does, and checks: it takes no time, and no accident happens to it ---------------------------

    def look(self, path: str) -> Inode | None:
        """Return what is there. ``None``: nothing."""
        try:
            return self.find(path, None)
        except OSError:
            return None

    def text(self, path: str, missing: str = "") -> str:
        """Return what a file has, or ``missing``."""
        inode = self.look(path)
        return missing if inode is None else inode.content.decode()

    def put(self, path: str, content: bytes) -> Inode:
        """Write a file, and make the folders that it needs."""
        at = self.root
        *folders, name = path.split("/")[2:]
        for folder in folders:
            at = at.names.setdefault(folder, self._new(stat.S_IFDIR, 0o755))
        inode = at.names.setdefault(name, self._new(stat.S_IFREG, 0o644))
        inode.content[:] = content
        return inode

    def drop(self, path: str) -> None:
        """Remove a file, if it is there."""
        if (folder := self.look(path.rpartition("/")[0])) is not None:
            folder.names.pop(path.rpartition("/")[2], None)

    def open_log(self, path: str) -> Output:
        """Return a file to which a process prints. What there is of it stays."""
        return Output(self.look(path) or self.put(path, b""))

    # -- calls -------------------------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        process = self._begin("open", path)
        parent, name = self._parent(path, dir_fd)
        if parent.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        inode = parent.names.get(name) if name else parent
        if inode is not None and inode.kind == stat.S_IFLNK:
            if flags & os.O_NOFOLLOW:
                raise fault(errno.ELOOP, path)
            inode = self.find(inode.target, None)
        if inode is None:
            if not flags & os.O_CREAT:
                raise fault(errno.ENOENT, path)
            inode = parent.names[name] = self._new(stat.S_IFREG, mode & 0o644)
            parent.changed_at = self.kernel.now
            self._note(process, path)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise fault(errno.EEXIST, path)
        if flags & os.O_DIRECTORY and inode.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if inode.kind == stat.S_IFDIR and flags & (os.O_WRONLY | os.O_RDWR):
            raise fault(errno.EISDIR, path)
        if flags & os.O_TRUNC:
            inode.content.clear()
            inode.changed_at = self.kernel.now
        handle = next(self._handles)
        self.open_files[handle] = Opened(inode, process, flags)
        return handle

    def close(self, handle: int) -> None:
        if self.open_files.pop(handle, None) is None:
            raise fault(errno.EBADF)

    def read(self, handle: int, size: int) -> bytes:
        self._begin("read", handle)
        file = self.open_files[handle]
        part = bytes(file.inode.content[file.place : file.place + size])
        file.place += len(part)
        return part

    def write(self, handle: int, data: bytes) -> int:
        self._begin("write", handle)
        file = self.open_files[handle]
        content = file.inode.content
        place = len(content) if file.flags & os.O_APPEND else file.place
        if place > len(content):
            content.extend(bytes(place - len(content)))
        content[place : place + len(data)] = data
        file.place = place + len(data)
        file.inode.changed_at = self.kernel.now
        return len(data)

    def seek(self, handle: int, offset: int, whence: int) -> int:
        file = self.open_files[handle]
        start = {0: 0, 1: file.place, 2: len(file.inode.content)}[whence]
        file.place = start + offset
        return file.place

    def truncate(self, handle: int, size: int) -> None:
        self._begin("truncate", handle)
        content = self.open_files[handle].inode.content
        del content[size:]
        content.extend(bytes(size - len(content)))

    def fsync(self, handle: int) -> None:
        self._begin("fsync", handle)

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        self._begin("stat", path)
        if isinstance(path, int):
            return self.open_files[path].inode.status()
        return self.find(path, dir_fd, follow=follow_symlinks).status()

    def listdir(self, path: Any = ".") -> list[str]:
        self._begin("listdir", path)
        inode = self.open_files[path].inode if isinstance(path, int) else self.find(path, None)
        if inode.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        return list(inode.names)

    def scandir(self, path: Any = ".") -> Entries:
        names = self.listdir(path)
        inode = self.open_files[path].inode if isinstance(path, int) else self.find(path, None)
        base = "" if isinstance(path, int) else os.fspath(path)
        return Entries([Entry(name, f"{base}/{name}" if base else name, inode.names[name]) for name in names])

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        process = self._begin("mkdir", path)
        parent, name = self._parent(path, dir_fd)
        if parent.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if not name or name in parent.names:
            raise fault(errno.EEXIST, path)
        parent.names[name] = self._new(stat.S_IFDIR, mode & 0o755)
        parent.changed_at = self.kernel.now
        self._note(process, path)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        process = self._begin("unlink", path)
        parent, name = self._parent(path, dir_fd)
        if (inode := parent.names.get(name)) is None:
            raise fault(errno.ENOENT, path)
        if inode.kind == stat.S_IFDIR:
            raise fault(errno.EISDIR, path)
        inode.links -= 1
        del parent.names[name]
        parent.changed_at = self.kernel.now
        self._note(process, path)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        process = self._begin("rmdir", path)
        parent, name = self._parent(path, dir_fd)
        if (inode := parent.names.get(name)) is None:
            raise fault(errno.ENOENT, path)
        if inode.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if inode.names:
            raise fault(errno.ENOTEMPTY, path)
        del parent.names[name]
        parent.changed_at = self.kernel.now
        self._note(process, path)

    def replace(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        process = self._begin("rename", target)
        old, old_name = self._parent(source, src_dir_fd)
        new, new_name = self._parent(target, dst_dir_fd)
        if (inode := old.names.get(old_name)) is None:
            raise fault(errno.ENOENT, source)
        before = new.names.get(new_name)
        if before is inode:
            return
        if before is not None:
            if before.kind == stat.S_IFDIR and (inode.kind != stat.S_IFDIR or before.names):
                raise fault(errno.ENOTEMPTY if inode.kind == stat.S_IFDIR else errno.EISDIR, target)
            before.links -= 1
        del old.names[old_name]
        new.names[new_name] = inode
        old.changed_at = new.changed_at = self.kernel.now
        self._note(process, target)

    def link(
        self,
        source: Any,
        target: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        process = self._begin("link", target)
        inode = self.find(source, src_dir_fd, follow=follow_symlinks)
        parent, name = self._parent(target, dst_dir_fd)
        if name in parent.names:
            raise fault(errno.EEXIST, target)
        parent.names[name] = inode
        inode.links += 1
        parent.changed_at = self.kernel.now
        self._note(process, target)

    def symlink(self, target: Any, path: Any, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
        process = self._begin("symlink", path)
        parent, name = self._parent(path, dir_fd)
        if name in parent.names:
            raise fault(errno.EEXIST, path)
        parent.names[name] = self._new(stat.S_IFLNK, 0o777)
        parent.names[name].target = os.fspath(target)
        self._note(process, path)

    def readlink(self, path: Any, *, dir_fd: int | None = None) -> str:
        self._begin("readlink", path)
        inode = self.find(path, dir_fd, follow=False)
        if inode.kind != stat.S_IFLNK:
            raise fault(errno.EINVAL, path)
        return inode.target

    def utime(self, path: Any, times: Any = None, *, dir_fd: int | None = None, **more: Any) -> None:
        self._begin("utime", path)
        inode = self.open_files[path].inode if isinstance(path, int) else self.find(path, dir_fd)
        inode.changed_at = self.kernel.now if times is None else times[1]

    def chmod(self, path: Any, mode: int, **more: Any) -> None:
        self._begin("chmod", path)
        inode = self.open_files[path].inode if isinstance(path, int) else self.find(path, None)
        inode.mode = mode

    # -- file objects ------------------------------------------------------------------------------------------------

    def open_object(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """Do what ``io.open`` does."""
        is_text, letters = "b" not in mode, mode.replace("b", "").replace("t", "")
        flags = {
            "r": os.O_RDONLY,
            "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
            "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
            "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
        }[letters[0]]
        if "+" in letters:
            flags = flags & ~os.O_WRONLY | os.O_RDWR
        handle = file if isinstance(file, int) else self.open(file, flags, 0o666)
        raw = Raw(self, handle, flags, letters, name=file)
        if buffering == 0:
            return raw
        if "+" in letters:
            buffered: Any = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedReader(raw) if letters[0] == "r" else io.BufferedWriter(raw)
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline) if is_text else buffered


@final
class Raw(io.RawIOBase):
    """A file without a buffer."""

    def __init__(self, files: Files, handle: int, flags: int, mode: str, name: Any) -> None:
        self._files, self._handle, self._letters, self.name = files, handle, mode, name
        self.mode = mode

    def fileno(self) -> int:
        return self._handle

    def readable(self) -> bool:
        return "r" in self._letters or "+" in self._letters

    def writable(self) -> bool:
        return "r" not in self._letters or "+" in self._letters

    def seekable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        part = self._files.read(self._handle, len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def write(self, data: Any) -> int:
        opened, caller = self._files.open_files.get(self._handle), self._files.kernel.current
        if opened is None or caller is None or opened.process is not caller.process:
            return len(data)  # what a killed process had in its buffers is lost
        return self._files.write(self._handle, bytes(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._files.seek(self._handle, offset, whence)

    def tell(self) -> int:
        return self._files.seek(self._handle, 0, 1)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        self._files.truncate(self._handle, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._files.open_files.pop(self._handle, None)


@final
class Entry:
    """What ``os.scandir`` yields."""

    def __init__(self, name: str, path: str, inode: Inode) -> None:
        self.name, self.path, self._inode = name, path, inode

    def __fspath__(self) -> str:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.kind == stat.S_IFDIR

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._inode.kind == stat.S_IFREG

    def is_symlink(self) -> bool:
        return self._inode.kind == stat.S_IFLNK

    def is_junction(self) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._inode.status()

    def inode(self) -> int:
        return self._inode.number


@final
class Entries:
    """What ``os.scandir`` returns."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@final
class Output:
    """What a process prints, at the end of a file."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, inode: Inode) -> None:
        self._inode = inode

    def write(self, text: str) -> int:
        self._inode.content += text.encode("utf-8", "replace")
        return len(text)

    def text(self) -> str:
        """Return what the file has."""
        return self._inode.content.decode()

    def clear(self) -> None:
        """Remove what the file has."""
        self._inode.content.clear()

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("no handle")
