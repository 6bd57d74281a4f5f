"""Ports and loopback addresses of a test cluster that no other one on this machine has."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from seqlm.errors import BackendError

_FIRST_PORT, _PORTS, _SLOTS = 20000, 250, 50
"""Below 32768, where Linux begins to hand out ports to clients."""

MOST_NODES = 240


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One of so many places for a cluster on this machine."""

    number: int
    reservation: socket.socket
    """While anybody has it open the slot is taken. Nothing is left behind when they die."""

    @property
    def controller_port(self) -> int:
        return self._port + 1

    @property
    def accounting_port(self) -> int:
        return self._port + 2

    def node_port(self, index: int) -> int:
        """A slurmd listens on all addresses, so that each needs a port of its own."""
        return self._port + 3 + index

    def node(self, index: int) -> str:
        """A node's name, which is its address as well, so that it resolves wherever it is looked up."""
        return f"127.{100 + self.number}.0.{index + 1}"

    @property
    def _port(self) -> int:
        return _FIRST_PORT + _PORTS * self.number


def take_slot(nodes: int) -> Slot:
    """A free slot for so many nodes, reserved.

    Raises:
        BackendError: there is none.
    """
    for number in range(_SLOTS):
        reservation = socket.socket()
        slot = Slot(number=number, reservation=reservation)
        with contextlib.suppress(OSError):
            reservation.bind(("127.0.0.1", _FIRST_PORT + _PORTS * number))
            reservation.listen()  # two that only bind could share a port
            ports = [slot.controller_port, slot.accounting_port, *map(slot.node_port, range(nodes))]
            if all(map(_is_free, ports)):
                return slot
        reservation.close()
    raise BackendError(f"test cluster: all {_SLOTS} places for one on this machine are taken")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return False
        return True
