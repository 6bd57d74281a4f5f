"""Reserve ports and loopback addresses for a test cluster, apart from other clusters on this machine."""

import contextlib
import socket
from dataclasses import dataclass

from seqlm.errors import BackendError

_FIRST_PORT, _PORTS, _SLOTS = 20000, 250, 50
"""All ports are below 32768, where Linux's ephemeral ports begin."""

MOST_NODES = 240


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A range of ports and addresses for one cluster on this machine."""

    number: int
    reservation: socket.socket
    """A listening socket. The slot is taken while any process has it open, so it is freed when they exit."""

    @property
    def controller_port(self) -> int:
        return self._port + 1

    @property
    def accounting_port(self) -> int:
        return self._port + 2

    def node_port(self, index: int) -> int:
        """Return a node's port. Each node needs its own, since a slurmd listens on all addresses."""
        return self._port + 3 + index

    def node(self, index: int) -> str:
        """Return a node's name, which is also its address, so that it always resolves."""
        return f"127.{100 + self.number}.0.{index + 1}"

    @property
    def _port(self) -> int:
        return _FIRST_PORT + _PORTS * self.number


def take_slot(nodes: int) -> Slot:
    """Reserve a free slot for a cluster of ``nodes`` nodes.

    Raises:
        BackendError: all slots are taken.
    """
    for number in range(_SLOTS):
        reservation = socket.socket()
        slot = Slot(number=number, reservation=reservation)
        with contextlib.suppress(OSError):
            reservation.bind(("127.0.0.1", _FIRST_PORT + _PORTS * number))
            reservation.listen()  # two sockets that only bind could share a port
            ports = [slot.controller_port, slot.accounting_port, *map(slot.node_port, range(nodes))]
            if all(map(_is_free, ports)):
                return slot
        reservation.close()
    raise BackendError(f"test cluster: all {_SLOTS} port ranges for test clusters on this machine are taken")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError:
            return False
        return True
