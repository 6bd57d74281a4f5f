"""Start runs on Ray: a placement group for each run, and in each of its bundles an actor that runs one rank's process.

Calls to actors return references at once. ``poll`` and ``wait`` collect the answers that have arrived.

    submit   idle groups, or a new one         -> ask the actors for their locations
             all ranks have a RankLocation     -> the ranks meet at the address of rank 0; start the processes
    poll     all processes have ended          -> Ended; the groups are idle (jobs.backends.ray_groups)
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, final

import ray

from jobs import terminal
from jobs.attempt.memory_kills import MemoryKills
from jobs.attempt.supervisor import Ended, PeerGrace, ended, rank_variables
from jobs.backends.base import Executor
from jobs.backends.ray_cluster import RayCluster, node_address
from jobs.backends.ray_groups import IDLE_SECONDS, Group, RankLocation, new_group, release
from jobs.plan.capacity import Allocation, Capacity
from jobs.spec import Submission
from jobs.study.kept_code import Code
from seqlm.errors import EXIT_FAILED, EXIT_LOST, EXIT_STOPPED, BackendError
from seqlm.files import make_directory
from seqlm.rundir import RunDirectory

REFRESH_SECONDS = 2.0
"""Time between two queries of the cluster for its nodes and for what other users hold."""
PATIENCE_SECONDS = 5.0
"""How long Ray may take to place a run that should fit, before no further run is submitted."""
AVOID_SECONDS = 600.0
"""How long no run is submitted to a node that does not see the runs folder, or does not answer."""
START_SECONDS = 600.0
"""How long the actors of a placed run may take to answer: their node unpacks the code and starts Python."""


@dataclass(kw_only=True)
class _Job:
    submission: Submission
    group: Group
    pending: dict[Any, int]
    """Outstanding answers: object reference -> rank. First the ranks' locations, then their exit codes."""
    since: float
    locations: dict[int, RankLocation] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    left_behind: set[int] = field(default_factory=set)
    """Ranks that were killed here, since they had not noticed that another one failed."""
    out_of_memory: set[int] = field(default_factory=set)
    """Ranks that their node killed because it was out of memory."""
    runs: bool = False
    """Whether the processes have been started."""
    placed_at: float | None = None
    """When Ray was first seen to have placed it while its actors did not answer, on the monotonic clock."""
    grace: PeerGrace = field(default_factory=PeerGrace)

    @property
    def hosts(self) -> list[Any]:
        return self.group.hosts

    @property
    def allocations(self) -> list[Allocation]:
        return self.group.allocations


