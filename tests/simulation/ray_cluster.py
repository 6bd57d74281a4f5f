"""A Ray cluster as the product sees it: nodes, actors and their answers, placement groups, and a head.

``ray`` itself is replaced, and :class:`jobs.backends.ray_cluster.RayCluster`, which is the connection to it. What
starts runs there and looks after them is the product's own: :class:`jobs.backends.ray_executor.RayExecutor`, its turns
and the actor of a rank.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar, final

from jobs.plan.capacity import Capacity, Node
from seqlm.errors import BackendError, LostBackendError
from tests.simulation import seam
from tests.simulation.kernel import Host, Process, Thread

Answer = TypeVar("Answer")

ADDRESS = "head:6379"
LOST_SECONDS = 20.0
"""How long a launcher waits for the head, as :data:`jobs.backends.ray_cluster.LOST_SECONDS`."""
JOIN_SECONDS = (2.0, 4.0)
START_SECONDS = (0.5, 3.0)
"""How long an actor takes to start."""
NOTICE_SECONDS = (1.0, 30.0)
"""How long it takes until an actor that has ended is known to have."""
LEAVE_SECONDS = (0.5, 3.0)
"""How long actors outlive their launcher."""


class RayError(Exception):
    """As ``ray.exceptions.RayError``."""


class ActorDiedError(RayError):
    """The process of an actor has ended."""


@final
@dataclass(eq=False)
class RayNode:
    """A node. One that comes back has another id."""

    id: str
    host: Host
    cpus: float
    is_alive: bool = True
    """Whether it works."""
    is_known_dead: bool = False
    """Whether the head has noticed that it does not."""
    is_draining: bool = False


@final
@dataclass(eq=False)
class Group:
    """A placement group."""

    bundles: list[dict[str, float]]
    nodes: list[RayNode | None]
    """Where each bundle is. ``None``: the node is gone."""
    is_removed: bool = False


@final
@dataclass(eq=False)
class Reference:
    """What a call of an actor is to answer."""

    is_there: bool = False
    value: Any = None
    error: Exception | None = None


@final
@dataclass(eq=False)
class Actor:
    """An actor, and the calls that wait for it."""

    make: Callable[[], Any]
    name: str
    driver: Process
    process: Process | None = None
    object: Any = None
    calls: list[tuple[Reference, str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """Those that are not answered yet."""
    is_over: bool = False


@final
class Ray:
    """The cluster."""

    def __init__(self, world: seam.World, hosts: Iterable[Host], *, cpus: float) -> None:
        self.world, self.kernel = world, world.kernel
        self._numbers = itertools.count(1)
        self.nodes = [RayNode(f"node{next(self._numbers)}", host, cpus) for host in hosts]
        self.groups: list[Group] = []
        self.actors: list[Actor] = []
        self.waiters: list[Thread] = []
        """Who waits for an answer."""
        self.silent_until = 0.0
        """Until when the head answers nothing."""
        self.kernel.on_exit.append(self._look_at_exit)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def node(self, name: str) -> RayNode | None:
        return next((node for node in self.nodes if node.id == name), None)

    def known(self) -> list[RayNode]:
        """Return the nodes that the head takes to be alive."""
        return [node for node in self.nodes if not node.is_known_dead]

    def lose(self, node: RayNode, *, back_after: float) -> None:
        """A node loses power. The head notices later."""
        node.is_alive = False
        self.world.files.lose(node.host)
        for process in list(self.kernel.processes):
            if process.host is node.host and process.lives:
                self.kernel.ends(process, -signal.SIGKILL)
        node.host.boot += 1

        def notice() -> None:
            node.is_known_dead = True

        def back() -> None:
            self.nodes.append(RayNode(f"node{next(self._numbers)}", node.host, node.cpus))
            self.kernel.tell(f"{node.host.name} is back")

        notice_seconds = self.kernel.dice.uniform(*NOTICE_SECONDS)
        self.kernel.after(notice_seconds, notice)
        self.kernel.after(notice_seconds + back_after, back)

    def booked(self, node: RayNode) -> float:
        """Return how many cores of a node groups hold."""
        pairs = (
            pair
            for group in self.groups
            if not group.is_removed
            for pair in zip(group.bundles, group.nodes, strict=True)
        )
        return sum(bundle["CPU"] for bundle, place in pairs if place is node)

    # -- actors ------------------------------------------------------------------------------------------------------

    def start(self, made: Callable[[], Any], name: str, node: RayNode | None, driver: Process) -> Actor:
        """Start an actor on a node. ``None``: it waits for one for ever."""
        actor = Actor(made, name or f"actor-{next(self._numbers)}", driver)
        self.actors.append(actor)
        if node is not None and node.is_alive:

            def run() -> int:
                actor.object = actor.make()
                for call in list(actor.calls):
                    self._answer(actor, *call)
                self.kernel.wait_for(lambda: False, [], None)
                return 0

            with self.kernel.inside():
                env = {key.decode(): value.decode() for key, value in driver.environ.items()}
                output = self.world.files.open_log(f"/sim/ray/{actor.name}.log")
                delay = self.kernel.dice.uniform(*START_SECONDS)
                actor.process = self.kernel.spawn(
                    node.host, ["ray::actor"], run, env=env, output=output, tag=f"ray's {actor.name}", delay=delay
                )
        return actor

    def call(self, actor: Actor, method: str, words: tuple[Any, ...], options: dict[str, Any]) -> Reference:
        reference = Reference()
        actor.calls.append((reference, method, words, options))
        if actor.is_over:
            self._fail(actor)
        elif actor.object is not None:
            self._answer(actor, *actor.calls[-1])
        return reference

    def _answer(
        self, actor: Actor, reference: Reference, method: str, words: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """Have a thread of the actor answer a call."""
        assert actor.process is not None

        def run() -> None:
            try:
                reference.value = getattr(actor.object, method)(*words, **options)
            except Exception as error:
                reference.error = error
            self._arrives(actor, reference)

        self.kernel.start_thread(actor.process, run)

    def _arrives(self, actor: Actor, reference: Reference) -> None:
        reference.is_there = True
        actor.calls = [call for call in actor.calls if call[0] is not reference]
        for thread in self.waiters:
            self.kernel.wake(thread)

    def _fail(self, actor: Actor) -> None:
        """Answer all calls of an actor that has ended with an error."""
        actor.is_over = True
        for reference, *_ in list(actor.calls):
            reference.error = ActorDiedError(f"{actor.name} has ended")
            self._arrives(actor, reference)

    def kill(self, actor: Actor) -> None:
        if actor.process is not None:
            self.kernel.ends(actor.process, -signal.SIGKILL)
        self._fail(actor)

    def _look_at_exit(self, process: Process) -> None:
        for actor in self.actors:
            if actor.process is process:
                seconds = self.kernel.dice.uniform(*NOTICE_SECONDS)
                self.kernel.after(seconds, lambda actor=actor: self._fail(actor))
            if actor.driver is process:
                seconds = self.kernel.dice.uniform(*LEAVE_SECONDS)
                self.kernel.after(seconds, lambda actor=actor: self.kill(actor))


def here() -> tuple[Ray, Process]:
    """Return the cluster, and the process that calls."""
    world = seam.world
    assert world is not None
    assert world.kernel.current is not None
    cluster: Ray = world.ray
    return cluster, world.kernel.current.process


@final
class Handle:
    """What a launcher has of an actor."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def __getattr__(self, method: str) -> Any:
        def remote(*words: Any, **options: Any) -> Reference:
            cluster, _ = here()
            cluster.kernel.step(f"ray call {method}")
            return cluster.call(self.actor, method, words, options)

        return SimpleNamespace(remote=remote)


