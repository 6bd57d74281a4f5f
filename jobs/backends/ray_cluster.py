"""The Ray that runs go to: an existing cluster, or one that a launch starts on this machine and ends."""

import atexit
import contextlib
import functools
import logging
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_answers
from pathlib import Path
from typing import Any, NoReturn, TypeVar, final
from unittest import mock

from jobs import terminal
from jobs.backends.local import this_machine
from jobs.backends.ray_growth import Bundle, Largest
from jobs.plan.capacity import Capacity, Card, Node
from jobs.study.kept_code import Code, source_tree
from seqlm import machine
from seqlm.errors import BackendError, FileError, LostBackendError
from seqlm.reading import below, read_tail

Answer = TypeVar("Answer")

OBJECT_STORE_BYTES = 80 * 2**20
"""Object store of an embedded Ray: near Ray's minimum, since no large object goes through it."""
KNOCK_SECONDS = 10.0
"""Time that a cluster has to accept a connection."""
LONGEST_PLACE = 107 - len("/seqlm-12345678/r/session_2026-12-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Most bytes of the path of a folder in which Ray may have its own: that of a socket has at most 107 (man 7 unix)."""
LOG_BYTES, LOG_LINES = 16_384, 20
"""What is shown of each log of a Ray that did not start."""
ANSWER_SECONDS = 120.0
"""Time that all nodes have to say how much memory their GPUs have."""
KIND = "accelerator_type:"
"""What precedes the kind of a node's GPUs among Ray's resources."""
CONNECT_TRIES = 3
"""Number of tries to join a cluster that does not answer within Ray's own timeout."""
HEAD_SECONDS = 1.0
"""How long a call may take before the head is asked whether it answers at all."""
LOST_SECONDS = 20.0
"""How long the head of a cluster may answer nothing before it counts as lost. Ray itself ends this process and
the nodes after a minute (``RAY_gcs_rpc_server_reconnect_timeout_s``), by when runs have to be stopped."""
LEAVE_SECONDS = 15.0
"""How long Ray may take to leave a cluster that does not answer."""
SERVERS = ("gcs_server", "raylet")
"""The names of the processes without which an embedded Ray runs nothing."""

for _name, _value in (
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"),
    ("RAY_worker_niceness", "0"),  # by default 15: beside any other program a run would starve
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),  # the coming default, and a warning without it
):
    os.environ.setdefault(_name, _value)

import psutil  # noqa: E402
import ray  # noqa: E402 -- reads the variables above as it is imported

from jobs.backends import ray_private  # noqa: E402


