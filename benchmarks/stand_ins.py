"""A study of stand-in workers, and what their own clocks say of the scheduler that ran them."""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.plan.capacity import Capacity, Node
from jobs.plan.estimate import Estimate
from jobs.plan.planned import PlannedRun, plan
from jobs.plan.queue import wall_seconds
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.files import write_json
from seqlm.records.runs import Provenance
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory

WORKER = (sys.executable, "-S", str(Path(__file__).with_name("stand_in_worker.py")))
NOTHING = Estimate(
    parameters=0,
    flops_per_token=0,
    memory_bytes=0,
    measured_memory_bytes=None,
    disk_bytes=0,
    flops=0.0,
    seconds=None,
)


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What one run of the study is to be."""

    seconds: float
    ranks: int = 1
    gpus: float = 0


@dataclass(frozen=True, kw_only=True)
class Span:
    """From when to when a rank's process was there."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def equal(runs: int, seconds: float) -> list[StandIn]:
    return [StandIn(seconds=seconds)] * runs


def mixed(runs: int, *, seed: int, share_of_two_ranks: float = 0.2) -> list[StandIn]:
    """Runs of half a second to four, some with two ranks, on a GPU for each rank."""
    draw = random.Random(seed)
    return [
        StandIn(seconds=round(draw.uniform(0.5, 4.0), 2), ranks=1 + (draw.random() < share_of_two_ranks), gpus=1)
        for _ in range(runs)
    ]


def specs_of(wanted: Sequence[StandIn]) -> list[RunSpec]:
    specs = []
    for order, stand_in in enumerate(wanted):
        config = RunConfig.from_dict(
            {
                "model": {"arch": "rnn", "hidden_size": 64},
                "data": {"corpus": "ptb"},
                "optim": {"optimizer": "adam", "lr": 0.001},
                "seed": order,
            }
        )
        resources = Resources(ranks=stand_in.ranks, cpus=1, gpus=stand_in.gpus)
        specs.append(RunSpec(name=f"stand-in-{order}", config=config, resources=resources, order=order))
    return specs


def plan_study(study: Path, wanted: Sequence[StandIn]) -> list[PlannedRun]:
    """The plan to run them all, with the times that they take. Nothing is written."""
    planned = []
    for spec, stand_in in zip(specs_of(wanted), wanted, strict=True):
        run = RunDirectory.locate(study, spec.name, spec.fingerprint, {})
        item = plan(spec, run, run.observe(), has_checkpoint=False, retry=False)
        planned.append(replace(item, estimate=replace(NOTHING, seconds=stand_in.seconds)))
    return planned


def make_study(study: Path, wanted: Sequence[StandIn]) -> list[PlannedRun]:
    """Their folders, and the plan to run them all."""
    planned = plan_study(study, wanted)
    for item, stand_in in zip(planned, wanted, strict=True):
        item.run.create(item.spec.config, Provenance(name=item.spec.name, order=item.spec.order))
        write_json(item.run.path / "stand-in.json", {"seconds": stand_in.seconds})
    return planned


def spans(planned: Sequence[PlannedRun]) -> list[list[Span]]:
    """Of each run, the spans of its ranks."""
    return [
        [
            Span(**json.loads((item.run.path / f"span-{rank}.json").read_text("utf-8")))
            for rank in range(item.spec.resources.ranks)
        ]
        for item in planned
    ]


# -- arithmetic ----------------------------------------------------------------------------------------------------


def cost_per_run(makespan: float, slots: int, found: Sequence[Span]) -> float:
    """Seconds of a slot that a run costs beyond its own: start-up and tail of the whole are shared among all."""
    return (makespan * slots - sum(span.seconds for span in found)) / len(found)


def hand_over(slots: int, found: Sequence[Span]) -> float:
    """Median seconds from a worker's end to the start of the one that takes its slot, while there are any waiting."""
    starts, ends = sorted(span.start for span in found), sorted(span.end for span in found)
    return statistics.median(start - end for start, end in zip(starts[slots:], ends, strict=False))


def least_makespan(slots: int, found: Sequence[Sequence[Span]]) -> float:
    """No order of the runs takes less: all slots busy all the time, and no run cut in two. Often none reaches it."""
    work = sum(span.seconds for ranks in found for span in ranks)
    longest = max(max(span.seconds for span in ranks) for ranks in found)
    return max(work / slots, longest)


def free_makespan(slots: int, wanted: Sequence[StandIn]) -> float:
    """What the queue's order takes where starting a run costs nothing, by :func:`jobs.plan.queue.wall_seconds`."""
    node = Node(name="node", cpus=slots, gpus={str(device): 1.0 for device in range(slots)})
    seconds = wall_seconds(plan_study(Path(), wanted), Capacity([node], where="the node"))
    assert seconds is not None, "all of them are known"
    return seconds


def utilisation(makespan: float, slots: int, found: Sequence[Sequence[Span]]) -> float:
    """Share of the slots' time in which a rank's process was there."""
    return sum(span.seconds for ranks in found for span in ranks) / (slots * makespan)