@final
class Class:
    """What ``ray.remote`` makes of a class."""

    def __init__(self, kind: Callable[..., Any], options: dict[str, Any] | None = None) -> None:
        self._kind, self._options = kind, options or {}

    def options(self, **options: Any) -> Class:
        return Class(self._kind, {**self._options, **options})

    def remote(self, *words: Any) -> Handle:
        cluster, me = here()
        cluster.kernel.step("ray actor")
        place = self._options.get("scheduling_strategy")
        if place is None:
            node: RayNode | None = next((one for one in cluster.nodes if one.is_alive), None)
        else:
            group, index = place
            node = group.nodes[index]
        return Handle(cluster.start(lambda: self._kind(*words), self._options.get("name", ""), node, me))


def placement_group(bundles: list[dict[str, float]], strategy: str, bundle_label_selector: list[Any]) -> Group:
    cluster, _ = here()
    cluster.kernel.step("ray placement group")
    nodes = [cluster.node(one["ray.io/node-id"]) for one in bundle_label_selector]
    group = Group(bundles, [node if node is not None and not node.is_known_dead else None for node in nodes])
    cluster.groups.append(group)
    return group


def placement_group_table(group: Group) -> dict[str, str]:
    return {"state": "CREATED" if all(node is not None for node in group.nodes) else "PENDING"}


def remove_placement_group(group: Group) -> None:
    group.is_removed = True


def wait(
    references: Sequence[Reference], *, num_returns: int, timeout: float
) -> tuple[list[Reference], list[Reference]]:
    cluster, _ = here()
    cluster.kernel.step("ray wait")

    def are_there() -> bool:
        return sum(one.is_there for one in references) >= num_returns

    cluster.kernel.wait_for(are_there, cluster.waiters, timeout)
    arrived = [one for one in references if one.is_there][: max(num_returns, 1)]
    return arrived, [one for one in references if one not in arrived]