@final
class RayCluster:
    """A connection to Ray. ``address``: ``None`` means an embedded Ray, which lives as long as the connection.

    With ``asks_memory``, the nodes of a cluster are asked how much memory their GPUs have: Ray does not know.
    ``largest``: what an autoscaler may add.

    Raises:
        BackendError: ``address`` is that of a job server, or for Ray's client.
    """

    def __init__(self, address: str | None, *, asks_memory: bool = False, largest: Largest | None = None) -> None:
        if address is not None and address.startswith("ray://"):
            raise BackendError(
                f"{address} is for Ray's client, which seqlm does not use; launch on a node of the cluster with the "
                'address "auto"'
            )
        if address is not None and address.startswith(("http://", "https://")):
            raise BackendError(
                f"{address} is a job server and no cluster to join; launch on one of its nodes, or use: "
                f"ray job submit --address {address} -- seqlm run ..."
            )
        self._address = address
        self._asks_memory = asks_memory
        self._largest = largest
        self._memory_gb: dict[str, float | None] = {}
        """Node -> the memory of the smallest of its GPUs. ``None``: it does not say."""
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._private = contextlib.ExitStack()
        self._family: list[psutil.Process] = []
        """The processes of the embedded Ray when it had started."""
        self._servers: list[psutil.Process] = []
        """Those of them without which it runs nothing."""
        self._is_stuck = False
        """Whether Ray has not let go of a connection, so that there can be no other one in this process."""
        self._here = ""
        """Ray's id of the node of this machine."""
        self._lost_for: str | None = None
        """Why nothing is asked any more. ``None``: Ray answers."""
        self.is_open = False

    @property
    def is_embedded(self) -> bool:
        return self._address is None

    def open(self, code: Code) -> None:
        """Start or join the cluster, with ``code`` for the actors.

        Raises:
            BackendError: Ray cannot be started, there is no such cluster, or the installed Ray lacks what seqlm needs.
        """
        self._connect(None if self.is_embedded else _runtime_env(code))

    def close(self) -> None:
        """Leave the cluster, or end the embedded Ray. Everything that this connection started ends."""
        family = _with_children(self._family)
        if self._lost_for is not None:
            _kill(family)  # a server that is stuck would keep Ray from leaving
        if self.is_open:
            self.is_open = False
            with _quiet():
                if self._lost_for is None:
                    ray.shutdown()
                else:  # takes some seconds without the head, and forever with one that is stuck
                    self._is_stuck = not wait_for_answers([_in_a_thread(ray.shutdown)], timeout=LEAVE_SECONDS).done
            if self._is_stuck:
                atexit.unregister(ray.shutdown)
        if self._watchdog is not None:
            self._watchdog.communicate()
            self._watchdog = None
        _kill(family)  # workers lead groups of their own, and agents may wait a minute for a dead head
        self._family, self._servers, self._lost_for = [], [], None
        self._private.close()

    def ask(self, call: Callable[[], Answer]) -> Answer:
        """Return what a call of Ray returns that may wait for the head.

        The call is made in another thread: where nothing answers, it would never return, and after a minute Ray would
        end this process without an error.

        Raises:
            LostBackendError: a server of the embedded Ray has ended, or no call has been answered for
                ``LOST_SECONDS``. Every later call raises this at once, until Ray is opened again.
        """
        self._require_servers()
        answer, probe, heard_at = _in_a_thread(call), None, time.monotonic()
        while not wait_for_answers([answer], timeout=HEAD_SECONDS).done:
            self._require_servers()
            if probe is None or probe.done():
                heard_at = heard_at if probe is None else time.monotonic()
                probe = _in_a_thread(ray.nodes)
            elif time.monotonic() - heard_at > LOST_SECONDS:
                where = "Ray on this machine" if self.is_embedded else f"the Ray cluster at {self._address}"
                self._lose(f"{where} has not answered for {LOST_SECONDS:g} s")
        return answer.result()

    def _require_servers(self) -> None:
        """Raise if Ray is known to be lost, or a server of the embedded Ray has ended."""
        if self._lost_for is not None:
            raise LostBackendError(self._lost_for)
        if not all(map(_lives, self._servers)):
            self._lose("Ray on this machine has ended")

    def _lose(self, why: str) -> NoReturn:
        self._lost_for = why
        raise LostBackendError(why)

    def capacity(self) -> Capacity:
        """Return what the live nodes have. If the connection is not open, join the cluster for a moment.

        Raises:
            BackendError: the cluster cannot be reached, or the installed Ray lacks what seqlm needs. It is a
                ``LostBackendError`` if the connection is open.
        """
        if self.is_open:
            found = self.ask(self._capacity)
            if self._here not in found.nodes:  # Ray ends all actors of a launch whose node is gone
                self._lose(
                    "Ray on this machine has ended"
                    if self.is_embedded
                    else f"this machine is no live node of the Ray cluster at {self._address} any more"
                )
            return found
        if self.is_embedded:
            return this_machine()
        self._connect(None)
        try:
            return self._capacity()
        finally:
            self.close()

    def _capacity(self) -> Capacity:
        entries = {entry["NodeID"]: entry["Resources"] for entry in ray.nodes() if entry["Alive"]}
        cards = self._cards(entries)
        nodes = []
        for name, has in entries.items():
            devices = [str(index) for index in range(int(has.get("GPU", 0)))]
            gpus, known = dict.fromkeys(devices, 1.0), dict.fromkeys(devices, cards[name])
            nodes.append(Node(name=name, cpus=has.get("CPU", 0.0), gpus=gpus, cards=known))
        found = Capacity(nodes, where="this machine" if self.is_embedded else "the cluster")
        if self._largest is not None:  # a run books fewer cores than it asks for only if there never are as many
            found.total_cpus = self._largest.grown(found).cpus
        return found

    def _cards(self, entries: Mapping[str, Mapping[str, float]]) -> dict[str, Card]:
        """Return what is known of the GPUs of nodes, from Ray's resources of each node by its id."""
        if self._asks_memory and not self.is_embedded:
            silent = {*self._memory_gb, *ray_private.draining_nodes()}  # those have answered, and these do no more work
            asked = [name for name, has in entries.items() if has.get("GPU") and name not in silent]
            self._memory_gb |= dict(zip(asked, self._answers(asked), strict=True))
        kinds = {name: [key for key in has if key.startswith(KIND)] for name, has in entries.items()}
        return {
            name: Card(
                type=found[0].removeprefix(KIND) if len(found) == 1 else "",
                memory=functools.partial(self._memory_gb.get, name),
            )
            for name, found in kinds.items()
        }

    @staticmethod
    def _answers(nodes: Sequence[str]) -> list[float | None]:
        """Return what nodes say of the memory of their GPUs.

        Raises:
            BackendError: a node does not answer.
        """

        def smallest() -> float | None:  # inside, so that Ray sends its code: nodes have none of ours yet
            import os
            import subprocess

            if "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):  # nvidia-smi has the size of whole cards
                return None
            words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
            try:
                answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout
            except (OSError, subprocess.TimeoutExpired):
                return None
            return min((int(line) * 2**20 / 1e9 for line in answer.split() if line.isdigit()), default=None)

        program: Any = ray.remote(num_cpus=0, max_retries=0)(smallest)
        asked = [program.options(label_selector={"ray.io/node-id": node}).remote() for node in nodes]
        try:
            return list(ray.get(asked, timeout=ANSWER_SECONDS))
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            what = str(error).strip().splitlines()[0]
            raise BackendError(f"a node of the cluster does not say how much memory its GPUs have: {what}") from None

    def free(self, total: Capacity) -> Capacity:
        """Return what nobody holds of ``total``, by Ray's last report. The connection must be open.

        Raises:
            LostBackendError: as in :meth:`ask`.
        """
        free = total.copy()
        has = self.ask(ray_private.available_per_node)
        for name, node in free.nodes.items():
            there = has.get(name, {})
            free.withhold(name, node.cpus - there.get("CPU", 0.0), node.free_gpus - there.get("GPU", 0.0))
        return free

    def _require_own_cluster(self) -> None:
        """Refuse a cluster whose workers belong to another user, who could read and change what they do.

        A launch asks for the capacity before it joins with code, so nothing has been sent then.

        Raises:
            BackendError: the raylet of this machine belongs to another user.
        """
        (path,) = [entry["RayletSocketName"] for entry in ray.nodes() if entry["NodeID"] == self._here]
        owner = Path(path.removeprefix("unix://")).stat().st_uid
        if owner == os.getuid():
            return
        self.close()
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"with the number {owner}"
        raise BackendError(
            f"the Ray cluster at {self._address} belongs to user {name}, as whom your code would run; start one of "
            "your own with `ray start --head`, or --backend local does without"
        )

    def draining(self) -> set[str]:
        """Return the nodes that are to be shut down: their owner, an autoscaler or a preemption notice has said so.

        Raises:
            LostBackendError: as in :meth:`ask`.
        """
        return self.ask(ray_private.draining_nodes)

    def address_of(self, node: str) -> str:
        """Return the address of a node, for messages."""
        with contextlib.suppress(LostBackendError):
            for entry in self.ask(ray.nodes):
                if entry["NodeID"] == node:
                    return str(entry["NodeManagerAddress"])
        return node[:8]

    def request(self, bundles: Sequence[Bundle]) -> None:
        """Ask the autoscaler for a cluster with room for all ``bundles``, in place of what was asked before.

        Raises:
            RayError, LostBackendError: the cluster does not answer.
        """
        from ray.autoscaler.sdk import request_resources  # only for a cluster that grows

        self.ask(lambda: request_resources(bundles=list(bundles)))

    def _connect(self, runtime_env: dict[str, Any] | None) -> None:
        if self._is_stuck:
            raise BackendError(
                "Ray on this machine has ended and cannot be started again by the same launch; run again"
            )
        ray_private.require(starts=self.is_embedded)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "seqlm"}
        folder, names = None, {}
        if self.is_embedded:
            here = this_machine()
            names = {machine.VISIBLE: ""}  # the launcher books GPUs, by the ledger that all launches here share
            folder = self._private.enter_context(_private())
            options.update(
                address="local",
                _temp_dir=str(folder / "r"),
                num_cpus=int(here.cpus),
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        else:
            names = {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}  # a Ray job that launches has code of its own
            options.update(address=self._address, runtime_env=runtime_env)
        try:
            host, _, port = (self._address or "").rpartition(":")
            if host and port.isdigit():  # where nothing listens, Ray itself goes on asking for minutes
                socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
            # Ray has its workers import from the folder in which it is initialised.
            before = psutil.Process().children()
            with mock.patch.dict(os.environ, names), contextlib.chdir(source_tree()):
                if runtime_env is None:
                    # What a Ray job that launches has is not needed, and is not there on a Ray of ours.
                    os.environ.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)
                _init(options)
        except Exception as error:  # Ray raises what its layers raise: ConnectionError, RuntimeError, ValueError, ...
            lines = str(error).strip().splitlines() or [type(error).__name__]
            terminal.detail("\n".join([*lines, *(_last_lines(folder) if folder is not None else [])]))
            self._private.close()
            where = f"{self._address}{' (RAY_ADDRESS)' if os.environ.get('RAY_ADDRESS') == self._address else ''}"
            what = "cannot start Ray on this machine" if self.is_embedded else f"no Ray cluster at {where}"
            hint = "--backend local does without" if self.is_embedded else "`ray status` shows whether it is up"
            more = "; --verbose shows what Ray says" if len(lines) > 1 or folder is not None else ""
            raise BackendError(f"{what}: {lines[0]}; {hint}{more}") from None
        self.is_open = True
        # Ray prints notes about nodes that die to stdout, with parts of their logs.
        self._private.enter_context(ray_private.messages_to(terminal.detail))
        self._here = ray.get_runtime_context().get_node_id()
        if folder is None:
            self._require_own_cluster()
        else:
            # Each server leads a group (see _private), in which the processes are that it has started.
            leaders = [one for one in psutil.Process().children() if one not in before and _leads_a_group(one)]
            self._family = _with_children(leaders)
            self._servers = [process for process in self._family if _is_server(process)]
            self._watchdog = _watch(folder, leaders)


