"""Canaries: before a grid starts, a short run of each architecture-optimizer pair checks that it fits and trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.launch.dispatch import Dispatcher, Event
from jobs.manifests.policy import Policy
from jobs.plan.estimate import memory_bytes
from jobs.plan.planned import Planned
from jobs.spec import Resources
from seqlm.config import RunConfig
from seqlm.data.corpus import CorpusFacts
from seqlm.errors import BackendError, CanaryError, FileError
from seqlm.machine import CUDA_BYTES
from seqlm.rundir import CANARY_FOLDER, FailureKind, RunDirectory

CANARY_ABOVE = 10
"""Up to this many runs start without canaries. A user watches a few runs; a large grid fails overnight."""
STEPS = 8
"""Steps of a canary: three to warm up, one captured on a GPU (``seqlm.training.step``), and four that are timed."""
POLICY = Policy(oom=0, max_stalled_retries=1)
"""Retry once after a lost node. Never shrink micro-batches: a canary that runs out of memory must be reported."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run about to start, with what is needed to pick a canary for it."""

    planned: Planned
    resources: Resources
    """The run's own resources, resolved."""
    facts: CorpusFacts

    @property
    def pair(self) -> str:
        """Architecture and optimizer, such as ``gru-adam``."""
        return _pair(self.planned.spec.config)

    @property
    def memory_bytes(self) -> int:
        """Estimated bytes of one rank."""
        return memory_bytes(self.planned.spec.config, self.facts.vocab_size, self.resources.ranks)


@dataclass(frozen=True, kw_only=True)
class _Passed:
    """A canary that passed, in this launch or an earlier one."""

    pair: str
    backend: str
    resources: Resources
    memory_bytes: int
    """Estimated bytes of one rank of its run."""
    record: dict[str, Any]
    """Contents of its ``canary.json``."""

    def stands_for(self, trial: Trial, backend: str) -> bool:
        """Return whether this canary shows that the run of ``trial`` fits and trains."""
        return (
            (self.pair, self.backend) == (trial.pair, backend)
            and self.resources == _without_priority(trial.resources)
            and self.memory_bytes >= trial.memory_bytes
        )


def wanted(choice: bool | None, todo: Iterable[Planned]) -> bool:
    """Return whether to run canaries: ``choice``, or if that is ``None``, whether more than :data:`CANARY_ABOVE` start.

    Runs that resume do not count, since they have trained already.
    """
    return sum(item.action == "start" for item in todo) > CANARY_ABOVE if choice is None else choice


