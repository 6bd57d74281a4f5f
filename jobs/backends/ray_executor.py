"""Start runs on Ray: a placement group for each run, and in each of its bundles an actor that runs one rank's process.

Calls to actors return references at once. ``poll`` and ``wait`` collect the answers that have arrived.
"""

import contextlib
import functools
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs import terminal
from jobs.attempt.supervisor import Ended, first_cause
from jobs.backends.base import Executor
from jobs.backends.cards import Cards
from jobs.backends.local import cards_of, least_gpus, left_by_others, this_machine
from jobs.backends.ray_cluster import RayCluster
from jobs.backends.ray_growth import Bundle, Largest, bundles
from jobs.backends.ray_rank import RankHost
from jobs.backends.ray_turns import Turns
from jobs.plan.capacity import Allocation, Capacity, with_noun
from jobs.spec import Submission
from jobs.study.folder import study_name
from jobs.study.kept_code import Code
from seqlm.errors import EXIT_LOST, EXIT_STOPPED, BackendError, LostBackendError
from seqlm.gpus import TakenError
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory

REFRESH_SECONDS = 2.0
"""Time between two queries of the cluster for its nodes and for what other users hold."""
REQUEST_SECONDS = 30.0
"""Time after which an autoscaler is asked again: a request of another launch replaces that of this one."""
PATIENCE_SECONDS = 5.0
"""How long Ray may take to place a run that should fit, before no further run is submitted."""
AVOID_SECONDS = 600.0
"""How long no run is submitted to a node that does not see the runs folder."""
IDLE_SECONDS = 5.0
"""How long the group and actors of a run that has ended wait for one of the same resources: new ones take a second."""

MOST_STARTS = 4
"""How often a launch starts Ray on this machine, if that ends before the launch."""
SAVE_SECONDS = 20.0
"""How long runs have to save and stop after an embedded Ray has lost its head. Its workers end after a minute."""


@dataclass(kw_only=True, eq=False)
class _Group:
    """A placement group. One that is idle may be used by a run of as many ranks, or with others by a larger one."""

    group: PlacementGroup
    hosts: list[Any]
    """The actor of each rank."""
    allocations: list[Allocation]
    """Where each rank is, and what it holds. Its GPU is a guess until the actor has said which one Ray has chosen."""
    needs: Resources
    """What Ray has booked for each rank."""
    cards: dict[Any, int] = field(default_factory=dict)
    """Outstanding answers about the GPUs, which come once an actor has started: object reference -> rank."""
    idle_since: float = 0.0
    taken: str | None = None
    """Who has the GPU that Ray has given one of its actors. The group keeps it, so that Ray gives others another one.
    ``None``: nobody is known to have it."""
    asked: list[Any] = field(default_factory=list)
    """Outstanding answers of its actors whether that is still so."""


@dataclass(kw_only=True)
class _Job:
    submission: Submission
    groups: list[_Group] = field(default_factory=list)
    """Where its ranks are: one new group, or some that others have left."""
    pending: dict[Any, int] = field(default_factory=dict)
    """Outstanding answers: object reference -> rank."""
    since: float = 0.0
    is_placed: bool = False
    """Whether Ray was seen to have found room for its group. Groups that others have left have room."""
    is_stopped: bool = False
    leaves_for: str = ""
    """Why it was asked to stop and be started again. Empty: it was not."""
    ends: list[Ended] = field(default_factory=list)
    """How its ranks ended, the first one first."""

    @property
    def hosts(self) -> list[Any]:
        return [host for group in self.groups for host in group.hosts]

    @property
    def allocations(self) -> list[Allocation]:
        return [allocation for group in self.groups for allocation in group.allocations]

    @property
    def attempt(self) -> Path:
        return RunDirectory(self.submission.run_dir).attempt_dir(self.submission.attempt)

    @property
    def waits_long(self) -> bool:
        return not self.is_placed and time.monotonic() - self.since > PATIENCE_SECONDS


