"""The seam: functions of the standard library that reach outside, replaced for simulated processes.

For any other caller they do what they always do. Paths below ``/sim`` are those of the simulation; others, such as the
source code, are the machine's own, and can only be read. No process of the system is started.
"""

from __future__ import annotations

import builtins
import functools
import io
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, final

from tests.simulation.files import FIRST_HANDLE, Files, Raw, fault
from tests.simulation.kernel import Host, Kernel, Killed, Process

world: World | None = None
"""The one that is played. ``None``: none is."""

_installed = False
_ident = threading.get_ident


@final
class World:
    """Kernel, file server and programs of a story."""

    def __init__(self, kernel: Kernel, files: Files) -> None:
        self.kernel, self.files = kernel, files
        self.hosts: dict[str, Host] = {}
        self.programs: Callable[[Process, Sequence[str], Mapping[str, str], float | None], tuple[int, str, str]]
        """Runs a command of a process: its words, environment and timeout; returns exit code, stdout and stderr."""
        self.workers: Callable[[Process, Sequence[str], Mapping[str, str], Any, bool], Process]
        """Starts a process of a process: its words, environment, output, and whether it ends with its parent."""
        self.ray: Any = None
        """The Ray cluster (:mod:`tests.simulation.ray_cluster`)."""
        self.threads: dict[int, Any] = {}

    def host(self, name: str) -> Host:
        return self.hosts.setdefault(name, Host(name))


def _simulated() -> World | None:
    """Return the world, if the caller is a simulated process."""
    if world is None:
        return None
    kernel = world.kernel
    return None if kernel.is_inside or kernel.running is None or _ident() != kernel.ident else world


