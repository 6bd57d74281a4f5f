"""Placement groups of the Ray backend: one actor for each rank, kept for the next run of the same resources.

A new group takes about a second to place, which short runs would notice. So the group of a run that has ended waits a
few seconds for another run.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.attempt.memory_kills import own_kill_count
from jobs.attempt.supervisor import Supervisor, interface_of
from jobs.plan.capacity import Allocation
from jobs.spec import Resources, Submission
from seqlm import machine
from seqlm.errors import EXIT_LOST, EXIT_STOPPED, FileError
from seqlm.reading import is_folder

IDLE_SECONDS = 5.0
"""How long an idle group waits for a run."""


# -- the actor of a rank: only its class, its two records and a Submission are pickled -------------------------------


@dataclass(frozen=True, kw_only=True)
class RankLocation:
    """Where a rank will run, as its actor reports it."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's address in the cluster."""
    interface: str | None
    """Network interface with that address."""
    device: str | None
    """The GPU that Ray assigned to this rank, for CUDA_VISIBLE_DEVICES: its UUID if Ray's index is unambiguous."""
    sees_run: bool
    """Whether the run's folder exists there."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank's process ended, as its actor reports it."""

    code: int
    """Exit code; negative: the signal that killed it."""
    problem: str = ""
    """Why it could not start."""
    memory_kills: tuple[int, int] = (0, 0)
    """Out-of-memory kills in the actor's control group, before the rank started and after it ended."""


@final
class RankHost:
    """The actor of one rank, which holds its cores and GPU and runs its process.

    The process has the same command line as on every backend. So Ray's processes hold no GPU and no threads, and a
    crash of the rank is an exit code. ``run`` takes as long as the rank does; Ray calls ``stop`` in another thread.
    """

    def __init__(self) -> None:
        self._ranks: Supervisor | None = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def location(self, run_dir: str) -> RankLocation:
        """Return where this actor is, before each run."""
        self._ranks, self._is_stopped = None, False
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        address = ray.util.get_node_ip_address()
        return RankLocation(
            node=context.get_node_id(),
            address=address,
            interface=interface_of(address),
            device=machine.addressed(devices[0]) if devices else None,
            sees_run=_sees(Path(run_dir)),
        )

    def run(self, submission: Submission, rank: int, variables: Mapping[str, str], *, own_code: bool) -> RankEnd:
        """Run a rank's process to its end.

        Args:
            submission: the attempt. The interpreter is that of this actor, whatever its ``argv`` names.
            rank: from 0.
            variables: of :func:`jobs.attempt.supervisor.rank_variables`.
            own_code: whether to run the code that came with the actor, in place of that at ``submission.cwd``.
        """
        before = own_kill_count()
        cwd = Path.cwd() if own_code else submission.cwd
        ranks = Supervisor(replace(submission, argv=(sys.executable, *submission.argv[1:]), cwd=cwd))
        try:
            with self._lock:
                if self._is_stopped:
                    return RankEnd(code=EXIT_STOPPED)
                ranks.start(rank, variables)
                self._ranks = ranks
        except (OSError, FileError) as error:
            return RankEnd(code=EXIT_LOST, problem=f"cannot start the worker on {socket.gethostname()}: {error}")
        code = ranks.wait()
        return RankEnd(code=code, memory_kills=(before, own_kill_count()))

    def stop(self, number: int) -> None:
        """Send a signal to the rank's process. A rank that has not started yet does not start."""
        with self._lock:
            self._is_stopped = True
            if self._ranks is not None:
                self._ranks.signal(signal.Signals(number))


def _sees(folder: Path) -> bool:
    """Return whether a folder can be seen on this node; false if its file system fails."""
    try:
        return is_folder(folder)
    except FileError:
        return False


# -- groups ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Group:
    """A placement group with the actor of each rank."""

    group: PlacementGroup
    hosts: list[Any]
    resources: Resources
    allocations: list[Allocation]
    """What it holds: where it was expected at first, where Ray has placed it later.

    GPUs are named as in the capacity.
    """
    idle_since: float = 0.0

    def fits(self, resources: Resources) -> bool:
        """Return whether it has what a run needs."""
        kept = self.resources
        return (kept.ranks, kept.cpus, kept.gpus) == (resources.ranks, resources.cpus, resources.gpus)

    @property
    def is_placed(self) -> bool:
        """Whether Ray has found room for it."""
        return bool(placement_group_table(self.group)["state"] != "PENDING")


def new_group(resources: Resources, allocations: list[Allocation]) -> Group:
    """Ask Ray for a group on the nodes of ``allocations``, one for each rank."""
    bundle = {"CPU": allocations[0].cpus}
    if resources.gpus:
        bundle["GPU"] = resources.gpus
    # Pinned to the nodes that were chosen for it: Ray would spread shares of GPUs over many cards.
    nodes = [{"ray.io/node-id": allocation.node} for allocation in allocations]
    group = placement_group([dict(bundle) for _ in allocations], strategy="PACK", bundle_label_selector=nodes)
    actor = ray.remote(RankHost)
    hosts = [
        actor.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            max_concurrency=3,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote()
        for rank in range(resources.ranks)
    ]
    return Group(group=group, hosts=hosts, resources=resources, allocations=allocations)


def release(group: Group) -> None:
    """Kill the actors of a group and give its resources back to Ray."""
    for host in group.hosts:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(host)
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        remove_placement_group(group.group)
