"""Files and folders below ``/sim``, in memory: one file server, and what each host sees of it.

Each call is one step of the kernel, and takes effect at its end. Renaming, linking, making a folder and exclusive
creation are atomic, as on a local disk and on NFS.

Files are strict unless a story asks for something else: all hosts see the same at once. With ``late_seconds``, hosts
are clients of a network file system (:class:`Client`):

- What a host has looked up, asked for or listed, it relies on for so long at most: also that a name is missing. What
  it changes itself, it sees at once.
- Opening a file asks the server, for its content and attributes (close-to-open). Only that it is missing may be late.
  A listing may be late even if the folder has just been opened: a client compares the folder's time of change, which
  is coarse.
- What is written is sent to the server when the file is closed or flushed. :meth:`Files.lose` is the end of a host,
  with which the rest is gone.
- A handle whose file another host has removed is stale (``ESTALE``), and so may be the name of one that was replaced.
  One that is removed on the host which has it open stays under a name of its own, ``.nfs...``, until it is closed.

With ``loses_unflushed``, the files are on a disk of one host: :meth:`Files.lose` takes back what was not flushed.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

from tests.simulation.kernel import Host, Kernel, Process

ROOT = "/sim"
FIRST_HANDLE = 10**6
"""Numbers of handles begin here, above any of the system."""
OWNER = os.geteuid()
RETRANSMIT_SECONDS = 60.0
"""How long a client waits for an answer before it repeats a request (``timeo`` of nfs(5))."""
WRITEBACK_SECONDS = 30.0
"""What is older than this is on the disk without a flush."""
MOST_LINKS = 40
WRITES = os.O_WRONLY | os.O_RDWR
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
    links: int = 0
    """How many names it has."""
    removed_by: Host | None = None
    """The host that has removed its last name. ``None``: it has a name, or has never had one."""
    opened: list[Opened] = field(default_factory=list)
    hidden_as: tuple[Inode, str] | None = None
    """Folder and name under which it stays because it was open when its host has removed it."""

    def status(self, content: bytes | bytearray | None = None) -> os.stat_result:
        content = self.content if content is None else content
        size = len(content) if self.kind == stat.S_IFREG else len(self.target)
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
    path: str = ""
    has_written: bool = False
    """Whether it has written what it has not flushed yet."""


@final
class Client:
    """What one host keeps of the file server, and until when it relies on it."""

    def __init__(self) -> None:
        self.names: dict[tuple[Inode, str], tuple[float, Inode | None]] = {}
        """Folder and name -> what is there. ``None``: nothing."""
        self.status: dict[Inode, tuple[float, os.stat_result]] = {}
        self.listings: dict[Inode, tuple[float, dict[str, Inode]]] = {}
        self.written: dict[Inode, list[tuple[int, bytes]]] = {}
        """File -> what was written and not sent yet: places and data."""

    def has_changed(self, folder: Inode, name: str, inode: Inode | None, until: float) -> None:
        """Note a change that this host has made."""
        self.listings.pop(folder, None)
        self.status.pop(folder, None)
        if inode is None:
            self.names.pop((folder, name), None)
        else:
            self.status.pop(inode, None)
            self.names[folder, name] = (until, inode)


def fault(number: int, path: Any = "") -> OSError:
    return OSError(number, os.strerror(number), path)


def fill(content: bytearray, place: int, data: bytes) -> None:
    """Write into a content, which becomes longer if need be."""
    if place > len(content):
        content.extend(bytes(place - len(content)))
    content[place : place + len(data)] = data


@final
class Files:
    """The file server, with its clients."""

    def __init__(self, kernel: Kernel, seed: int = 0) -> None:
        self.kernel = kernel
        self.dice = random.Random(f"files {seed}")
        self._numbers = itertools.count(1)
        self._handles = itertools.count(FIRST_HANDLE)
        self.open_files: dict[int, Opened] = {}
        self.root = self._new(stat.S_IFDIR, 0o755)
        self.root.links = 1
        self.late_seconds = 0.0
        """How long a host may rely on what it has seen. 0: it sees everything at once."""
        self.loses_unflushed = False
        """Whether these files are on a disk that loses with its host what was not flushed."""
        self._clients: dict[Host, Client] = {}
        self._journal: list[tuple[float, list[tuple[Inode, str, Inode | None]]]] = []
        """Of a disk: when which names were changed that are not flushed yet, and what they were before."""
        self._flushed: dict[Inode, tuple[float, bytes]] = {}
        """Of a disk: since when a file has a content that is not flushed, and its content before."""
        self.meddler: Callable[[Process, str, str], None] = lambda process, call, path: None
        """Called before each call with its process, name and path; it may raise an ``OSError``. ``flush`` is what
        closing and flushing a file that was written do to it: if that fails, half of it is lost."""
        self.loses_reply: Callable[[Process, str, str], bool] = lambda process, call, path: False
        """Asked after each call that has changed names: whether its answer is lost, so that it is repeated in vain."""
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
            return self._file(folder).inode, [name for name in text.split("/") if name not in ("", ".")]
        if not text.startswith("/"):
            assert self.kernel.current is not None
            text = f"{self.kernel.current.process.cwd}/{text}"
        return self.root, [name for name in text.split("/")[2:] if name not in ("", ".")]

    def _parent(self, path: Any, folder: int | None, client: Client | None) -> tuple[Inode, str]:
        """Return the folder that has the last name of a path, and that name."""
        at, names = self._split(path, folder)
        for name in names[:-1]:
            at = self._enter(at, name, path, client)
        if at.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if at.removed_by is not None:
            raise fault(errno.ENOENT if client is None else errno.ESTALE, path)
        return at, names[-1] if names else ""

    def _enter(self, at: Inode, name: str, path: Any, client: Client | None, depth: int = 0) -> Inode:
        """Return what has a name in a folder, or what a link of that name leads to."""
        if at.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if at.removed_by is not None and client is not None:
            raise fault(errno.ESTALE, path)
        inner = self._seen(client, at, name)
        if inner is not None and inner.removed_by is not None:  # the server has said that it is stale
            inner = self._seen(client, at, name, afresh=True)
        if inner is None:
            raise fault(errno.ENOENT, path)
        return self._behind(at, inner, path, client, depth) if inner.kind == stat.S_IFLNK else inner

    def _behind(self, at: Inode, link: Inode, path: Any, client: Client | None, depth: int = 0) -> Inode:
        """Return what a link in a folder leads to."""
        folder, name = self._target(at, link, path, client, depth)
        return self._enter(folder, name, path, client, depth + 1) if name else folder

    def _target(self, at: Inode, link: Inode, path: Any, client: Client | None, depth: int = 0) -> tuple[Inode, str]:
        """Return the folder to which a link in a folder leads, and the name in it. It may be missing."""
        if depth > MOST_LINKS:
            raise fault(errno.ELOOP, path)
        names = [name for name in link.target.split("/") if name not in ("", ".")]
        if link.target.startswith("/"):
            at, names = self.root, names[1:]
        for name in names[:-1]:
            at = self._enter(at, name, path, client, depth + 1)
        return at, names[-1] if names else ""

    def find(self, path: Any, folder: int | None = None, *, follow: bool = True, client: Client | None = None) -> Inode:
        """Return what is at a path, as a client sees it. ``None``: as the server does."""
        at, names = self._split(path, folder)
        for place, name in enumerate(names):
            if not follow and place == len(names) - 1 and at.kind == stat.S_IFDIR:
                if (inode := self._seen(client, at, name)) is None:
                    raise fault(errno.ENOENT, path)
                return inode
            at = self._enter(at, name, path, client)
        return at

    def _seen(self, client: Client | None, folder: Inode, name: str, *, afresh: bool = False) -> Inode | None:
        """Return what a client takes to be the file of a name. ``None``: it takes the name for missing."""
        if client is None:
            return folder.names.get(name)
        known = client.names.get((folder, name))
        if known is not None and known[0] > self.kernel.now and not afresh:
            return known[1]
        inode = folder.names.get(name)
        client.names[folder, name] = (self._until(), inode)
        return inode

    def _until(self) -> float:
        """Return until when a client relies on what it has just seen."""
        return self.kernel.now + self.dice.uniform(0.0, self.late_seconds)

    def _client(self, process: Process) -> Client | None:
        """Return the client of a process's host. ``None``: it sees what the server has."""
        if not self.late_seconds:
            return None
        if (client := self._clients.get(process.host)) is None:
            client = self._clients[process.host] = Client()
        return client

    @staticmethod
    def _told(path: Any) -> str:
        """Return a path in short, for the digest and for accidents."""
        return path if isinstance(path, str) else f"#{path}" if isinstance(path, int) else os.fsdecode(path)

    def _begin(self, call: str, path: Any) -> tuple[Process, Client | None]:
        told = self._told(path)
        process = self.kernel.step(f"{call} {told}")
        self.meddler(process, call, told)
        return process, self._client(process)

    def _file(self, handle: int) -> Opened:
        if (file := self.open_files.get(handle)) is None:
            raise fault(errno.EBADF)
        return file

    def _usable(self, handle: int, client: Client | None) -> Opened:
        """Return an open file, unless another host has removed it."""
        file = self._file(handle)
        if client is not None and file.inode.removed_by not in (None, file.process.host):
            raise fault(errno.ESTALE, file.path)
        return file

    # -- changes of names --------------------------------------------------------------------------------------------

    @staticmethod
    def _put(folder: Inode, name: str, inode: Inode | None, host: Host | None) -> None:
        """Give a name in a folder to an inode. ``None``: to nothing."""
        if (before := folder.names.pop(name, None)) is not None:
            before.links -= 1
            before.removed_by = host if before.links == 0 else None
        if inode is not None:
            folder.names[name] = inode
            inode.links += 1
            inode.removed_by = None

    def _change(
        self, call: str, process: Process, path: Any, *changes: tuple[Inode, str, Inode | None], error: int = 0
    ) -> None:
        """Change names in one step. ``error``: what a repeated request gets."""
        client, now = self._client(process), self.kernel.now
        self._journal.append((now, [(folder, name, folder.names.get(name)) for folder, name, _ in changes]))
        if not self.loses_unflushed:
            self._journal.clear()
        for folder, name, inode in changes:
            self._put(folder, name, inode, process.host)
            folder.changed_at = now
            if client is not None:
                client.has_changed(folder, name, inode, self._until())
        for act in self.on_write:
            act(process, self._told(path))
        if error and self.loses_reply(process, call, self._told(path)):
            self.kernel.sleep(RETRANSMIT_SECONDS)
            raise fault(error, path)

    def _hide(self, process: Process, folder: Inode, name: str) -> None:
        """Keep a file that is to be removed under another name, if the same host has it open."""
        inode = folder.names[name]
        if self._client(process) is None or inode.kind != stat.S_IFREG or inode.links > 1:
            return
        if name.startswith(".nfs") and inode.hidden_as is not None:
            raise fault(errno.EBUSY, name)
        if any(file.process.host is process.host and file.process.lives for file in inode.opened):
            hidden = f".nfs{inode.number:016x}"
            self._put(folder, hidden, inode, process.host)
            inode.hidden_as = (folder, hidden)

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
            if folder not in at.names:
                self._put(at, folder, self._new(stat.S_IFDIR, 0o755), None)
            at = at.names[folder]
        if name not in at.names:
            self._put(at, name, self._new(stat.S_IFREG, 0o644), None)
        at.names[name].content[:] = content
        return at.names[name]

    def drop(self, path: str) -> None:
        """Remove a file, if it is there."""
        if (folder := self.look(path.rpartition("/")[0])) is not None:
            self._put(folder, path.rpartition("/")[2], None, None)

    def open_log(self, path: str) -> Output:
        """Return a file to which a process prints. What there is of it stays."""
        return Output(self.look(path) or self.put(path, b""))

    # -- calls -------------------------------------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        process, client = self._begin("open", path)
        parent, name = self._parent(path, dir_fd, client)
        inode = parent.names.get(name) if name else parent
        makes = bool(flags & os.O_CREAT)
        is_place = bool(flags & getattr(os, "O_PATH", 0))  # which asks the server nothing
        if client is not None and name and not makes:
            known = self._seen(client, parent, name)
            if known is not None and known is not inode and not is_place and self.dice.random() < 0.5:
                self._seen(client, parent, name, afresh=True)
                raise fault(errno.ESTALE, path)
            # that it is missing, a client believes without asking
            inode = known if known is None or (is_place and known.removed_by is None) else inode
        if inode is not None and inode.kind == stat.S_IFLNK:
            if makes and flags & os.O_EXCL:
                raise fault(errno.EEXIST, path)
            if flags & os.O_NOFOLLOW:
                raise fault(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP, path)
        depth = 0
        while inode is not None and inode.kind == stat.S_IFLNK:
            parent, name = self._target(parent, inode, path, client, depth)
            if name and parent.kind != stat.S_IFDIR:
                raise fault(errno.ENOTDIR, path)
            inode, depth = parent.names.get(name) if name else parent, depth + 1
        if inode is None:
            if not makes:
                raise fault(errno.ENOENT, path)
            inode = self._new(stat.S_IFREG, mode & 0o644)
            self._change("open", process, path, (parent, name, inode), error=errno.EEXIST if flags & os.O_EXCL else 0)
        elif makes and flags & os.O_EXCL:
            raise fault(errno.EEXIST, path)
        elif flags & os.O_DIRECTORY and inode.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        elif inode.kind == stat.S_IFDIR and (flags & WRITES or makes):
            raise fault(errno.EISDIR, path)
        if client is not None and name and not is_place:
            client.names[parent, name] = (self._until(), parent.names.get(name))
            client.status.pop(inode, None)
        if flags & os.O_TRUNC and inode.content:
            self._keep_flushed(inode)
            inode.content.clear()
            inode.changed_at = self.kernel.now
        handle = next(self._handles)
        file = self.open_files[handle] = Opened(inode, process, flags, path=self._told(path))
        inode.opened.append(file)
        return handle

    def close(self, handle: int) -> None:
        file = self._file(handle)
        self.let_go(handle)
        if file.has_written and not self.loses_unflushed:
            self._send(file)

    def let_go(self, handle: int) -> None:
        """Forget a handle. A file that was removed while it was open goes with the last one of its host."""
        if (file := self.open_files.pop(handle, None)) is None:
            return
        file.inode.opened.remove(file)
        self._unhide(file)

    def _unhide(self, file: Opened) -> None:
        inode, host = file.inode, file.process.host
        if inode.hidden_as is None or any(other.process.host is host and other.process.lives for other in inode.opened):
            return
        folder, name = inode.hidden_as
        inode.hidden_as = None
        if folder.names.get(name) is inode:
            self._put(folder, name, None, host)

    def exited(self, process: Process) -> None:
        """Do what the system does with the files of a process that has ended: what it has written is sent."""
        client = self._client(process)
        for file in [file for file in self.open_files.values() if file.process is process]:
            if client is not None and (pieces := client.written.pop(file.inode, None)):
                self._apply(file.inode, pieces)
            self._unhide(file)

    def lose(self, host: Host) -> None:
        """Forget what a host has in its memory, since it has lost power. Its processes end next."""
        self._clients.pop(host, None)
        if not self.loses_unflushed:
            return
        since = self.kernel.now - WRITEBACK_SECONDS
        young = [changes for when, changes in self._journal if when > since]
        for changes in reversed(young[self.dice.randint(0, len(young)) :]):
            for folder, name, before in reversed(changes):
                self._put(folder, name, before, host)
        for inode, (when, content) in self._flushed.items():
            if when > since:
                left = [content, inode.content[: len(inode.content) // 2], inode.content]
                inode.content[:] = bytes(self.dice.choice(left))
        self._journal.clear()
        self._flushed.clear()

    # -- content -----------------------------------------------------------------------------------------------------

    def content(self, inode: Inode, client: Client | None) -> bytearray:
        """Return the content of a file as a host sees it."""
        if client is None or inode not in client.written:
            return inode.content
        seen = bytearray(inode.content)
        for place, data in client.written[inode]:
            fill(seen, place, data)
        return seen

    def _keep_flushed(self, inode: Inode) -> None:
        """Note the content of a file before it is changed, if the disk may come back to it."""
        if self.loses_unflushed:
            self._flushed.setdefault(inode, (self.kernel.now, bytes(inode.content)))

    def _apply(self, inode: Inode, pieces: list[tuple[int, bytes]]) -> None:
        for place, data in pieces:
            fill(inode.content, place, data)
        inode.changed_at = self.kernel.now

    def _send(self, file: Opened) -> None:
        """Bring what was written to a file to the server. If that is refused, half of it is lost."""
        file.has_written = False
        if not file.process.lives:
            return
        inode, client = file.inode, self._client(file.process)
        pieces = client.written.pop(inode, []) if client is not None else []
        try:
            self.meddler(file.process, "flush", file.path)
            if client is not None and inode.removed_by not in (None, file.process.host):
                raise fault(errno.ESTALE, file.path)
        except OSError:
            self._apply(inode, pieces[: len(pieces) // 2])
            del inode.content[len(inode.content) // 2 :]
            raise
        if pieces:
            self._apply(inode, pieces)

    def read(self, handle: int, size: int) -> bytes:
        _, client = self._begin("read", handle)
        file = self._usable(handle, client)
        if file.inode.kind == stat.S_IFDIR:
            raise fault(errno.EISDIR)
        if file.flags & os.O_WRONLY:
            raise fault(errno.EBADF)
        part = bytes(self.content(file.inode, client)[file.place : file.place + size])
        file.place += len(part)
        return part

    def write(self, handle: int, data: bytes) -> int:
        _, client = self._begin("write", handle)
        file = self._usable(handle, client)
        if not file.flags & WRITES:
            raise fault(errno.EBADF)
        inode = file.inode
        place = len(self.content(inode, client)) if file.flags & os.O_APPEND else file.place
        if client is None:
            self._keep_flushed(inode)
            fill(inode.content, place, data)
            inode.changed_at = self.kernel.now
        else:
            client.written.setdefault(inode, []).append((place, bytes(data)))
            client.status.pop(inode, None)
        file.place = place + len(data)
        file.has_written = True
        return len(data)

    def seek(self, handle: int, offset: int, whence: int) -> int:
        file = self._file(handle)
        size = len(self.content(file.inode, self._client(file.process))) if whence == os.SEEK_END else 0
        file.place = {os.SEEK_SET: 0, os.SEEK_CUR: file.place, os.SEEK_END: size}[whence] + offset
        return file.place

    def truncate(self, handle: int, size: int) -> None:
        _, client = self._begin("truncate", handle)
        file = self._usable(handle, client)
        if client is not None and (pieces := client.written.pop(file.inode, None)):
            self._apply(file.inode, pieces)
        self._keep_flushed(file.inode)
        content = file.inode.content
        del content[size:]
        content.extend(bytes(size - len(content)))
        file.inode.changed_at = self.kernel.now

    def fsync(self, handle: int) -> None:
        process, client = self._begin("fsync", handle)
        file = self._usable(handle, client)
        writers = [one for one in file.inode.opened if one.has_written and one.process.host is process.host]
        for one in writers:
            self._send(one)
        if self.loses_unflushed:  # all names that were changed before are in the same journal
            self._journal.clear()
            self._flushed.pop(file.inode, None)

    # -- attributes and listings -------------------------------------------------------------------------------------

    def _status(self, client: Client | None, inode: Inode) -> os.stat_result:
        """Return the attributes of a file, as a client sees them."""
        if client is None:
            return inode.status()
        known = client.status.get(inode)
        if known is None or known[0] <= self.kernel.now:
            known = client.status[inode] = (self._until(), inode.status(self.content(inode, client)))
        return known[1]

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        _, client = self._begin("stat", path)
        if isinstance(path, int):
            return self._status(client, self._usable(path, client).inode)
        inode = self.find(path, dir_fd, follow=follow_symlinks, client=client)
        if client is not None and inode.removed_by is not None:
            known = client.status.get(inode)
            if known is None or known[0] <= self.kernel.now:  # the server has said that it is stale
                parent, name = self._parent(path, dir_fd, client)
                self._seen(client, parent, name, afresh=True)
                inode = self.find(path, dir_fd, follow=follow_symlinks, client=client)
        return self._status(client, inode)

    def _names_in(self, path: Any) -> dict[str, Inode]:
        _, client = self._begin("listdir", path)
        folder = self._usable(path, client).inode if isinstance(path, int) else self.find(path, client=client)
        if folder.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if client is None:
            return folder.names
        known = client.listings.get(folder)
        if known is None or known[0] <= self.kernel.now:
            known = client.listings[folder] = (self._until(), dict(folder.names))
        return known[1]

    def listdir(self, path: Any = ".") -> list[str]:
        return list(self._names_in(path))

    def scandir(self, path: Any = ".") -> Entries:
        base = "" if isinstance(path, int) else os.fspath(path)
        names = self._names_in(path).items()
        return Entries([Entry(name, f"{base}/{name}" if base else name, inode) for name, inode in names])

    # -- making and removing names -----------------------------------------------------------------------------------

    def _new_name(self, path: Any, folder: int | None, client: Client | None) -> tuple[Inode, str]:
        """Return the folder and the name of what is to be made. A client asks its server whether the name is free."""
        parent, name = self._parent(path, folder, client)
        known = None if client is None else client.names.get((parent, name))
        is_believed = known is not None and known[0] > self.kernel.now and known[1] is not None
        if not name or name in parent.names or is_believed:
            if client is not None and not is_believed:
                client.names.pop((parent, name), None)  # Linux forgets the name at the server's answer (d_drop)
            raise fault(errno.EEXIST, path)
        return parent, name

    def _old_name(self, path: Any, folder: int | None, client: Client | None) -> tuple[Inode, str, Inode]:
        """Return the folder and the name of what is to be removed or moved, and the inode that the server has there."""
        parent, name = self._parent(path, folder, client)
        if self._seen(client, parent, name) is None or (inode := parent.names.get(name)) is None:
            raise fault(errno.ENOENT, path)
        return parent, name, inode

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        process, client = self._begin("mkdir", path)
        parent, name = self._new_name(path, dir_fd, client)
        made = self._new(stat.S_IFDIR, mode & 0o755)
        self._change("mkdir", process, path, (parent, name, made), error=errno.EEXIST)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        process, client = self._begin("unlink", path)
        parent, name, inode = self._old_name(path, dir_fd, client)
        if inode.kind == stat.S_IFDIR:
            raise fault(errno.EISDIR, path)
        self._hide(process, parent, name)
        self._change("unlink", process, path, (parent, name, None), error=errno.ENOENT)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        process, client = self._begin("rmdir", path)
        parent, name, inode = self._old_name(path, dir_fd, client)
        if inode.kind != stat.S_IFDIR:
            raise fault(errno.ENOTDIR, path)
        if inode.names:
            raise fault(errno.ENOTEMPTY, path)
        self._change("rmdir", process, path, (parent, name, None), error=errno.ENOENT)

    def replace(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        process, client = self._begin("rename", target)
        self._parent(source, src_dir_fd, client)
        new, new_name = self._parent(target, dst_dir_fd, client)
        old, old_name, inode = self._old_name(source, src_dir_fd, client)
        if inode.kind == stat.S_IFDIR and self._is_within(new, inode):
            raise fault(errno.EINVAL, target)
        before = new.names.get(new_name)
        if before is inode:
            return
        if before is not None and self._is_within(old, before):
            raise fault(errno.ENOTEMPTY, target)
        if before is not None and before.kind == stat.S_IFDIR and inode.kind != stat.S_IFDIR:
            raise fault(errno.EISDIR, target)
        if before is not None and before.kind != stat.S_IFDIR and inode.kind == stat.S_IFDIR:
            raise fault(errno.ENOTDIR, target)
        if before is not None and before.names:
            raise fault(errno.ENOTEMPTY, target)
        if before is not None:
            self._hide(process, new, new_name)
        changes = ((old, old_name, None), (new, new_name, inode))
        self._change("rename", process, target, *changes, error=errno.ENOENT)

    def _is_within(self, folder: Inode, outer: Inode) -> bool:
        """Return whether a folder is another one, or anywhere below it."""
        inner = (one for one in outer.names.values() if one.kind == stat.S_IFDIR)
        return folder is outer or any(self._is_within(folder, one) for one in inner)

    def link(
        self,
        source: Any,
        target: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        process, client = self._begin("link", target)
        inode = self.find(source, src_dir_fd, follow=follow_symlinks, client=client)
        parent, name = self._new_name(target, dst_dir_fd, client)
        if inode.kind == stat.S_IFDIR:
            raise fault(errno.EPERM, target)
        if inode.removed_by is not None:
            raise fault(errno.ESTALE, source)
        self._change("link", process, target, (parent, name, inode), error=errno.EEXIST)
        if client is not None:
            client.status.pop(inode, None)

    def symlink(self, target: Any, path: Any, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
        process, client = self._begin("symlink", path)
        parent, name = self._new_name(path, dir_fd, client)
        made = self._new(stat.S_IFLNK, 0o777)
        made.target = os.fspath(target)
        self._change("symlink", process, path, (parent, name, made), error=errno.EEXIST)

    def readlink(self, path: Any, *, dir_fd: int | None = None) -> str:
        _, client = self._begin("readlink", path)
        inode = self.find(path, dir_fd, follow=False, client=client)
        if inode.kind != stat.S_IFLNK:
            raise fault(errno.EINVAL, path)
        return inode.target

    def utime(self, path: Any, times: Any = None, *, dir_fd: int | None = None, **more: Any) -> None:
        _, client = self._begin("utime", path)
        inode = self._to_change(path, dir_fd, client)
        inode.changed_at = self.kernel.now if times is None else times[1]

    def chmod(self, path: Any, mode: int, **more: Any) -> None:
        _, client = self._begin("chmod", path)
        self._to_change(path, None, client).mode = mode

    def _to_change(self, path: Any, folder: int | None, client: Client | None) -> Inode:
        """Return the inode of which an attribute is to be changed: by the server, which knows what was removed."""
        if isinstance(path, int):
            return self._usable(path, client).inode
        inode = self.find(path, folder, client=client)
        if client is not None:
            if inode.removed_by is not None:
                raise fault(errno.ESTALE, path)
            client.status.pop(inode, None)
        return inode

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
        if self.closed:
            return
        super().close()
        opened, caller = self._files.open_files.get(self._handle), self._files.kernel.current
        if opened is not None and caller is not None and opened.process is caller.process:
            self._files.close(self._handle)
        else:
            self._files.let_go(self._handle)


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
