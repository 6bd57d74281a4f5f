"""Start Python programs as forks of a process that has imported torch, pandas and matplotlib already.

Importing torch takes a worker two seconds of a processor; most runs of the tests train for less. A program started here
has its own process number, is a child of the program that starts it, and has the working folder, the variables, the
files and the process group that it would have had: to signals, locks and exit codes it is any other process.

``Popen`` asks a *spawner*, which forks twice. The first fork ends at once, so that the second is adopted by the asker
(a "child subreaper" for that moment). A spawner has one thread, has run nothing and imported nothing of seqlm. The
first one is this file, run as a program; each program that may start others keeps one of its own, forked before it
began.

Other programs, Python with flags or variables that are read when an interpreter begins, and what programs of others
start, such as SLURM and Ray, begin as usual, and so does everything on systems other than Linux and with
``SEQLM_TEST_COLD=1``.
"""

import _imp
import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "torch", "torch._dynamo", "torch.distributed", "numpy", "pandas", "matplotlib.pyplot",
    "matplotlib.backends.backend_svg", "scipy.stats.qmc", "jinja2", "rich.live", "jaxtyping",
    "pydantic",
    "asyncio", "filelock", "google.protobuf.descriptor_pb2", "jsonschema", "msgpack", "psutil", "requests",  # for ray
)  # fmt: skip
COLD_VARIABLES = ("PYTHONHASHSEED", "PYTHONWARNINGS", "LD_PRELOAD", "SEQLM_TEST_COLD")
"""Programs with one of these are started as usual: they are read when an interpreter begins."""
IS_COLD = "SEQLM_TEST_COLD" in os.environ
OWN = ("seqlm.", "analysis.", "benchmarks.", "tests.seqlm.training.")
"""Modules of this repository that are worth a warm start: they import torch."""
STARTS_NOTHING = ("seqlm.training.", "analysis.", "tests.seqlm.training.")
"""Modules that need no spawner of their own."""
MOST_BYTES = 2**20
ROOM = 16384
"""Length of the command line and of the variables of a spawner, in which programs show their own (``/proc``)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NEW_NETWORK = 0x40000000
_MADV_COLLAPSE = 25
_HUGE_PAGE = 2**21
ColdPopen = subprocess.Popen
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_to_code = SourceFileLoader.source_to_code
_compiled: dict[bytes, Any] = {}
"""SHA-256 of a file of this repository -> its code."""
_asking = threading.Lock()
_close: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []
_WHERE = "seqlm_tests_spawner"
"""Attribute of ``sys`` with the socket on which this process asks for programs: this file may be loaded twice."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a fork is to become."""

    words: list[str]
    """``-m module ...``, ``-c code ...`` or ``script.py ...``."""
    folder: str
    variables: dict[str, str]
    new_session: bool
    process_group: int
    """-1: that of the parent; 0: a new one."""
    umask: int
    """-1: that of the parent."""
    dies_with_parent: bool
    """As the ranks of :func:`jobs.attempt.supervisor.start_rank` do. A stub, which imports no torch, begins cold."""
    network: str
    """File of the network namespace to enter (``nsenter --net=FILE``), or nothing."""


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen``, faster for Python programs."""

    def _execute_child(self, *arguments: Any) -> None:
        args, executable, preexec, _, pass_fds, cwd, env, *_ = arguments
        shell, *pipes = arguments[9:16]
        gid, gids, uid, umask, new_session, group = arguments[17:23]
        variables = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()}
        folder = os.fspath(cwd) if cwd is not None else str(Path.cwd())
        words = [os.fspath(word) for word in args] if isinstance(args, list | tuple) else []
        dies = getattr(preexec, "__qualname__", "") == "_in_the_new_process" and "".join(words[2:3]).startswith(OWN)
        plain = executable is gid is gids is uid is None and (preexec is None or dies) and not pass_fds and not shell
        network = ""
        if words[:1] == ["nsenter"] and words[1].startswith("--net="):
            network, words = words[1].removeprefix("--net="), words[2:]
        if not (plain and _is_warm(words, variables) and Path(folder).is_dir()):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        sys.audit("subprocess.Popen", words[0], words, folder, variables)
        files = [own if pipe == -1 else pipe for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        program = Program(
            words=words[1:],
            folder=folder,
            variables=variables,
            new_session=new_session,
            process_group=group,
            umask=umask,
            dies_with_parent=dies,
            network=network,
        )
        self.pid = _ask(program, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


class OwnPopen(Popen):
    """The same for programs of this repository alone: for processes that run code under test."""

    def _execute_child(self, *arguments: Any) -> None:
        words = [os.fspath(word) for word in arguments[0]] if isinstance(arguments[0], list | tuple) else []
        module = words[2] if words[1:2] == ["-m"] and len(words) > 2 else ""
        is_own = module.startswith(OWN) or "".join(words[1:2]).endswith("launch.py")
        (super() if is_own else super(Popen, self))._execute_child(*arguments)  # type: ignore[misc]


def _is_warm(words: list[str], variables: dict[str, str]) -> bool:
    if len(words) < 2 or words[0] != sys.executable or not (words[1] in ("-m", "-c") or words[1].endswith(".py")):
        return False
    return sys.platform == "linux" and not IS_COLD and not any(name in variables for name in COLD_VARIABLES)


def _ask(program: Program, files: list[int]) -> int:
    """Have the spawner start a program; return its process number."""
    with _asking:
        spawner = _spawner()
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(spawner, [json.dumps(asdict(program)).encode()], files)
            answer = spawner.recv(64)
            assert answer, "the spawner has ended; stderr says why"
            return int(answer)
        finally:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _spawner() -> socket.socket:
    """Return the socket of the spawner of this process, which is started at the first call."""
    if not hasattr(sys, _WHERE):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-P", __file__, str(theirs.fileno()), "x" * ROOM]
            own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"ROOM": "x" * ROOM}
            spawner = ColdPopen(argv, env=own, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0)
        setattr(sys, _WHERE, mine)
        _close.append((mine, spawner))
        atexit.register(close)
    found: socket.socket = getattr(sys, _WHERE)
    return found


def close() -> None:
    """End the spawner that this process has started, if any."""
    while _close:
        spawner, process = _close.pop()
        delattr(sys, _WHERE)
        spawner.close()
        process.wait()


# -- in a spawner ----------------------------------------------------------------------------------------------------


def serve(asker: socket.socket) -> tuple[Program, list[int]]:
    """Fork for each requested program; return in the fork alone. Exit when the other end of ``asker`` is closed.

    ``asker`` adopts its programs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group
    while True:
        data, files, _, _ = socket.recv_fds(asker, MOST_BYTES, 3)
        if not data:
            os._exit(0)
        first = os.fork()
        if first:
            for file in files:
                os.close(file)
            os.waitpid(first, 0)
            continue
        first = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == first:
            time.sleep(0.0005)
        program = Program(**json.loads(data))
        if program.dies_with_parent:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if program.new_session:
            os.setsid()
        if program.process_group != -1:
            os.setpgid(0, program.process_group)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in an interpreter that begins: who asked may send it at once
        asker.send(str(os.getpid()).encode())
        asker.close()
        return program, files


