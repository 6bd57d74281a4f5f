"""Limits that fit: the time and the memory to ask a scheduler for, from what earlier attempts used (``fit_limits``)."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.plan.estimate import MOST_MEMORY, own_studies, within
from jobs.plan.planned import PlannedRun
from seqlm.config import RunConfig
from seqlm.enough import enough
from seqlm.errors import SeqlmError
from seqlm.reading import listed
from seqlm.records.attempts import Start, Usage, Worker
from seqlm.records.batch import Limits
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from seqlm.schema import fits

STEP_MINUTES = 15
"""The shortest time to ask for. Further ones are 2, 4, 8, ... times as long, so that few arrays are made."""
BEGIN_SECONDS = 60.0
"""How long a job may take until the process of its first rank starts, and how much earlier than asked its end comes."""
LONGEST, MOST_CORES = 1e9, 1e5
"""Seconds that an attempt may have taken, and cores that a rank may have kept busy."""
LEAST_RUNS, AGREE = 3, 1.2
"""How many runs have to agree about the memory, and how many times the least of their peaks the highest may be."""
MORE_MEMORY = 1.5
"""Factor by which a job asks for more memory than was too little."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What the ranks of an attempt have used."""

    cores: Sequence[float]
    """Of each rank on average."""
    memory_bytes: float
    """Of the ranks of the node where that is most."""
    seconds: float
    """Of the rank that ran longest."""


def used(run: RunDirectory, attempt: int, ranks: int) -> Used | None:
    """Return what an attempt has used. ``None``: one of its ranks has recorded nothing, or what no machine does."""
    cores, longest, on_nodes = [], 0.0, defaultdict[Any, float](float)
    for file in listed(run.attempt_dir(attempt), "worker*.json"):
        worker = Worker.read_file(file) or Worker()
        if worker.resources is None or not _is_possible(worker.resources):
            continue
        seconds, busy = worker.resources.seconds or 0.0, worker.resources.cpu_seconds or 0.0
        cores.append(busy / seconds)
        longest = max(longest, seconds)
        on_nodes[worker.node or worker.host] += worker.resources.peak_resident_bytes or 0.0
    return Used(cores=cores, memory_bytes=max(on_nodes.values()), seconds=longest) if len(cores) == ranks else None


def _is_possible(used: Usage) -> bool:
    """Return whether a rank has recorded time, cores and memory, and no machine has less."""
    seconds, busy, peak = used.seconds, used.cpu_seconds, used.peak_resident_bytes
    if seconds is None or busy is None or peak is None:
        return False
    return 0 < seconds <= LONGEST and 0 <= busy <= MOST_CORES * seconds and 0 <= peak <= MOST_MEMORY


def alike(config: RunConfig) -> Hashable:
    """Return what decides how long an epoch takes, as far as the configuration does."""
    return config.model, config.data, replace(config.train, epochs=1), config.eval