def _last_lines(folder: Path) -> list[str]:
    """Return the last lines of the logs of a Ray that did not start, each with the name of its file."""
    found = []
    for path in below(folder, "*.[eo][ru][rt]"):
        with contextlib.suppress(FileError, OSError):
            text = read_tail(path, LOG_BYTES).decode(errors="replace")
            found += [f"{path.name}: {line}" for line in text.splitlines()[-LOG_LINES:]]
    return found


def _init(options: dict[str, Any]) -> None:
    """``ray.init``, again where a cluster that accepts connections is too busy to answer one."""
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            with _quiet():
                ray.init(**options)
            return
        except ConnectionError:
            if not tries_left:
                raise


@contextlib.contextmanager
def _private() -> Iterator[Path]:
    """Keep other users of this machine out of a Ray that is started in the block; yields a folder for its files.

    Ray makes its folders writable for everybody, so their parent is one that only this user can enter. Its servers
    listen on loopback alone and ask for a token, which is in the environment of this user's processes and in no file.
    """
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray would kill workers when other programs fill the machine's memory. The kernel kills what takes most.
        "RAY_memory_monitor_refresh_ms": "0",
        # Ray would start a process for each core, and have ray.init wait for them. An actor starts its own.
        "RAY_prestart_worker_first_driver": "0",
    }
    folder = Path(tempfile.mkdtemp(prefix="seqlm-", dir=_place_of_sockets()))
    try:
        # SIGTERM to the process group of the launcher, as `timeout` sends it, must not end Ray before the workers stop.
        servers = ray_private.needed_servers_in_own_groups()
        with mock.patch.dict(os.environ, variables), ray_private.on_loopback(), servers:
            os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
            ray_private.read_environment_again()
            yield folder
    finally:
        ray_private.read_environment_again()
        shutil.rmtree(folder, ignore_errors=True)


