"""Whose turn it is on a Ray cluster: what the launches of all users say of themselves there.

Each launch has a named actor without resources in the namespace of seqlm, which ends with its launcher. The actors are
asked without waiting for their answers.
"""

import contextlib
import functools
import getpass
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias, final

import ray

from jobs.backends.cards import Standing, first_in_line
from jobs.plan.capacity import TINY, Capacity
from seqlm.errors import printable
from seqlm.reading import finite

Amounts: TypeAlias = Mapping[str, float]
"""``gpus`` and ``cpus``."""

UNITS = ("gpus", "cpus")
PREFIX = "launch-"
"""What the names of the actors begin with."""
FRESH_SECONDS = 15.0
"""How long a launch that waits counts as waiting after its last sign of life."""
LONGEST_NAME = 120
"""Characters of the name of a launch that are used."""


@final
class Board:
    """The actor of a launch: holds what the launch says of itself, for others to read."""

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}
        self._at = 0.0

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record, which is a sign of life."""
        self._record, self._at = record, time.monotonic()

    def read(self) -> dict[str, Any]:
        """Return the record. A launch that has given no sign of life for long waits for nothing."""
        is_fresh = time.monotonic() - self._at < FRESH_SECONDS
        return self._record if is_fresh else {**self._record, "needs": None}


@final
class Turns:
    """The launches on the cluster to which this process is connected."""

    def __init__(self, study: str, ask: Callable[[Callable[[], Any]], Any]) -> None:
        """``ask`` makes a call of Ray that may wait for the head."""
        self._ask = ask
        self._token = secrets.token_hex(8)
        self._holder = f"{_user()}'s study {study}"
        self._turn = time.time()
        self._needs: Amounts | None = None
        self._nodes: list[str] = []
        """Where its waiting runs can start."""
        actor: Any = ray.remote(Board)
        # It starts in the background; what it is told meanwhile waits for it.
        options = actor.options(name=f"{PREFIX}{self._token}", num_cpus=0, max_concurrency=2)
        self._board = ask(options.remote)
        self._others: dict[str, Mapping[str, Any]] = {}
        """Token -> what another launch has said last."""
        self._asked: dict[Any, str] = {}
        """Outstanding answer -> token."""

    def waits(self, needs: Amounts | None, nodes: Iterable[str]) -> None:
        """Note the least that a waiting run of this launch needs (``None``: none waits), and where it can have that."""
        self._needs, self._nodes = needs, sorted(nodes)

    def has_changed(self) -> None:
        """Note that this launch has taken or given back something."""
        self._turn = time.time()

    def exchange(self, holds: Amounts) -> None:
        """Say what this launch holds and needs, take the answers of others that have arrived, and ask again.

        Raises:
            LostBackendError: Ray does not answer any more.
        """
        record = {"holder": self._holder, "holds": holds, "needs": self._needs, "nodes": self._nodes}
        self._board.write.remote({**record, "turn": self._turn})
        there = {
            name.removeprefix(PREFIX) for name in self._ask(ray.util.list_named_actors) if name.startswith(PREFIX)
        } - {self._token}
        arrived, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for reference in arrived:
            token = self._asked.pop(reference)
            with contextlib.suppress(ray.exceptions.RayError):
                answer = ray.get(reference)
                if isinstance(answer, dict):
                    self._others[token] = answer
        self._others = {token: record for token, record in self._others.items() if token in there}
        for token in there - set(self._asked.values()):
            with contextlib.suppress(ValueError, ray.exceptions.RayError):  # it has ended meanwhile
                other: Any = self._ask(functools.partial(ray.get_actor, f"{PREFIX}{token}"))
                self._asked[other.read.remote()] = token

    def first_in_line(self, holds: Amounts, total: Capacity) -> tuple[str, str, Collection[str]] | None:
        """Return who gets what is free before this launch, of which unit, and on which nodes. ``None``: nobody does.

        A launch that waits for GPUs competes for those, and one that waits for cores alone for those.
        """
        totals = {"gpus": total.gpus, "cpus": total.cpus}
        for unit in UNITS:
            own = self._needs or {}
            first = first_in_line(
                Standing(token=self._token, holder="", holds=holds[unit], needs=own.get(unit), turn=self._turn),
                [_standing(token, record, unit) for token, record in self._others.items()],
                totals[unit],
            )
            if first is not None:
                nodes = self._others[first.token].get("nodes")
                return (
                    first.holder,
                    unit,
                    [one for one in nodes if isinstance(one, str)] if isinstance(nodes, list) else (),
                )
        return None


def _standing(token: str, record: Mapping[str, Any], unit: str) -> Standing:
    holds, needs = _amounts(record.get("holds")), _amounts(record.get("needs"))
    waits_for = "gpus" if needs["gpus"] > TINY else "cpus"
    waits = record.get("needs") is not None and waits_for == unit and needs[unit] > TINY
    return Standing(
        token=token,
        holder=printable(str(record.get("holder"))[:LONGEST_NAME]),
        holds=holds[unit],
        needs=needs[unit] if waits else None,
        turn=finite(record.get("turn")) or 0.0,
    )


def _amounts(value: Any) -> Amounts:
    found = value if isinstance(value, dict) else {}
    return {unit: finite(found.get(unit)) or 0.0 for unit in UNITS}


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return "somebody"