class Earlier:
    """What earlier runs of a kind took."""

    def __init__(self) -> None:
        self._start_seconds = 0.0
        self._epochs = defaultdict[str, list[float]](list)
        """Device -> seconds of each epoch."""
        self._peaks = defaultdict[Path, float](float)
        """Folder of a run -> the most memory of a node."""

    def add(
        self, run: RunDirectory, attempt: int, ranks: int, device: str, epochs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add an attempt. ``epochs`` are the records of all epochs of the run."""
        for epoch in epochs:
            phases = epoch.get("phases") or {}
            if not phases or epoch.get("attempt") != attempt or not fits(Mapping[str, float], phases):
                continue
            if all(0 <= seconds <= LONGEST for seconds in phases.values()):
                start = phases.get("start_up", 0.0)
                self._start_seconds = max(self._start_seconds, start)
                self._epochs[device].append(math.fsum(phases.values()) - start)
        if (found := used(run, attempt, ranks)) is not None:
            self._peaks[run.path] = max(self._peaks[run.path], found.memory_bytes)

    def limits(self, epochs: int, most: Limits, *, save_seconds: float, runs: int) -> Limits:
        """Return the limits that fit a run with ``epochs`` left to train, at most ``most``.

        ``save_seconds``: how long before its end a job gets the signal to save; ``runs``: the number of runs like this
        that share the job. The time is that of the slowest device.
        """
        minutes, memory, peaks = most.timeout_min, most.mem_gb, self._peaks.values()
        if self._epochs:
            usual = max(sorted(found)[math.ceil(0.9 * len(found)) - 1] for found in self._epochs.values())
            training = 60 * enough(seconds=self._start_seconds + epochs * usual).timeout_min
            needed = max(BEGIN_SECONDS + training + save_seconds, 2 * save_seconds) / 60
            minutes = min(minutes, STEP_MINUTES * 2 ** math.ceil(math.log2(max(1, needed / STEP_MINUTES))))
        if len(peaks) >= LEAST_RUNS and max(peaks) <= AGREE * min(peaks):
            memory = min(enough(memory_bytes=runs * max(peaks)).mem_gb, most.mem_gb or math.inf)
        return Limits(timeout_min=minutes, mem_gb=memory)


def fitting(
    root: Path,
    todo: Sequence[PlannedRun],
    backend: str,
    is_like: Callable[[Mapping[str, str]], bool],
    most: Limits,
    *,
    save_seconds: float,
    sharing: Callable[[Resources], int],
) -> dict[str, Limits]:
    """Return the limits that fit, by run id, of those of ``todo`` for which that is known.

    It is known from runs of the same model on the same text, with the same resources. Only attempts on this
    ``backend`` count whose variables say that their nodes were alike (``is_like``), of all studies of this user below
    ``root``. What cannot be read is left out. ``save_seconds`` is as in :meth:`Earlier.limits`, and ``sharing`` tells
    ``runs``.
    """
    kinds = {item.run.id: (alike(item.spec.config), replace(item.spec.resources, priority=0)) for item in todo}
    configs, earlier = {config for config, _ in kinds.values()}, defaultdict[Hashable, Earlier](Earlier)
    for run in (RunDirectory(path) for study in own_studies(root) for path in within(study) if todo):
        with contextlib.suppress(SeqlmError):
            config = alike(run.read_config())
            epochs = run.read_metrics()[0] if config in configs else []
            for attempt in {number for epoch in epochs if type(number := epoch.get("attempt")) is int}:
                start = Start.read(run.attempt_dir(attempt)) or Start()
                worker = run.read_worker(attempt)
                if start.backend == backend and is_like(run.read_environment(worker).variables):
                    resources = replace(start.resources, priority=0)
                    device = worker.device or ""
                    earlier[config, resources].add(run, attempt, resources.ranks, device, epochs)
    return {
        item.run.id: earlier[kinds[item.run.id]].limits(
            item.spec.config.train.epochs - item.epochs_done,
            most,
            save_seconds=save_seconds,
            runs=sharing(item.spec.resources),
        )
        for item in todo
        if kinds[item.run.id] in earlier
    }


def advice(fits: Collection[Limits], asked: Limits) -> str | None:
    """Return a line if runs like these have needed less than half of ``asked``. ``None``: they have not."""
    if not fits:
        return None
    minutes, memory = max(one.timeout_min for one in fits), max(one.mem_gb or 0 for one in fits)
    needs = [f"{minutes} of timeout_min = {asked.timeout_min}"] if 2 * minutes < asked.timeout_min else []
    needs += [f"{memory:g} of mem_gb = {asked.mem_gb:g}"] if asked.mem_gb and 2 * memory < asked.mem_gb else []
    return f"note: runs like these need {' and '.join(needs)}; fit_limits = true asks for that" if needs else None


def more_memory_gb(run: RunDirectory) -> float:
    """Return the memory of a node that a run needs after the system killed it for the last one; 0 if it did not."""
    failed = run.last_out_of_memory()
    return MORE_MEMORY * ((failed.memory_mb if failed else None) or 0) / 1024
