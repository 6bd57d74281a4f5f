"""The Ray that runs go to: an existing cluster, or one that a launch starts on this machine and ends."""

import contextlib
import functools
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final
from unittest import mock

from jobs import terminal
from jobs.backends.local import this_machine
from jobs.plan.capacity import Capacity, Card, Node
from jobs.study.kept_code import Code, source_tree
from seqlm import machine
from seqlm.errors import BackendError, FileError
from seqlm.reading import below, read_tail

OBJECT_STORE_BYTES = 80 * 2**20
"""Object store of an embedded Ray: near Ray's minimum, since no large object goes through it."""
OLDEST_PRIVATE = (2, 54)
"""The first version of Ray in which every server that accepts commands requires a token."""
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

for _name, _value in (
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"),
    ("RAY_worker_niceness", "0"),  # by default 15: beside any other program a run would starve
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),  # the coming default, and a warning without it
):
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 -- reads the variables above as it is imported
from ray._private import ray_constants, services  # noqa: E402 -- for developers; there is no other way
from ray._private.state import available_resources_per_node  # noqa: E402


@final
class RayCluster:
    """A connection to Ray. ``address``: ``None`` means an embedded Ray, which lives as long as the connection.

    With ``asks_memory``, the nodes of a cluster are asked how much memory their GPUs have: Ray does not know.

    Raises:
        BackendError: ``address`` is that of a job server, or for Ray's client.
    """

    def __init__(self, address: str | None, *, asks_memory: bool = False) -> None:
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
        self._memory_gb: dict[str, float | None] = {}
        """Node -> the memory of the smallest of its GPUs. ``None``: it does not say."""
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._private = contextlib.ExitStack()
        self.is_open = False

    @property
    def is_embedded(self) -> bool:
        return self._address is None

    def open(self, code: Code) -> None:
        """Start or join the cluster, with ``code`` for the actors.

        Raises:
            BackendError: Ray cannot be started, or there is no such cluster.
        """
        self._connect(None if self.is_embedded else _runtime_env(code))

    def close(self) -> None:
        """Leave the cluster, or end the embedded Ray. Everything that this connection started ends."""
        if self.is_open:
            self.is_open = False
            with _quiet():
                ray.shutdown()
        if self._watchdog is not None:
            self._watchdog.communicate()
            self._watchdog = None
        self._private.close()

    def capacity(self) -> Capacity:
        """Return what the live nodes have. If the connection is not open, join the cluster for a moment.

        Raises:
            BackendError: the cluster cannot be reached.
        """
        if self.is_open:
            return self._capacity()
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
        return Capacity(nodes, where="this machine" if self.is_embedded else "the cluster")

    def _cards(self, entries: Mapping[str, Mapping[str, float]]) -> dict[str, Card]:
        """Return what is known of the GPUs of nodes, from Ray's resources of each node by its id."""
        if self._asks_memory and not self.is_embedded:
            asked = [name for name, has in entries.items() if has.get("GPU") and name not in self._memory_gb]
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
        """Return what nobody holds of ``total``, by Ray's last report. The connection must be open."""
        free = total.copy()
        has = available_resources_per_node()
        for name, node in free.nodes.items():
            there = has.get(name, {})
            free.withhold(name, node.cpus - there.get("CPU", 0.0), node.free_gpus - there.get("GPU", 0.0))
        return free

    def _connect(self, runtime_env: dict[str, Any] | None) -> None:
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
            options.update(address=self._address, runtime_env=runtime_env)
        try:
            host, _, port = (self._address or "").rpartition(":")
            if host and port.isdigit():  # where nothing listens, Ray itself goes on asking for minutes
                socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
            # Ray has its workers import from the folder in which it is initialised.
            with mock.patch.dict(os.environ, names), contextlib.chdir(source_tree()):
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
        if folder is not None:
            self._watchdog = _watch(folder)


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
    # SIGTERM to the process group of the launcher, as `timeout` sends it, must not end Ray before the workers stop.
    own_group = functools.partial(services.ConsolePopen, process_group=0)
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            with _quiet(), mock.patch.object(services, "ConsolePopen", own_group):
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
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST_PRIVATE:
        oldest = ".".join(map(str, OLDEST_PRIVATE))
        raise BackendError(
            f"Ray {ray.__version__} lets other users of this machine in; install ray>={oldest}, or use --backend local"
        )
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray would kill workers when other programs fill the machine's memory. The kernel kills what takes most.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # what Ray does on macOS and Windows: every address is 127.0.0.1
    folder = Path(tempfile.mkdtemp(prefix="seqlm-", dir=_place_of_sockets()))
    try:
        with mock.patch.dict(os.environ, variables):
            os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
            _read_environment_again()
            yield folder
    finally:
        _read_environment_again()
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
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


def _read_environment_again() -> None:
    """Have Ray read its variables again: it read them on import, before the launch chose a cluster."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined] # compiled; from Ray 2.52 on

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


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


def _watch(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the embedded Ray's processes if this one is killed."""
    import psutil  # only for an embedded Ray

    # Each server leads a group (see _init), in which the processes are that it has started.
    leaders = [child.pid for child in psutil.Process().children() if os.getpgid(child.pid) == child.pid]
    argv = ["sh", "-c", WATCHDOG, "sh", str(folder), *(f"-{pid}" for pid in leaders)]
    # A session of its own: a signal to the launcher's process group must not end it.
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)


def node_address(node: str) -> str:
    """Return the address of a node, for messages."""
    return next((entry["NodeManagerAddress"] for entry in ray.nodes() if entry["NodeID"] == node), node[:8])


def _runtime_env(code: Code) -> dict[str, Any]:
    """Return Ray's description of what goes to the nodes: the code that git tracks, and no variables of this machine.

    A live tree is not sent: nodes that share its file system run it in place.
    """
    if code.live:
        return {"env_vars": {"PYTHONPATH": str(code.path)}}
    return {"working_dir": str(code.path)}


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