def _place_of_sockets() -> str:
    """Return the first folder for temporary files whose path leaves room for the names of Ray's sockets.

    Raises:
        BackendError: none does.
    """
    given = os.environ.get("RAY_TMPDIR")
    places = [given] if given else [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR")]
    for place in filter(None, places):
        if len(os.fsencode(place)) <= LONGEST_PLACE:
            return place
    raise BackendError(
        f"the paths of Ray's sockets in {places[0]} are longer than the system allows; set RAY_TMPDIR to a folder of "
        f"yours with at most {LONGEST_PLACE} characters"
    )


WATCHDOG = """
cat > /dev/null
folder=$1 tries=0
shift
kill -KILL -- "$@" 2> /dev/null
until rm -rf "$folder" 2> /dev/null || [ $((tries += 1)) -gt 100 ]; do sleep 0.1; done
"""
"""Wait for the end of the launcher, then kill Ray's process groups and remove its folder.

Ray's servers end with a killed launcher; the agents that they have started do not. The arguments are the folder and the
groups, each with a hyphen before it. A process that is ending may still write to the folder while it is removed.
"""


def _watch(folder: Path, leaders: Sequence[psutil.Process]) -> subprocess.Popen[bytes]:
    """Start a process that ends the embedded Ray's process groups if this process is killed."""
    argv = ["sh", "-c", WATCHDOG, "sh", str(folder), *(f"-{process.pid}" for process in leaders)]
    # A session of its own: a signal to the launcher's process group must not end it.
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)


