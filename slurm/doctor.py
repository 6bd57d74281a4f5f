"""``doctor --backend slurm``: check whether this cluster can run seqlm, and say what to change if it cannot."""

from __future__ import annotations

from pathlib import Path

from jobs.backends.base import Finding, Level
from jobs.plan.capacity import with_noun
from jobs.spec import Resources
from jobs.study.squeue import CALL_SECONDS, ask
from seqlm.errors import BackendError, FileError
from slurm.probe import Gpu, probe
from slurm.settings import SlurmSettings
from slurm.site import PartitionFacts, controller_config, partition_facts

WAIT_S = 120.0
"""Seconds that the trial job may take, waiting included."""


def examine(settings: SlurmSettings, *, runs_dir: Path, wait_s: float = WAIT_S) -> list[Finding]:
    """Check the cluster from a login node, then from a compute node. Stop at a problem that prevents further checks."""
    found: list[Finding] = []
    try:
        found.append(Finding("ok", "sbatch", ask("sbatch", "--version").strip()))
        found.append(_slurmctld())
        if found[-1].level == "bad":
            return found
        found += _limits(settings)
        facts = partition_facts(settings.partition)
    except BackendError as error:
        return [*found, Finding("bad", "SLURM", str(error))]
    found.append(_partition(facts))
    fit = _fit(facts, settings)
    found.append(fit)
    if fit.level == "bad" or not facts.up:
        return found
    try:
        gpu: Gpu = "fake" if any(kind.fakes for kind in facts.kinds) else "real" if facts.gpus_per_node else None
        return [*found, *probe(settings, runs_dir=runs_dir, gpu=gpu, wait_s=wait_s)]
    except (BackendError, FileError) as error:
        return [*found, Finding("bad", "compute node", str(error))]


def _slurmctld() -> Finding:
    """Return whether a controller is up. Read from the output: ``ping`` exits with 1 if only a backup is down."""
    try:
        answer = ask("scontrol", "ping", check=False)
    except BackendError:
        return Finding("bad", "slurmctld", f"`scontrol ping` gave no answer within {CALL_SECONDS:g} s")
    lines = [line for line in answer.splitlines() if line.startswith("Slurmctld(")]
    up = [line for line in lines if line.endswith(" is UP")]
    if up:
        return Finding("ok", "slurmctld", up[0])
    nothing = "`scontrol ping` found no controller; is SLURM configured here?"
    return Finding("bad", "slurmctld", lines[0] if lines else nothing)


def _limits(settings: SlurmSettings) -> list[Finding]:
    config = controller_config()
    size = config.max_array_size
    level: Level = "ok"
    text = f"up to {size:,} tasks in an array (MaxArraySize), {config.max_job_count:,} jobs of all users"
    if size == 0:
        level, text = "bad", "the cluster takes no job arrays (MaxArraySize is 0)"
    elif settings.max_parallel is not None and settings.max_parallel > size:
        level, text = "note", f"{text}; max_parallel {settings.max_parallel} is more than one array can hold"
    accounting = Finding("note", "accounting", "off; how a job ended is read from its run's files only")
    if config.accounting:
        accounting = Finding("ok", "accounting", "on")
    return [Finding(level, "job arrays", text), accounting]


def _partition(facts: PartitionFacts) -> Finding:
    limit = "no time limit" if facts.time_limit_min is None else f"jobs of up to {facts.time_limit_min:,} min"
    has = f"{with_noun(facts.gpus_per_node, 'GPU')} and {with_noun(facts.cpus_per_node, 'core')} on a node"
    text = f"{facts.name}: {facts.usable_nodes} of {facts.nodes} nodes usable, up to {has}, {limit}"
    if not facts.up:
        return Finding("bad", "partition", f"{text}; it starts no jobs now")
    return Finding("ok" if facts.usable_nodes else "note", "partition", text)


def _fit(facts: PartitionFacts, settings: SlurmSettings) -> Finding:
    """Return whether a run that fills a node, as far as the settings allow, could start."""
    try:
        gets = facts.resolve(Resources(ranks=settings.ranks_per_node or 1), settings)
    except BackendError as error:
        return Finding("bad", "settings", str(error))
    memory = f"{settings.mem_gb:g} GB of memory, " if settings.mem_gb else ""
    each = f"{with_noun(gets.gpus or 0, 'GPU')} and {with_noun(gets.cpus or 1, 'core')}"
    ranks = with_noun(gets.ranks, "rank")
    return Finding("ok", "settings", f"{ranks} on a node, {each} each, {memory}{settings.timeout_min} min")