def get(references: Any) -> Any:
    if isinstance(references, list):
        return [get(one) for one in references]
    if references.error is not None:
        raise references.error
    return references.value


def kill(handle: Handle) -> None:
    here()[0].kill(handle.actor)


def get_actor(name: str) -> Handle:
    for actor in here()[0].actors:
        if actor.name == name and not actor.is_over:
            return Handle(actor)
    raise ValueError(name)


@final
class RayCluster:
    """A connection to the cluster, with the methods of :class:`jobs.backends.ray_cluster.RayCluster`."""

    is_embedded = False

    def __init__(self, address: str | None, *, asks_memory: bool = False, largest: Any = None) -> None:
        self._lost_for: str | None = None
        self.is_open = False

    def open(self, code: Any) -> None:
        cluster, _ = here()
        cluster.kernel.sleep(cluster.kernel.dice.uniform(*JOIN_SECONDS))
        if cluster.silent_until > cluster.kernel.now:
            raise BackendError(f"no Ray cluster at {ADDRESS}")
        self.is_open = True

    def close(self) -> None:
        cluster, me = here()
        self.is_open = False
        for actor in cluster.actors:
            if actor.driver is me and not actor.is_over:
                cluster.kill(actor)

    def ask(self, call: Callable[[], Answer]) -> Answer:
        if self._lost_for is not None:
            raise LostBackendError(self._lost_for)
        cluster, _ = here()
        cluster.kernel.step("ray ask")
        silence = cluster.silent_until - cluster.kernel.now
        cluster.kernel.sleep(min(max(silence, 0.0), LOST_SECONDS))
        if silence > LOST_SECONDS:
            self._lost_for = f"the Ray cluster at {ADDRESS} has not answered for {LOST_SECONDS:g} s"
            raise LostBackendError(self._lost_for)
        return call()

    def capacity(self) -> Capacity:
        def found() -> Capacity:
            nodes = [Node(name=node.id, cpus=node.cpus, gpus={}) for node in here()[0].known()]
            return Capacity(nodes, where="the cluster")

        return self.ask(found)

    def free(self, total: Capacity) -> Capacity:
        def found() -> Capacity:
            free, cluster = total.copy(), here()[0]
            for node in cluster.known():
                if node.id in free.nodes:
                    free.withhold(node.id, cluster.booked(node), 0.0)
            return free

        return self.ask(found)

    def draining(self) -> set[str]:
        return self.ask(lambda: {node.id for node in here()[0].known() if node.is_draining})

    def address_of(self, node: str) -> str:
        with contextlib.suppress(LostBackendError):
            return self.ask(lambda: next((one.host.name for one in here()[0].nodes if one.id == node), node))
        return node

    def request(self, bundles: Sequence[Any]) -> None:
        self.ask(lambda: None)


def _address() -> str:
    return here()[1].host.name


def install() -> None:
    """Put these in the place of ``ray`` and of the connection to it, before anything imports them."""
    if "ray" in sys.modules:
        return
    exceptions = {"RayError": RayError, "ActorDiedError": ActorDiedError, "OutOfMemoryError": type("", (RayError,), {})}
    groups = {"PlacementGroup": Group, "placement_group": placement_group}
    groups |= {"placement_group_table": placement_group_table, "remove_placement_group": remove_placement_group}

    def strategy(group: Group, *, placement_group_bundle_index: int) -> tuple[Group, int]:
        return group, placement_group_bundle_index

    def names() -> list[str]:
        return [actor.name for actor in here()[0].actors if not actor.is_over]

    modules: dict[str, dict[str, Any]] = {
        "ray.exceptions": exceptions,
        "ray.util.placement_group": groups,
        "ray.util.scheduling_strategies": {"PlacementGroupSchedulingStrategy": strategy},
        "ray.util": {"list_named_actors": names, "get_node_ip_address": _address},
        "ray": {"remote": Class, "wait": wait, "get": get, "kill": kill, "get_actor": get_actor},
        "jobs.backends.ray_cluster": {"RayCluster": RayCluster},
    }
    context = SimpleNamespace(get_accelerator_ids=dict)
    modules["ray"]["get_runtime_context"] = lambda: context
    for name, content in modules.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        sys.modules[name] = module
    sys.modules["ray"].exceptions = sys.modules["ray.exceptions"]  # type: ignore[attr-defined]
    sys.modules["ray"].util = sys.modules["ray.util"]  # type: ignore[attr-defined]
    from jobs.backends import ray_executor, ray_rank

    ray_rank.die_with_the_parent = lambda: None
    ray_rank.POLL_SECONDS = 2.0
    ray_executor.REFRESH_SECONDS = 5.0
