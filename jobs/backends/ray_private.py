"""What seqlm uses of Ray's private modules, which any release of Ray may change. No other module imports them.

Ray has no public way to do what these functions do. A public setting takes effect only if it is in the environment
before Ray is imported, when it is not yet known whether a launch joins a cluster or starts a Ray of its own.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from unittest import mock

import ray

from seqlm.errors import BackendError

OLDEST = (2, 54)
"""The first version of Ray in which every server that accepts commands requires a token."""
NEWEST = (2, 60)
"""The newest version of Ray with which seqlm was tested."""

UNNEEDED = ("dashboard.py", "log_monitor.py", "monitor.py")
"""Programs of Ray that an embedded Ray does without: a web page, copies of logs, and what asks for further nodes."""

TO_JOIN = (
    ("ray._private.state", "available_resources_per_node"),
    ("ray._private.state", "state"),
    ("ray._private.worker", "print_to_stdstream"),
)
"""Module and name of what a connection to a cluster needs."""
TO_START = (
    *TO_JOIN,
    ("ray._private.services", "ConsolePopen"),
    ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
    ("ray._raylet", "Config"),
    ("ray._raylet", "AuthenticationTokenLoader"),
)
"""Module and name of what an embedded Ray needs."""


def require(*, starts: bool) -> None:
    """Check that the installed Ray has what seqlm needs of it. ``starts``: to start a Ray, not only to join one.

    Raises:
        BackendError: this version of Ray lacks something, or lets other users of this machine into a Ray of one's own.
    """
    if starts and _version() < OLDEST:
        raise BackendError(
            f"Ray {ray.__version__} lets other users of this machine in; install ray>={_text(OLDEST)}, or use "
            "--backend local"
        )
    for module, name in TO_START if starts else TO_JOIN:
        _find(module, name)


def available_per_node() -> Mapping[str, Mapping[str, float]]:
    """Return what nobody holds of each live node, by Ray's id of the node and the name of the resource.

    ``ray.available_resources()`` returns the sum over all nodes.
    """
    per_node: Mapping[str, Mapping[str, float]] = _find("ray._private.state", "available_resources_per_node")()
    return per_node


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that Ray drains. It places nothing there; what runs there has to leave by itself."""
    return set(_find("ray._private.state", "state").get_draining_nodes())


@contextlib.contextmanager
def messages_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass what Ray would print to ``tell`` while the block runs: notes about lost nodes, with parts of their logs.

    ``log_to_driver=False`` does not cover these.
    """

    def note(data: Mapping[str, Any], *ignored: Any, **options: Any) -> None:
        tell("\n".join(data["lines"]))

    with mock.patch.object(importlib.import_module("ray._private.worker"), "print_to_stdstream", note):
        yield


@contextlib.contextmanager
def needed_servers_in_own_groups() -> Iterator[None]:
    """Have a Ray that is started in the block leave out :data:`UNNEEDED`. Each server leads a process group of its own.

    Ray waits for its dashboard server to start, and for its monitor to end, and no parameter of ``ray.init`` leaves
    them out. With ``include_dashboard=False``, the end of the dashboard server is a warning in a log to Ray.
    """
    popen = _find("ray._private.services", "ConsolePopen")

    def start(command: Sequence[str], **options: Any) -> Any:
        is_unneeded = any(PurePath(word).name in UNNEEDED for word in command)
        return popen(["true"] if is_unneeded else command, process_group=0, **options)

    services = importlib.import_module("ray._private.services")
    with mock.patch.object(services, "ConsolePopen", start):
        yield


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray that is started in the block use 127.0.0.1 throughout, as Ray does on macOS and Windows."""
    constants = importlib.import_module("ray._private.ray_constants")
    with mock.patch.object(constants, "ENABLE_RAY_CLUSTER", False):
        yield


def read_environment_again() -> None:
    """Have Ray read its variables again, among them the token. It has read them when it was imported."""
    _find("ray._raylet", "Config").initialize("")
    _find("ray._raylet", "AuthenticationTokenLoader").instance().reset_cache()


def _find(module: str, name: str) -> Any:
    """Return what a module of Ray calls ``name``.

    Raises:
        BackendError: there is no such module, or no such name in it.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        after = (NEWEST[0], NEWEST[1] + 1)
        raise BackendError(
            f"Ray {ray.__version__} has no {module}.{name}, which seqlm needs; install "
            f'"ray>={_text(OLDEST)},<{_text(after)}", or use --backend local'
        ) from None


def _version() -> tuple[int, ...]:
    return tuple(map(int, ray.__version__.split(".")[:2]))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