def _wrap(module: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(module, name)
    setattr(module, name, functools.wraps(original)(make(original)))


UNSEEN = ((time, "time_ns"), (time, "monotonic_ns"), (time, "clock_gettime"), (os, "urandom"), (os, "fork"))
"""Functions that the product does not call where it is simulated: what they say does not follow from the seed."""


def install() -> None:
    """Replace the functions, once and for all, before any module of seqlm is imported."""
    global _installed
    if _installed:
        return
    _installed = True
    # An editable install adds a name that is no folder: imports would look for it in the folder of a process.
    sys.path[:] = [place for place in sys.path if PurePath(place).is_absolute()]
    _install_files()
    _install_time()
    _install_processes()
    _install_threads()
    for module, name in UNSEEN:
        _wrap(module, name, functools.partial(_refuse, name))


def _refuse(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if (here := _simulated()) is not None:
            here.kernel.violate(f"SEAM: {here.kernel.current} calls {name}, which the simulation does not see")
        return original(*args)

    return call


# -- files -------------------------------------------------------------------------------------------------------------


def _install_files() -> None:
    def on_path(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any = ".", *args: Any, **options: Any) -> Any:
                here = _simulated()
                if here is None or not here.files.is_here(path, options.get("dir_fd")):
                    if here is not None and (answer := _special(here, name, path)) is not None:
                        return answer
                    return original(path, *args, **options)
                return getattr(here.files, name)(path, *args, **options)

            return call

        return make

    for name in ("open", "stat", "listdir", "scandir", "mkdir", "unlink", "rmdir", "readlink", "chmod", "utime"):
        _wrap(os, name, on_path(name))
    os.remove = os.unlink

    def lstat(path: Any, *, dir_fd: int | None = None) -> os.stat_result:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    os.lstat = lstat  # type: ignore[assignment]

    def two_paths(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(source: Any, target: Any, *args: Any, **options: Any) -> Any:
                folder = options.get("dst_dir_fd", options.get("dir_fd"))
                if (here := _simulated()) is None or not here.files.is_here(target, folder):
                    return original(source, target, *args, **options)
                return getattr(here.files, name)(source, target, *args, **options)

            return call

        return make

    for name in ("replace", "link", "symlink"):
        _wrap(os, name, two_paths(name))
    os.rename = os.replace

    def on_handle(act: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(handle: int, *args: Any) -> Any:
                if world is None or not isinstance(handle, int) or handle < FIRST_HANDLE:
                    return original(handle, *args)
                if act == "fstat":
                    return os.stat(handle)
                return getattr(world.files, act)(handle, *args)

            return call

        return make

    for name, act in {"close": "close", "read": "read", "write": "write", "fsync": "fsync", "fstat": "fstat"}.items():
        _wrap(os, name, on_handle(act))

    def opened(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, *args: Any, **options: Any) -> Any:
            here = _simulated()
            if here is None:
                return original(file, *args, **options)
            if here.files.is_here(file):
                return here.files.open_object(file, *args, **options)
            if not isinstance(file, int) and (text := _special(here, "text", file)) is not None:
                is_text = "b" not in (args[0] if args else options.get("mode", "r"))
                return io.StringIO(text) if is_text else io.BytesIO(text.encode())
            return original(file, *args, **options)

        return call

    _wrap(io, "open", opened)
    builtins.open = io.open
    _wrap(os.path, "realpath", _for_here(lambda here, path, **_: _whole(here, path)))
    # Whether resolve() looks at the file depends on the version of Python, and so would the order of calls.
    _wrap(pathlib.Path, "resolve", _for_here(lambda here, path, **_: type(path)(_whole(here, path))))
    _wrap(os, "access", _for_here(lambda here, path, *_, **__: True))
    _wrap(
        os, "getcwd", lambda original: lambda: here.kernel.current.process.cwd if (here := _simulated()) else original()
    )


def _whole(here: World, path: Any) -> str:
    """Return an absolute path without ``..``. There are no links among the folders of the simulation."""
    assert here.kernel.current is not None
    return os.path.normpath(PurePath(here.kernel.current.process.cwd) / path)


def _for_here(answer: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a function of a path give another answer for paths of the simulation."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if (here := _simulated()) is None or not here.files.is_here(path):
                return original(path, *args, **options)
            return answer(here, path, *args, **options)

        return call

    return make


def _special(here: World, call: str, path: Any) -> Any:
    """Answer for files of the system that tell hosts and processes apart. ``None``: the machine's own file will do."""
    if isinstance(path, int | bytes):
        return None
    text = os.fspath(path)
    if not isinstance(text, str) or not text.startswith(("/proc/", "/etc/machine-id", "/sys/fs/cgroup")):
        return None
    me = here.kernel.current
    assert me is not None
    host = me.process.host
    if call == "readlink" and text == "/proc/self/ns/pid":
        return f"pid:[{host.name}]"
    if call == "text":
        if text == "/etc/machine-id":
            return f"machine {host.name}"
        if text == "/proc/sys/kernel/random/boot_id":
            return f"boot {host.name} {host.boot}"
        parts = PurePath(text).parts
        if len(parts) == 4 and parts[3] == "stat":
            number = me.process.pid if parts[2] == "self" else int(parts[2])
            if (found := here.kernel.lives_on(host, number)) is None:
                raise fault(2, text)
            parent = found.parent.pid if found.parent is not None else 1
            fields = ["S", parent, found.group, *[0] * 16, found.start_tick, *[0] * 30]
            return f"{number} (python) {' '.join(map(str, fields))}"
        if text.startswith(("/proc/self/", "/sys/fs/cgroup")):
            raise fault(2, text)
    return None


# -- time --------------------------------------------------------------------------------------------------------------


def _install_time() -> None:
    def clock(offset: float, *, is_set: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call() -> float:
                if (here := _simulated()) is None:
                    return original()
                assert here.kernel.current is not None
                return here.kernel.now - offset + (here.kernel.current.process.host.clock if is_set else 0.0)

            return call

        return make

    _wrap(time, "time", clock(0.0, is_set=True))
    _wrap(time, "monotonic", clock(1e9))
    _wrap(time, "perf_counter", clock(1e9))

    def sleep(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(seconds: float) -> None:
            if (here := _simulated()) is None:
                original(seconds)
                return
            here.kernel.step()
            here.kernel.sleep(max(0.0, seconds))

        return call

    _wrap(time, "sleep", sleep)


# -- processes ---------------------------------------------------------------------------------------------------------


class Child:
    """What ``subprocess.Popen`` returns to a simulated process."""

    stdin = stdout = stderr = None

    def __init__(self, here: World, process: Process) -> None:
        self._world, self._process = here, process
        self.pid, self.args = process.pid, process.argv

    @property
    def returncode(self) -> int | None:
        return self._process.exit_code

    def poll(self) -> int | None:
        self._world.kernel.step()
        return self._process.exit_code

    def wait(self, timeout: float | None = None) -> int:
        process = self._process
        self._world.kernel.step()
        if not self._world.kernel.wait_for(lambda: not process.lives, process.waiters, timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert process.exit_code is not None
        return process.exit_code

    def send_signal(self, number: int) -> None:
        self._world.kernel.step(f"signal {number} to {self.pid}")
        self._world.kernel.send(self._process, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _install_processes() -> None:
    def run(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(words: Any, **options: Any) -> Any:
            if (here := _simulated()) is None:
                return original(words, **options)
            process = here.kernel.step(f"run {' '.join(map(str, words))}")
            env = options.get("env")
            env = dict(os.environ) if env is None else env
            timeout = options.get("timeout")
            code, out, err = here.programs(process, [str(word) for word in words], env, timeout)
            if code == TIMED_OUT:
                raise subprocess.TimeoutExpired(words, timeout or 0.0)
            if options.get("check") and code:
                raise subprocess.CalledProcessError(code, words, out, err)
            return subprocess.CompletedProcess(words, code, out, err)

        return call

    _wrap(subprocess, "run", run)
    original_popen = subprocess.Popen

    class Popen(original_popen):  # type: ignore[type-arg, misc]
        def __new__(cls, words: Any, *args: Any, **options: Any) -> Any:
            if (here := _simulated()) is None:
                return super().__new__(cls)
            process = here.kernel.step(f"start {' '.join(map(str, words))}")
            env = options.get("env")
            env = dict(os.environ) if env is None else env
            ends_with_parent = options.get("preexec_fn") is not None
            started = here.workers(process, [str(word) for word in words], env, options.get("stdout"), ends_with_parent)
            return Child(here, started)

    subprocess.Popen = Popen  # type: ignore[misc]

    def answer(module: Any, name: str, value: Callable[[World, Process], Any]) -> None:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if (here := _simulated()) is None:
                    return original(*args)
                assert here.kernel.current is not None
                return value(here, here.kernel.current.process)

            return call

        _wrap(module, name, make)

    answer(os, "cpu_count", lambda here, me: CORES)
    answer(os, "sched_getaffinity", lambda here, me: {*range(CORES)})
    answer(os, "getpid", lambda here, me: me.pid)
    answer(os, "getppid", lambda here, me: me.parent.pid if me.parent is not None else 1)
    answer(os, "getpgrp", lambda here, me: me.group)
    answer(socket, "gethostname", lambda here, me: me.host.name)

    def kill(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(pid: int, number: int) -> None:
            if (here := _simulated()) is None:
                original(pid, number)
                return
            me = here.kernel.step(f"kill {pid} {number}")
            if (found := here.kernel.lives_on(me.host, pid)) is None:
                raise ProcessLookupError(3, "No such process")
            if number:
                here.kernel.send(found, number)
                here.kernel.step()

        return call

    _wrap(os, "kill", kill)

    def set_handler(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(number: int, handler: Any) -> Any:
            if (here := _simulated()) is None:
                return original(number, handler)
            assert here.kernel.current is not None
            handlers = here.kernel.current.process.handlers
            before = handlers.get(number, signal.SIG_DFL)
            handlers[number] = handler
            return before

        return call

    _wrap(signal, "signal", set_handler)

    def get_handler(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(number: int) -> Any:
            if (here := _simulated()) is None:
                return original(number)
            assert here.kernel.current is not None
            return here.kernel.current.process.handlers.get(number, signal.SIG_DFL)

        return call

    _wrap(signal, "getsignal", get_handler)

    def token(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(size: int = 32) -> str:
            if (here := _simulated()) is None:
                return str(original(size))
            return here.kernel.names.randbytes(size).hex()

        return call

    _wrap(secrets, "token_hex", token)

    def which(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(program: str, *args: Any, **options: Any) -> Any:
            if _simulated() is None:
                return original(program, *args, **options)
            return f"/usr/bin/{program}" if program in PROGRAMS else None

        return call

    _wrap(shutil, "which", which)


CORES = 4
"""Of each host."""
TIMED_OUT = -1000
"""Exit code of a program that has not answered in time."""
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")


# -- threads -----------------------------------------------------------------------------------------------------------


def _install_threads() -> None:
    def start(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: threading.Thread) -> None:
            if (here := _simulated()) is None:
                original(self)
                return
            process = here.kernel.step("thread")

            def run() -> None:
                try:
                    self.run()
                finally:
                    self._simulated_over = True  # type: ignore[attr-defined]

            self._simulated_over = False  # type: ignore[attr-defined]
            self._simulated = here.kernel.start_thread(process, run)  # type: ignore[attr-defined]

        return call

    _wrap(threading.Thread, "start", start)

    def join(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: threading.Thread, timeout: float | None = None) -> None:
            mine = getattr(self, "_simulated", None)
            if mine is None or (here := _simulated()) is None:
                if mine is None:
                    original(self, timeout)
                return
            here.kernel.step()
            here.kernel.wait_for(lambda: mine.is_over, mine.waiters, timeout)

        return call

    _wrap(threading.Thread, "join", join)

    def is_alive(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: threading.Thread) -> bool:
            mine = getattr(self, "_simulated", None)
            return bool(original(self)) if mine is None else not mine.is_over

        return call

    _wrap(threading.Thread, "is_alive", is_alive)

    def wait(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: threading.Event, timeout: float | None = None) -> bool:
            if (here := _simulated()) is None:
                return bool(original(self, timeout))
            here.kernel.step()
            if not hasattr(self, "_waiters"):
                self._waiters = []  # type: ignore[attr-defined]
            return here.kernel.wait_for(self.is_set, self._waiters, timeout)  # type: ignore[attr-defined]

        return call

    _wrap(threading.Event, "wait", wait)

    def set_event(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: threading.Event) -> None:
            original(self)
            for one in getattr(self, "_waiters", ()):
                if world is not None:
                    world.kernel.wake(one)

        return call

    _wrap(threading.Event, "set", set_event)
    functools.cached_property.__get__ = _get_without_lock  # type: ignore[method-assign]


def _get_without_lock(self: Any, instance: Any, owner: Any = None) -> Any:
    """``cached_property`` as from Python 3.12 on: before, one lock of all simulated processes is held meanwhile."""
    if instance is None:
        return self
    if self.attrname not in instance.__dict__:
        instance.__dict__[self.attrname] = self.func(instance)
    return instance.__dict__[self.attrname]


__all__ = ["PROGRAMS", "TIMED_OUT", "Child", "Killed", "Raw", "World", "install"]