def become(program: Program, files: list[int]) -> NoReturn:
    """Run a program in this process as the interpreter would have run it from its start."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 256)
    os.chdir(program.folder)
    if program.network:
        with open(program.network) as network:  # noqa: PTH123
            assert _libc.setns(network.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
    if program.umask != -1:
        os.umask(program.umask)
    os.environ.clear()
    os.environ.update(program.variables)
    _show(program)
    sys.orig_argv[:] = [sys.executable, *program.words]
    if not (program.words[0] == "-m" and program.words[1].startswith(STARTS_NOTHING)):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            mine.close()
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            os.close(null)
            become(*serve(theirs))
        theirs.close()
        setattr(sys, _WHERE, mine)
        subprocess.Popen = Popen  # type: ignore[misc]
    SourceFileLoader.source_to_code = _source_to_code  # type: ignore[method-assign]
    unbuffered = bool(program.variables.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = open(number, "wb", buffering=-1, closefd=False)  # noqa: SIM115
        lines = number == 2 or os.isatty(number)
        stream = io.TextIOWrapper(raw, "utf-8", errors, line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    import torch

    torch.set_num_threads(1)  # several test processes share the machine: threads would wait for each other
    path = [os.path.abspath(entry) for entry in program.variables.get("PYTHONPATH", "").split(os.pathsep) if entry]  # noqa: PTH100
    kind, rest = program.words[0], program.words[1:]
    if kind == "-m":
        sys.path[:0], sys.argv[:] = [program.folder, *path], rest
        _run_and_exit(lambda: runpy.run_module(rest[0], run_name="__main__", alter_sys=True))
    elif kind == "-c":
        sys.path[:0], sys.argv[:] = ["", *path], ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
        _run_and_exit(lambda: exec(code, {"__name__": "__main__", "__builtins__": __builtins__}))
    else:
        sys.path[:0], sys.argv[:] = [str(Path(kind).resolve().parent), *path], [kind, *rest]
        _run_and_exit(lambda: runpy.run_path(kind, run_name="__main__"))


def _run_and_exit(run: Callable[[], object]) -> NoReturn:
    """Run and end as an interpreter does, but do not take all modules apart, which costs a second."""
    code = 0
    sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = 120
            with contextlib.suppress(OSError):
                print(f"Exception ignored in: {stream}\n{type(error).__name__}: {error}", file=sys.__stderr__)
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def compile_own() -> None:
    """Compile this repository, for programs whose code is a copy of it: each study has a new one."""
    for package in ("analysis", "jobs", "seqlm", "slurm"):
        for path in (Path(__file__).parent.parent / package).rglob("*.py"):
            with contextlib.suppress(SyntaxError):
                code = SourceFileLoader("module", str(path)).get_code("module")
                _compiled[hashlib.sha256(path.read_bytes()).digest()] = code


def _source_to_code(loader: SourceFileLoader, data: Any, path: Any, *, _optimize: int = -1) -> Any:
    """Return what the interpreter would compile: the code of these very bytes, with the name of this file."""
    code = _compiled.pop(hashlib.sha256(data).digest(), None) if isinstance(data, bytes) and _optimize == -1 else None
    if code is None:
        return _to_code(loader, data, path, _optimize=_optimize)
    _imp._fix_co_filename(code, str(path))
    return code


def _show(program: Program) -> None:
    """Write the program's command line and variables over those of the spawner."""
    fields = [int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:49]]
    variables = [f"{name}={value}" for name, value in program.variables.items()]
    for begin, end, texts in ((*fields[:2], [sys.executable, *program.words]), (*fields[2:], variables)):
        line = os.fsencode("\0".join([*texts, ""]))[: end - begin - 1]
        ctypes.memmove(begin, line.ljust(end - begin, b"\0"), end - begin)


def use_huge_pages() -> None:
    """Move this process's own memory to huge pages where Linux can: a fork copies one entry for each page."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, rights, _, _, file, *name = line.split()
        if file == "0" and rights.startswith("rw") and name in ([], ["[heap]"]):
            begin, end = (int(place, 16) for place in places.split("-"))
            for page in range(-(-begin // _HUGE_PAGE) * _HUGE_PAGE, end - _HUGE_PAGE + 1, _HUGE_PAGE):
                _libc.madvise(page, _HUGE_PAGE, _MADV_COLLAPSE)  # without effect before Linux 6.1


if __name__ == "__main__":
    sys.modules["pyarrow"] = None  # type: ignore[assignment]  # pandas would import it, and it starts a thread
    for module in IMPORTED:
        __import__(module)
    del sys.modules["pyarrow"]  # a fork that reads a data set imports it
    compile_own()
    gc.freeze()  # forks share these pages
    use_huge_pages()
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    assert threads == 1, f"{threads} threads after the imports: a fork would lose them"
    become(*serve(socket.socket(fileno=int(sys.argv[1]))))
