"""What seqlm uses of Ray's private modules, which any release of Ray may change. No other module imports them.

Ray has no public way to do what these functions do. A public setting takes effect only if it is in the environment
before Ray is imported, when it is not yet known whether a launch joins a cluster or starts a Ray of its own.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import ray

from seqlm.errors import BackendError

OLDEST = (2, 54)
"""The first version of Ray in which every server that accepts commands requires a token."""
NEWEST = (2, 60)
"""The newest version of Ray with which seqlm was tested."""

TO_JOIN = (("ray._private.state", "available_resources_per_node"),)
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


@contextlib.contextmanager
def own_process_groups() -> Iterator[None]:
    """Have every server that Ray starts in the block lead a process group of its own."""
    popen = _find("ray._private.services", "ConsolePopen")
    services = importlib.import_module("ray._private.services")
    with mock.patch.object(services, "ConsolePopen", functools.partial(popen, process_group=0)):
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