def _leads_a_group(process: psutil.Process) -> bool:
    try:
        return _lives(process) and bool(os.getpgid(process.pid) == process.pid)
    except ProcessLookupError:
        return False


def _is_server(process: psutil.Process) -> bool:
    try:
        return process.name() in SERVERS
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _with_children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return these processes and all that they have started and that has not lost its parent since."""
    found = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [child for child in process.children(recursive=True) if child not in found]
    return found


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _in_a_thread(call: Callable[[], Answer]) -> Future[Answer]:
    """Make a call in a thread of its own, which may never end."""
    answer: Future[Answer] = Future()

    def make() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=make, daemon=True).start()
    return answer


def _runtime_env(code: Code) -> dict[str, Any]:
    """Return Ray's description of what goes to the nodes: the code that git tracks, and no variables of this machine.

    A live tree is not sent: nodes that share its file system run it in place. What is said here overrides what a job
    that launches has of the same name; that job's other variables and packages hold for the actors too.
    """
    if code.live:
        return {"env_vars": {"PYTHONPATH": str(code.path)}}
    # Without patterns, those of the job would say which files are not sent. Ray takes an empty list for none.
    return {"working_dir": str(code.path), "excludes": ["__pycache__"]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what Ray prints to stderr despite its log level. Its errors come as exceptions."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