def check(
    trials: Sequence[Trial],
    study_dir: Path,
    backend: str,
    dispatcher: Callable[..., Dispatcher],
    env: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """Run a canary for each architecture-optimizer pair that has no passed canary yet, and return if all pass.

    A canary that failed in an earlier launch runs again.

    Args:
        trials: the runs about to start or resume.
        study_dir: the study's folder.
        backend: the name of the open backend.
        dispatcher: makes a dispatcher on that backend.
        env: environment variables for the workers.
        tell: called with each line of progress.

    Raises:
        CanaryError: a canary failed.
        BackendError: a run needs more memory than its share of a GPU has, as measured by the canaries.
    """
    passed = _passed(study_dir)
    starting = choose(trial for trial in trials if trial.planned.action == "start")
    chosen = [trial for trial in starting if not any(found.stands_for(trial, backend) for found in passed)]
    if chosen:
        _run(chosen, study_dir, dispatcher, env, tell)
        passed = _passed(study_dir)
    require_room(_packed(trials, [found for found in passed if found.backend == backend]))


def choose(trials: Iterable[Trial]) -> list[Trial]:
    """Return for each pair the run that needs most memory, as the one most likely not to fit.

    Ties go to the lowest learning rate, since the highest ones of a sweep may diverge on purpose.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        best = found.get(trial.pair)
        if best is None or _rank(trial) > _rank(best):
            found[trial.pair] = trial
    return list(found.values())


def _rank(trial: Trial) -> tuple[int, float]:
    return trial.memory_bytes, -trial.planned.spec.config.optim.lr


def _run(
    trials: Sequence[Trial],
    study_dir: Path,
    dispatcher: Callable[..., Dispatcher],
    env: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    pairs = {trial.planned.run.id: trial.pair for trial in trials}
    tell(f"canaries first, {STEPS} steps each: {', '.join(pairs.values())} (--no-canary starts without them)")
    failed: dict[str, str] = {}
    kinds: set[FailureKind | None] = set()

    def on_event(event: Event) -> None:
        run = event.planned.run
        if event.kind != "ended":
            return
        record = run.read_canary()
        if record is not None:
            figures = f"{record['step_seconds']:.2g} s a step, {terminal.memory(record['peak_memory_bytes'])}"
            tell(f"canary {pairs[run.id]} passes: {figures}")
        else:
            tell(f"canary {pairs[run.id]} fails")
            kinds.add(event.observation.kind)
            failed[run.id] = (
                f"canary {pairs[run.id]} ({event.planned.spec.name}): {event.observation.reason}; "
                f"see {run.stderr_log(max(1, run.last_attempt()))}"
            )

    planned = [_prepare(trial, study_dir) for trial in trials]
    dispatcher(work={}, on_event=on_event, policy=POLICY, env={**env, "SEQLM_CANARY": str(STEPS)}).dispatch(planned)
    if failed:
        # A failure of kind `code`, such as a wrong device, would fail every run.
        hint = "" if kinds == {"code"} else "; --no-canary starts it without canaries"
        raise CanaryError("\n".join([*failed.values(), f"no run of the grid was started{hint}"]))


def _packed(trials: Iterable[Trial], passed: Sequence[_Passed]) -> list[Packed]:
    """Return the runs whose GPU memory is known, each with the largest passed canary of its pair."""
    biggest = {found.pair: found for found in sorted(passed, key=lambda found: found.memory_bytes)}
    packed = []
    for trial in trials:
        canary = biggest.get(trial.pair)
        if canary is not None:
            scale = trial.memory_bytes / canary.memory_bytes
            name = trial.planned.spec.name
            packed.append(Packed(name=name, resources=trial.resources, scale=scale, canary=canary.record))
    return packed


def _prepare(trial: Trial, study_dir: Path) -> Planned:
    """Create the canary's folder and delete the measurements of an earlier canary in it."""
    item = trial.planned
    run = RunDirectory.canary(study_dir, item.run.id)
    provenance = {**item.run.read_provenance(), "memory_estimate_bytes": trial.memory_bytes}
    run.create(item.spec.config, provenance)
    run.canary_file.unlink(missing_ok=True)
    spec = replace(item.spec, resources=trial.resources)
    # by_hand: failures of an earlier launch do not count.
    return Planned(spec=spec, run=run, observation=run.observe(), action="start", reason=None, by_hand=True)


def _passed(study_dir: Path) -> list[_Passed]:
    """Return the passed canaries of a study. An unreadable one counts as not passed."""
    found = []
    for file in sorted(study_dir.glob(f"{CANARY_FOLDER}/*/canary.json")):
        run = RunDirectory(file.parent)
        with contextlib.suppress(FileError):
            record, job, provenance = run.read_canary(), run.read_job(), run.read_provenance()
            if record and job and "memory_estimate_bytes" in provenance:
                found.append(
                    _Passed(
                        pair=_pair(run.read_config()),
                        backend=job["backend"],
                        resources=_without_priority(Resources.from_dict(job["resources"])),
                        memory_bytes=provenance["memory_estimate_bytes"],
                        record=record,
                    )
                )
    return found


def _pair(config: RunConfig) -> str:
    return f"{config.model.arch}-{config.optim.optimizer}"


def _without_priority(resources: Resources) -> Resources:
    """Return the resources without the priority, which does not affect whether a run fits."""
    return replace(resources, priority=0)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A run with the measurements of the largest canary of its pair."""

    name: str
    resources: Resources
    scale: float
    """Estimated memory of the run, divided by that of the canary."""
    canary: dict[str, Any]
    """Contents of the canary's ``canary.json``."""

    def needs(self) -> float:
        """Return the GPU memory that the run needs, in bytes."""
        held = self.canary.get("reserved_memory_bytes") or self.canary["peak_memory_bytes"]
        return float(held * self.scale + CUDA_BYTES)


def require_room(runs: Iterable[Packed]) -> None:
    """Check that runs which share a GPU fit together, so that none runs out of memory hours later.

    Raises:
        BackendError: a run needs more memory than its share of the GPU. The message names the run that lacks most.
    """
    lacking = [run for run in runs if _lack(run) > 0]
    if not lacking:
        return
    run = max(lacking, key=_lack)
    card = run.canary["device_memory_bytes"]
    share = math.ceil(100 * run.needs() / card) / 100
    others = f"; {len(lacking) - 1} more need more than their share" if len(lacking) > 1 else ""
    raise BackendError(
        f"{run.name} needs {terminal.memory(run.needs())}, but its share of {run.canary['device']} is "
        f"{run.resources.gpus:g}, {terminal.memory(run.resources.gpus * card)}; "
        f"use resources.gpus = {min(share, 1):g} or more{others}"
    )


def _lack(run: Packed) -> float:
    """Return the bytes that a run needs beyond its share of a GPU; 0 for a run that does not share one."""
    gpus, card = run.resources.gpus, run.canary.get("device_memory_bytes")
    if not gpus or gpus == 1 or card is None:
        return 0.0
    return run.needs() - gpus * float(card)