@final
class RayExecutor(Executor):
    """Placement groups on a Ray cluster, or on an embedded Ray that lives as long as the executor is open."""

    name = "ray"

    def __init__(self, *, address: str | None = None) -> None:
        self._cluster = RayCluster(address)
        self._code: Code | None = None
        self._total: Capacity | None = None
        self._refreshed_at = 0.0
        self._foreign: dict[str, tuple[float, float]] = {}
        self._foreign_before: dict[str, tuple[float, float]] | None = None
        self._cards: defaultdict[str, dict[str, str]] = defaultdict(dict)
        """Node -> Ray's name of a GPU -> its name in the capacity, which counts the node's GPUs from 0."""
        self._jobs: dict[str, _Job] = {}
        self._idle: list[Group] = []
        """Groups that no run holds."""
        self._avoided: dict[str, float] = {}
        """Node -> until when no run is submitted there, on the monotonic clock."""
        self._is_seen = False
        """Whether a node has seen the folder of a run."""
        self._numbers = itertools.count(1)
        self._memory_kills = MemoryKills()

    def capacity(self) -> Capacity:
        """Return everything that the cluster has, as if nothing ran."""
        if self._total is None:
            self._total = self._cluster.capacity()
        return self._total.copy()

    def open(self, code: Code) -> None:
        self._code = code
        terminal.tell("starting Ray on this machine" if self._cluster.is_embedded else "joining the Ray cluster")
        self._cluster.open(code)
        self._refresh()

    def close(self) -> None:
        self._jobs.clear()
        self._idle.clear()
        self._cluster.close()

    # -- what is free ----------------------------------------------------------------------------------------------

    def free(self) -> Capacity:
        self._refresh_if_due()
        free = self.capacity()
        for job in self._jobs.values():
            free.take(job.allocations)
        stuck = any(_waits_long(job) and not job.locations for job in self._jobs.values())
        now = time.monotonic()
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        for node in free.nodes:
            is_out = stuck or node in self._avoided
            free.withhold(node, *((math.inf, math.inf) if is_out else self._foreign.get(node, (0.0, 0.0))))
        return free

    def _refresh_if_due(self) -> None:
        if time.monotonic() - self._refreshed_at > REFRESH_SECONDS:
            self._refresh()

    def _refresh(self) -> None:
        """Query the nodes of the cluster, and what other users hold of them."""
        self._refreshed_at = time.monotonic()
        self._total = total = self._cluster.capacity()
        others = total.copy()
        for group in (*(job.group for job in self._jobs.values()), *self._idle):
            others.take(group.allocations)
        free = self._cluster.free(total)
        foreign = {
            name: (node.cpus - free.nodes[name].cpus, node.free_gpus - free.nodes[name].free_gpus)
            for name, node in others.nodes.items()
        }
        # Resources that were just released are not free yet: only those missing twice in a row are held by others.
        before = foreign if self._foreign_before is None else self._foreign_before
        self._foreign = {
            name: (min(cpus, before[name][0]), min(gpus, before[name][1]))
            for name, (cpus, gpus) in foreign.items()
            if name in before
        }
        self._foreign_before = foreign
        self._release(*filter(self._is_lost, self._idle))
        for job in self._jobs.values():
            if job.runs or not job.pending:
                continue
            if self._is_lost(job.group):  # Ray would wait for the node forever
                self._abandon(job, EXIT_LOST, "its node was lost before it had started")
            elif _waits_long(job):
                self._look_after(job, free)

    def _look_after(self, job: _Job, free: Capacity) -> None:
        """Move a run that Ray keeps waiting to where there is room, or give it up. ``free``: what nobody holds."""
        now = time.monotonic()
        if job.group.is_placed:
            job.placed_at = job.placed_at or now
            if now - job.placed_at > START_SECONDS:
                where = ", ".join({node_address(allocation.node): None for allocation in job.allocations})
                self._avoided |= {allocation.node: now + AVOID_SECONDS for allocation in job.allocations}
                self._abandon(job, EXIT_LOST, f"Ray did not start it within {START_SECONDS / 60:g} min on {where}")
            return
        # Another user took the node first.
        allocations = free.place(job.submission.resources)
        if allocations is not None:
            free.take(allocations)
            self._release(job.group)
            job.group = new_group(job.submission.resources, allocations)
            self._look_around(job)

    def _is_lost(self, group: Group) -> bool:
        assert self._total is not None, "refreshed before"
        return any(allocation.node not in self._total.nodes for allocation in group.allocations)

    # -- a run -----------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> str | None:
        run = RunDirectory(submission.run_dir)
        resources = submission.resources
        allocations = self.free().place(resources)
        if allocations is None:  # a node was lost since, or another user has taken it
            return None
        make_directory(run.attempt_dir(submission.attempt))
        group = next((group for group in self._idle if group.fits(resources)), None)
        if group is not None:
            self._idle.remove(group)
        else:
            self._release(*self._idle)
            group = new_group(resources, allocations)
        job = _Job(submission=submission, group=group, pending={}, since=0.0)
        self._look_around(job)
        job_id = f"{run.id}/{submission.attempt}-{next(self._numbers)}"
        self._jobs[job_id] = job
        return job_id

    @staticmethod
    def _look_around(job: _Job) -> None:
        """Ask each rank's actor for its location. It answers once Ray has placed it."""
        job.since = time.monotonic()
        job.pending = {host.location.remote(str(job.submission.run_dir)): rank for rank, host in enumerate(job.hosts)}

    def poll(self, job_id: str) -> Ended | None:
        job = self._jobs[job_id]
        if job.pending:
            self._end_those_left_behind(job)
            return None
        del self._jobs[job_id]
        if job.lost or job.left_behind:
            self._release(job.group)
        else:
            job.group.idle_since = time.monotonic()
            self._idle.append(job.group)
        return ended(job.codes, len(job.hosts), lost=job.lost, out_of_memory=job.out_of_memory)

    def stop(self, job_id: str, *, force: bool) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        if not job.runs:  # perhaps not even placed
            self._release(job.group)
            self._abandon(job, EXIT_STOPPED, "stopped before it had started")
            return
        for host in job.hosts:
            host.stop.remote(int(signal.SIGKILL if force else signal.SIGTERM))

    def _release(self, *groups: Group) -> None:
        """Release groups, idle or not."""
        self._idle = [group for group in self._idle if group not in groups]
        for group in groups:
            release(group)

    @staticmethod
    def _abandon(job: _Job, code: int, why: str) -> None:
        """End a job that has not started. All its ranks get the exit code ``code``."""
        job.codes = dict.fromkeys(range(len(job.hosts)), code)
        job.lost = {0: why}
        job.pending.clear()

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._refresh_if_due()
        self._release(*(group for group in self._idle if time.monotonic() - group.idle_since > IDLE_SECONDS))
        while not self._advance(max(0.0, left := deadline - time.monotonic())) and left > 0:
            if not any(job.pending for job in self._jobs.values()):
                time.sleep(min(left, seconds))

    # -- answers of the actors ---------------------------------------------------------------------------------------

    def _advance(self, seconds: float) -> bool:
        """Take the answers that have arrived, waiting at most so long for one. Return whether a job has ended."""
        owed = {reference: job for job in self._jobs.values() for reference in job.pending}
        if not owed:
            return False
        arrived, _ = ray.wait(list(owed), num_returns=1, timeout=seconds)
        if arrived:  # and all others that are there by now
            arrived, _ = ray.wait(list(owed), num_returns=len(owed), timeout=0)
        for reference in arrived:
            self._take(owed[reference], reference)
        return any(not job.pending for job in self._jobs.values())

    def _take(self, job: _Job, reference: Any) -> None:
        rank = job.pending.pop(reference, None)
        if rank is None:
            return
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            if rank in job.left_behind:
                job.codes[rank] = EXIT_FAILED
                return
            job.codes[rank] = EXIT_LOST
            if isinstance(error, ray.exceptions.OutOfMemoryError):  # Ray itself kills before the system has to
                job.out_of_memory.add(rank)
            job.lost.setdefault(rank, self._what_became_of(job, rank, error))
            return
        if isinstance(answer, RankLocation):
            self._arrived(job, rank, answer)
            return
        job.codes[rank] = answer.code
        if answer.problem:
            job.lost[rank] = answer.problem
        node = job.locations[rank].node
        if answer.code == -signal.SIGKILL and self._memory_kills.explain_one(node, *answer.memory_kills):
            job.out_of_memory.add(rank)

    def _arrived(self, job: _Job, rank: int, location: RankLocation) -> None:
        job.locations[rank] = location
        allocation = job.allocations[rank]
        device = allocation.device if location.device is None else self._card(location.node, location.device)
        job.allocations[rank] = replace(allocation, node=location.node, device=device)
        if job.pending or job.codes:
            return
        blind = [other for other in job.locations.values() if not other.sees_run]
        self._is_seen = self._is_seen or len(blind) < len(job.locations)
        if blind:
            self._avoid(job, blind)
            return
        self._start(job)

    def _avoid(self, job: _Job, blind: list[RankLocation]) -> None:
        """Give up a run that was placed on nodes that do not see its folder, and submit none there for a while.

        Raises:
            BackendError: no node has ever seen the folder of a run, and none is left to try.
        """
        nodes = {location.node for location in blind}
        self._avoided |= dict.fromkeys(nodes, time.monotonic() + AVOID_SECONDS)
        on_them = (group for group in self._idle if not nodes.isdisjoint(held.node for held in group.allocations))
        self._release(*on_them)
        problem = f"node {blind[0].address} does not see {job.submission.run_dir}"
        self._abandon(job, EXIT_LOST, f"{problem}; is its file system mounted?")
        left = self.capacity()
        for node in self._avoided:
            left.withhold(node, math.inf, math.inf)
        if not self._is_seen and left.place(job.submission.resources) is None:
            raise BackendError(f"{problem}; put --runs-dir on a file system that all nodes of the cluster share")

    def _card(self, node: str, device: str) -> str:
        """Return the GPU of the capacity that stands for the one that Ray names ``device``.

        Ray names GPUs as the CUDA_VISIBLE_DEVICES of the node's raylet does: "2" and "3", or by UUID.
        """
        known = self._cards[node]
        if device not in known and node in self.capacity().nodes:
            known[device] = next(card for card in self.capacity().nodes[node].gpus if card not in known.values())
        return known.get(device, device)

    def _start(self, job: _Job) -> None:
        submission = job.submission
        assert self._code is not None, "open before anything is submitted"
        own_code = not (self._cluster.is_embedded or self._code.live)  # Ray unpacked it where the actors run
        job.runs = True
        for rank, host in enumerate(job.hosts):
            location = job.locations[rank]
            variables = rank_variables(
                submission,
                rank,
                location.device,
                node=location.node,
                first_host=job.locations[0].address,
                interface=location.interface,
            )
            job.pending[host.run.remote(submission, rank, variables, own_code=own_code)] = rank

    def _end_those_left_behind(self, job: _Job) -> None:
        """Kill the ranks that have not noticed in time that another one has failed."""
        has_failed = any(job.codes.values())
        if job.grace.is_over(has_failed=has_failed) or (has_failed and not job.runs):
            for rank in job.pending.values():
                job.left_behind.add(rank)
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(job.hosts[rank])

    def _what_became_of(self, job: _Job, rank: int, error: Exception) -> str:
        who = f"rank {rank}" if len(job.hosts) > 1 else "the worker"
        node = job.allocations[rank].node
        self._refresh()
        if self._total is not None and node not in self._total.nodes:
            return f"{who} lost its node {node_address(node)}"
        reason = str(error).strip().splitlines()[-1] if self._cluster.is_embedded else "see Ray's logs"
        return f"{who} lost its actor ({type(error).__name__}): {reason}"


def _waits_long(job: _Job) -> bool:
    """Whether Ray has not started the actors of all ranks in ``PATIENCE_SECONDS``."""
    return bool(job.pending) and not job.runs and time.monotonic() - job.since > PATIENCE_SECONDS