@final
class RayExecutor(Executor):
    """Placement groups on a Ray cluster, or on an embedded Ray that lives as long as the executor is open."""

    name = "ray"

    def __init__(
        self,
        *,
        address: str | None = None,
        asks_memory: bool = False,
        largest: Largest | None = None,
        study_dir: Path | None = None,
        leave: int = 0,
    ) -> None:
        """``asks_memory``: whether runs ask for the memory of a GPU. ``largest``: what an autoscaler may add.

        ``leave``: how many GPUs are left to other launches.
        """
        self._cluster = RayCluster(address, asks_memory=asks_memory, largest=largest)
        self._study_dir = study_dir or Path.cwd()
        self._leave = leave
        self._here: Cards | None = None
        """The GPUs of this machine, if Ray is embedded and there are any: this launcher chooses among them, not Ray."""
        self._turns: Turns | None = None
        """The launches on the cluster. ``None``: Ray is embedded, and the launches of this machine have the ledger."""
        self._largest = largest
        self._requested: list[Bundle] = []
        """What the autoscaler was asked for last."""
        self._requested_at = -math.inf
        self._thought_of_room_at = -math.inf
        self._code: Code | None = None
        self._total: Capacity | None = None
        self._refreshed_at = -math.inf
        self._foreign: dict[str, tuple[float, float]] = {}
        """Node -> cores and GPUs that other users hold."""
        self._jobs: dict[str, _Job] = {}
        self._idle: list[_Group] = []
        """Groups of runs that have ended, which wait for another run."""
        self._cards: defaultdict[str, dict[str, str]] = defaultdict(dict)
        """Node -> Ray's name of a GPU -> its name in the capacity, for the GPUs that actors have named."""
        self._draining: set[str] = set()
        """Nodes that are to be shut down."""
        self._avoided: dict[str, float] = {}
        """Node -> until when no run is submitted there, on the monotonic clock."""
        self._numbers = itertools.count(1)
        self._starts = 0
        """How often Ray was started on this machine."""
        self._is_lost = False
        """Whether Ray is not asked any more: the head of the cluster does not answer, or an embedded Ray has ended."""

    def capacity(self) -> Capacity:
        """Return everything that the cluster has, as if nothing ran."""
        if self._total is None:
            self._total = self._query()
        return self._total.copy()

    def _query(self) -> Capacity:
        """Return what Ray has now. An embedded one knows of no GPU, since this launcher books those of this machine."""
        found = self._cluster.capacity()
        if self._cluster.is_embedded:
            (here,) = this_machine().nodes.values()
            for node in found.nodes.values():
                node.gpus, node.cards = here.gpus, here.cards
        return found

    def open(self, code: Code) -> None:
        self._code = code
        self._join()

    def _join(self) -> None:
        """Join or start Ray with the code of this launch."""
        assert self._code is not None, "open before anything joins"
        terminal.tell_progress(
            "starting Ray on this machine" if self._cluster.is_embedded else "joining the Ray cluster"
        )
        self._cluster.open(self._code)
        self._starts += 1
        self._is_lost, self._total, self._refreshed_at = False, None, -math.inf
        if not self._cluster.is_embedded:
            self._turns = Turns(study_name(self._study_dir), self._cluster.ask)
        elif self._here is None and (here := cards_of(this_machine(), self._study_dir, self._leave)) is not None:
            here.announce()
            self._here = here
        self._refresh_if_due()

    def close(self) -> None:
        self._request([])
        self._jobs.clear()
        self._idle.clear()
        if self._here is not None:
            self._here.close()
            self._here = None
        self._turns = None
        self._cluster.close()

    # -- what is free ----------------------------------------------------------------------------------------------

    def free(self) -> Capacity:
        self._refresh_if_due()
        free = self._unbooked()
        for job in self._jobs.values():
            for allocation in job.allocations if job.waits_long else ():
                free.withhold(allocation.node, math.inf, math.inf)
        return free

    def _unbooked(self, total: Capacity | None = None, *, but: _Job | None = None) -> Capacity:
        """Return what no run of this launch, ``but`` for one, and no other user holds, also while a run waits long.

        ``total``: of what. ``None``: of what the cluster has.
        """
        free, now = total or self.capacity(), time.monotonic()
        for job in self._jobs.values():
            if job is not but:
                free.take(job.allocations)
        if self._here is not None and free.nodes:
            left_by_others(free, self._here)
        taken = [group for group in self._idle if group.taken is not None]
        for group in taken:
            free.take(group.allocations)
        for node in free.nodes:
            is_out = node in self._draining or self._avoided.get(node, 0.0) > now
            free.withhold(node, *((math.inf, math.inf) if is_out else self._foreign.get(node, (0.0, 0.0))))
        why = [group.taken for group in taken if group.taken is not None]
        if self._turns is not None:
            why += self._withhold_for_others(free, self._turns)
        free.why_taken = free.why_taken or ", ".join(dict.fromkeys(why))
        return free

    def _own(self) -> Capacity:
        """Return what the runs of this launch leave of everything."""
        own = self.capacity()
        for job in self._jobs.values():
            own.take(job.allocations)
        return own

    def _holds(self) -> dict[str, float]:
        """Return the GPUs and cores that runs of this launch hold."""
        allocations = [one for job in self._jobs.values() for one in job.allocations]
        return {"gpus": sum(one.gpus for one in allocations), "cpus": sum(one.cpus for one in allocations)}

    def _withhold_for_others(self, free: Capacity, turns: Turns) -> list[str]:
        """Take from ``free`` what this launch leaves to others on the cluster, and return why."""
        why, holds, total = list[str](), self._holds(), self.capacity()
        excess = free.gpus - max(0.0, total.gpus - self._leave - holds["gpus"])
        if self._leave and excess > 0:
            why.append(f"leave_gpus = {self._leave}")
            for node in free.nodes.values():
                taken = min(node.free_gpus, excess)
                free.withhold(node.name, 0.0, taken)
                excess -= taken
        if (first := turns.first_in_line(holds, total)) is not None:
            holder, unit, nodes = first
            why.append(f"it is the turn of {holder}")
            for name in nodes:
                free.withhold(name, math.inf if unit == "cpus" else 0.0, math.inf)
            self._end_idle(0.0)
        return why

    def waits(self, wanted: Sequence[Resources]) -> None:
        own = self._own()
        if not own.nodes:
            return
        if self._here is not None:
            self._here.waits(*least_gpus(own, wanted, self._leave))
        elif self._turns is not None:
            amounts, where = list[tuple[float, float]](), set[str]()
            for resources in wanted:
                if (place := own.place(resources)) is not None:
                    amounts.append((sum(one.gpus for one in place), sum(one.cpus for one in place)))
                    has_it = (name for name, node in own.nodes.items() if not resources.gpus or node.shares(resources))
                    where.update(has_it)
            least = min(amounts, default=None)
            self._turns.waits(None if least is None else {"gpus": least[0], "cpus": least[1]}, where)

    def ask_for_room(self, waiting: Sequence[Resources]) -> None:
        if self._largest is None or time.monotonic() - self._thought_of_room_at <= REFRESH_SECONDS:
            return
        self._thought_of_room_at = time.monotonic()
        room = self._unbooked(self._largest.grown(self.capacity()))
        held = [allocation for job in self._jobs.values() for allocation in job.allocations]
        self._request(bundles(waiting, room, held, self._foreign))

    def _request(self, wanted: list[Bundle]) -> None:
        """Ask the autoscaler for a cluster of this size, unless it was asked a moment ago. Empty: withdraw that."""
        is_as_before = wanted == self._requested
        if is_as_before and (not wanted or time.monotonic() - self._requested_at <= REQUEST_SECONDS):
            return
        try:
            self._cluster.request(wanted)
        except (ray.exceptions.RayError, LostBackendError) as error:  # asked again at the next look
            terminal.detail(f"the autoscaler cannot be asked for nodes: {error}")
            return
        self._requested, self._requested_at = wanted, time.monotonic()

    def _refresh_if_due(self) -> None:
        """Query the cluster, unless it was queried recently. Start an embedded Ray again that has ended.

        Raises:
            LostBackendError: the head of the cluster does not answer any more. Runs can still be stopped.
            BackendError: the embedded Ray has ended, and cannot be started again.
        """
        if self._is_lost or time.monotonic() - self._refreshed_at <= REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        try:
            self._refresh()
        except LostBackendError as error:
            if not self._cluster.is_embedded:
                self._is_lost = True
                problem = f"{error}; `run` continues from the checkpoints once `ray status` shows that it is up"
                raise LostBackendError(problem) from None
            self._start_again(str(error))

    def _refresh(self) -> None:
        """Query the nodes of the cluster, and what other users hold of them. Look after runs that wait for Ray."""
        self._total = self._query()
        if self._turns is not None:
            self._turns.exchange(self._holds())
        self._look_at_taken()
        free, others = self._cluster.free(self._total), self._total.copy()
        live = [job for job in self._jobs.values() if job.pending]
        for job in live:
            if self._has_room(job):
                others.take(job.allocations)
        for group in self._idle:
            others.take(group.allocations)
        if not self._cluster.is_embedded:
            self._draining = self._cluster.draining()
            self._foreign = {
                name: (node.cpus - free.nodes[name].cpus, node.free_gpus - free.nodes[name].free_gpus)
                for name, node in others.nodes.items()
            }
        for job in live:
            if self._is_gone(job):
                self._release(job.groups)  # Ray would wait for a lost node forever
            elif not job.is_placed and (job.waits_long or self._is_draining(job)):
                self._place_elsewhere(job)
            elif job.is_placed and not job.leaves_for and (node := self._is_draining(job)):
                job.leaves_for = f"node {self._cluster.address_of(node)} is being drained"
                for host in job.hosts:
                    host.stop.remote(job.attempt)
        self._drop([group for group in self._idle if self._is_draining(group)])

    def _place_elsewhere(self, job: _Job) -> None:
        """Start a run on other nodes, if Ray has no room for it where it was sent: another user took that first."""
        free = self._unbooked(but=job)
        allocations = free.place(job.submission.resources)
        if allocations is not None and {one.node for one in allocations} != {one.node for one in job.allocations}:
            self._release(job.groups)
            self._start(job, allocations)

    def _start_again(self, problem: str) -> None:
        """End what is left of the embedded Ray, and start another one. Its runs have ended then.

        Raises:
            BackendError: it cannot be started, or has ended too often.
        """
        terminal.tell(f"warning: {problem}; its runs continue from their checkpoints")
        running = [job for job in self._jobs.values() if job.pending]
        for job in running:
            job.leaves_for = problem
            for host in job.hosts:  # those that live need no head to be asked
                host.stop.remote(job.attempt)
        deadline = time.monotonic() + SAVE_SECONDS
        while (left := deadline - time.monotonic()) > 0 and any(job.pending for job in running):
            self._advance(left)
        for job in running:
            if job.pending:
                job.ends.append(Ended(exit_code=EXIT_LOST, message=problem, is_lost=True))
        for job in self._jobs.values():  # references and actors of the Ray that has ended
            job.pending, job.groups = {}, []
        self._idle.clear()
        self._is_lost = True
        self._cluster.close()
        if self._starts == MOST_STARTS:
            raise BackendError(
                f"{problem}, for the {MOST_STARTS}th time in this launch; `dmesg` shows whether the system killed it; "
                "--backend local does without"
            )
        self._join()

    def _has_room(self, job: _Job) -> bool:
        """Return whether Ray has found room for a run, as far as is known."""
        if not job.is_placed:
            with contextlib.suppress(LostBackendError):
                found = self._cluster.ask(functools.partial(placement_group_table, job.groups[0].group))
                job.is_placed = found["state"] == "CREATED"
        return job.is_placed

    def _is_draining(self, holder: _Job | _Group) -> str | None:
        """Return a node of a run or group that is to be shut down. ``None``: none is."""
        return next((one.node for one in holder.allocations if one.node in self._draining), None)

    def _is_gone(self, holder: _Job | _Group) -> bool:
        return any(one.node not in self.capacity().nodes for one in holder.allocations)

    # -- a run -----------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> str:
        # Not by free(): a run may have begun to wait long since the caller asked whether there is room.
        free = self._unbooked()
        allocations = free.place(submission.resources)
        if allocations is None:
            raise TakenError(free.why_not(submission.resources))
        groups = self._take_idle(submission.resources, allocations)
        job = _Job(submission=submission, groups=groups, is_placed=bool(groups))
        if groups:
            self._run(job)
        else:
            self._end_idle(0.0)
            try:
                self._start(job, allocations)
            except LostBackendError as error:
                self._refreshed_at = -math.inf  # free() and wait() say what becomes of the launch
                job.ends.append(Ended(exit_code=EXIT_LOST, message=str(error), is_lost=True))
        job_id = f"{submission.run_dir.name}/{submission.attempt}-{next(self._numbers)}"
        self._jobs[job_id] = job
        self._has_changed()
        return job_id

    def _has_changed(self) -> None:
        """Tell other launches that this one has taken or given back something."""
        if self._here is not None:
            self._here.has_changed()
        if self._turns is not None:
            self._turns.has_changed()

    def _take_idle(self, resources: Resources, wanted: Sequence[Allocation]) -> list[_Group]:
        """Return idle groups that together have the ranks of a run, on no more nodes than wanted. Empty: none have."""
        found, left = list[_Group](), resources.ranks
        for group in sorted(self._idle, key=lambda group: len(group.hosts), reverse=True):
            if (
                group.taken is None
                and group.needs == self._needs(resources)
                and len(group.hosts) <= left
                and not self._is_gone(group)
                and not self._is_draining(group)
            ):
                found.append(group)
                left -= len(group.hosts)
        nodes = {one.node for group in found for one in group.allocations}
        if left or len(nodes) > len({one.node for one in wanted}):
            return []
        self._idle = [group for group in self._idle if group not in found]
        if self._cluster.is_embedded:
            places = iter(wanted)  # Ray knows of no GPU: any actor runs a rank on the one that was chosen
            for group in found:
                group.allocations = [next(places) for _ in group.hosts]
        return found

    def _needs(self, resources: Resources) -> Resources:
        """Return what Ray books for a single rank of a run, whatever its run is."""
        if self._cluster.is_embedded:
            return Resources(cpus=resources.cpus, gpus=0)
        return replace(resources, ranks=1, priority=0)

    def _start(self, job: _Job, allocations: list[Allocation]) -> None:
        """Ask Ray for a group on the nodes that were chosen. Ray itself would spread shares of GPUs over many cards.

        Raises:
            LostBackendError: Ray does not answer any more.
        """
        gpus = 0.0 if self._cluster.is_embedded else allocations[0].gpus
        bundle = {"CPU": allocations[0].cpus, **({"GPU": gpus} if gpus else {})}
        nodes = [{"ray.io/node-id": one.node} for one in allocations]

        def create() -> tuple[PlacementGroup, list[Any]]:
            group = placement_group([dict(bundle) for _ in nodes], strategy="PACK", bundle_label_selector=nodes)
            actor: Any = ray.remote(RankHost)
            hosts = []
            for rank in range(len(nodes)):
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                options = {"num_cpus": bundle["CPU"], "num_gpus": gpus, "scheduling_strategy": place}
                hosts.append(actor.options(max_concurrency=3, **options).remote())
            return group, hosts

        group, hosts = self._cluster.ask(create)
        made = _Group(group=group, hosts=hosts, allocations=allocations, needs=self._needs(job.submission.resources))
        made.cards = {host.gpu.remote(): rank for rank, host in enumerate(hosts)}
        job.groups, job.is_placed = [made], False
        self._run(job)

    def _run(self, job: _Job) -> None:
        """Have the actors run their ranks once they are placed."""
        assert self._code is not None, "open before anything is submitted"
        # Ray unpacks the kept code where the actors of a cluster run.
        is_kept_here = self._cluster.is_embedded or self._code.live
        job.since, first_host = time.monotonic(), self._cluster.address_of(job.allocations[0].node)
        job.pending = {
            host.run.remote(
                job.submission.holding(allocation.gpus),
                rank,
                node=allocation.node,
                first_host=first_host,
                kept_code=job.submission.cwd if is_kept_here else None,
                device=allocation.device if self._cluster.is_embedded else None,
                holder={"study": study_name(self._study_dir)} if self._here is None else self._here.holder,
            ): rank
            for rank, (host, allocation) in enumerate(zip(job.hosts, job.allocations, strict=True))
        }

    def poll(self, job_id: str) -> Ended | None:
        job = self._jobs[job_id]
        if job.pending:
            return None
        del self._jobs[job_id]
        self._has_changed()
        cause = first_cause(job.ends)
        if cause.taken is not None and not job.is_stopped and not self._is_draining(job):
            self._keep_taken(job, cause.taken)
        elif any(end.is_lost for end in job.ends) or job.is_stopped or self._is_draining(job):
            self._release(job.groups)
        else:
            for group in job.groups:
                group.idle_since = time.monotonic()
            self._idle += job.groups
        return replace(cause, stopped_for=job.leaves_for)

    def _keep_taken(self, job: _Job, taken: str) -> None:
        """Keep the groups of a run whose GPU somebody else has, until they have it no more."""
        for group in job.groups:
            group.idle_since = time.monotonic()
            group.taken = None if self._cluster.is_embedded else taken
        self._idle += job.groups

    def _look_at_taken(self) -> None:
        """Ask the actors whose GPU somebody else has whether that is still so, and take the answers that are there."""
        for group in [one for one in self._idle if one.taken is not None]:
            if not group.asked:
                group.asked = [host.who_has.remote(group.allocations[0].gpus) for host in group.hosts]
                continue
            arrived, left = ray.wait(group.asked, num_returns=len(group.asked), timeout=0)
            if left:
                continue
            group.asked = []
            try:
                answers = ray.get(arrived)
            except ray.exceptions.RayError:  # it has lost an actor
                self._drop([group])
                continue
            group.taken = next((answer for answer in answers if answer is not None), None)
            group.idle_since = time.monotonic()

    def why_waits(self, job_id: str) -> str:
        job = self._jobs[job_id]
        if job.is_placed or not job.pending or not job.waits_long:
            return ""
        wanted, free = job.submission.resources, self._unbooked(but=job)
        if free.place(wanted) is None:
            return free.why_not(wanted)
        needs = f"{with_noun(wanted.gpus or 0, 'GPU')} and {with_noun(wanted.cpus or 1, 'core')} of a node"
        each = f" for each of {wanted.ranks} ranks" if wanted.ranks > 1 else ""
        return f"Ray has found no room yet for {needs}{each}; others may hold shares of all cards"

    def stop(self, job_id: str, *, force: bool) -> None:
        job = self._jobs.get(job_id)
        if job is None or not job.pending:
            return
        job.is_stopped = not force
        if self._is_lost:
            self._advance(0.0)  # the answers of its actors, which need no head
            if force or not job.is_placed:
                job.pending = {}
                job.ends.append(Ended(exit_code=EXIT_LOST, message="Ray does not answer any more", is_lost=True))
        elif force or not self._has_room(job):
            self._release(job.groups)
            return
        for host in job.hosts:
            host.stop.remote(job.attempt)

    def _release(self, groups: Sequence[_Group]) -> None:
        """Kill the actors of groups and give the resources back to Ray. Ray answers what they still owe with errors."""

        def release() -> None:
            for group in groups:
                for host in group.hosts:
                    with contextlib.suppress(ray.exceptions.RayError, ValueError):
                        ray.kill(host)
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    remove_placement_group(group.group)

        if groups:
            with contextlib.suppress(LostBackendError):  # they end with the Ray that is lost
                self._cluster.ask(release)

    def _end_idle(self, seconds: float) -> None:
        """Release the groups that have waited longer than ``seconds``."""
        now = time.monotonic()
        self._drop([group for group in self._idle if group.taken is None and now - group.idle_since > seconds])

    def _drop(self, groups: Sequence[_Group]) -> None:
        """Release idle groups."""
        self._release(groups)
        self._idle = [group for group in self._idle if group not in groups]

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._refresh_if_due()
        # What waits for Ray may wait for a card of which an idle group holds a share.
        waits = any(job.pending and not job.is_placed for job in self._jobs.values())
        self._end_idle(0.0 if waits else IDLE_SECONDS)
        while not self._advance(max(0.0, left := deadline - time.monotonic())) and left > 0:
            if not any(job.pending for job in self._jobs.values()):
                time.sleep(min(left, seconds))

    # -- answers of the actors ---------------------------------------------------------------------------------------

    def _advance(self, seconds: float) -> bool:
        """Take the answers that have arrived, waiting at most so long for one. Return whether a job has ended."""
        owed = {reference: job for job in self._jobs.values() for reference in job.pending}
        if not owed:
            return False
        cards = {
            reference: (job, group) for job in self._jobs.values() for group in job.groups for reference in group.cards
        }
        asked = [*cards, *owed]
        arrived, _ = ray.wait(asked, num_returns=1, timeout=seconds)
        if arrived:  # and all others that are there by now
            arrived, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        for reference in arrived:
            if reference in cards:
                self._note_card(*cards[reference], reference)
            else:
                self._take(owed[reference], reference)
        return any(not job.pending for job in self._jobs.values())

    def _note_card(self, job: _Job, group: _Group, reference: Any) -> None:
        """Note which GPU Ray has chosen for a rank, so that the shares that are free of each card are known."""
        rank = group.cards.pop(reference)
        with contextlib.suppress(ray.exceptions.RayError):  # the end of the rank says what happened
            card, held = ray.get(reference), group.allocations[rank]
            job.is_placed = True
            if card is None or held.device is None:
                return
            known = self._cards[held.node]
            if card not in known:
                node = self.capacity().nodes.get(held.node)
                unnamed = [device for device in (node.gpus if node else ()) if device not in known.values()]
                known[card] = held.device if held.device in unnamed or not unnamed else unnamed[0]
            group.allocations[rank] = replace(held, device=known[card])

    def _take(self, job: _Job, reference: Any) -> None:
        rank = job.pending.pop(reference)
        try:
            end = ray.get(reference)
        except ray.exceptions.RayError as error:
            end = self._what_became_of(job, rank, error)
        node = job.allocations[rank].node
        start = RunDirectory(job.submission.run_dir).start_file(job.submission.attempt)
        problem = f"node {self._cluster.address_of(node)} does not see {start}" if end is None else ""
        hint = "is its file system mounted, or has the node a copy of the folder?"
        lost = Ended(exit_code=EXIT_LOST, message=f"{problem}; {hint}", is_lost=True)
        job.ends.append(end or lost)
        if job.ends[-1].exit_code:
            for other in job.pending.values():
                job.hosts[other].peer_failed.remote(job.attempt)
        if problem:
            self._avoid(node, job.submission, problem)

    def _avoid(self, node: str, submission: Submission, problem: str) -> None:
        """Submit no run for a while to a node that does not see the folder of one.

        Raises:
            BackendError: no node is left to try.
        """
        self._end_idle(0.0)
        now, left = time.monotonic(), self.capacity()
        self._avoided = {node: now + AVOID_SECONDS, **{one: end for one, end in self._avoided.items() if end > now}}
        for avoided in self._avoided:
            left.withhold(avoided, math.inf, math.inf)
        if left.place(replace(submission.resources, ranks=1)) is None:
            raise BackendError(f"{problem}; put --runs-dir on a file system that all nodes of the cluster share")

    def _what_became_of(self, job: _Job, rank: int, error: Exception) -> Ended:
        """Return the end of a rank whose actor is gone."""
        if job.is_stopped:
            return Ended(exit_code=EXIT_STOPPED, message="stopped")
        who = f"rank {rank}" if len(job.hosts) > 1 else "the worker"
        node = job.allocations[rank].node
        try:
            self._total = self._query()
        except LostBackendError as lost:
            self._refreshed_at = -math.inf  # look at once what becomes of the launch
            return Ended(exit_code=EXIT_LOST, message=f"{who} lost its actor: {lost}", is_lost=True, first_rank=rank)
        if node not in self._total.nodes:
            message = f"{who} lost its node {self._cluster.address_of(node)}"
            return Ended(exit_code=EXIT_LOST, message=message, is_lost=True, first_rank=rank)
        reason = str(error).strip().splitlines()[-1] if self._cluster.is_embedded else "see Ray's logs"
        if isinstance(error, ray.exceptions.OutOfMemoryError):  # of all programs on the node, not of this run
            reason = f"the memory of node {self._cluster.address_of(node)} is used up"
        return Ended(
            exit_code=EXIT_LOST,
            message=f"{who} lost its actor ({type(error).__name__}): {reason}",
            is_lost=True,
            first_rank=rank,
        )
