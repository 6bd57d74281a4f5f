"""What a seed draws of the study that a story launches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

EPOCHS = 4
EPOCH_SECONDS = (20.0, 60.0, 300.0, 600.0)
"""How long an epoch may take."""
RANKS_OF_SEVERAL_NODES = ((2, 1), (2, 1), (3, 1), (4, 2))
"""Ranks of a run of several nodes, and on each node."""
LIMIT_MINUTES = (20, 240)
"""Time limit of a job."""
TEXT = "one two three four five six seven eight"
MANIFEST = """
[study]
name = "s"
data = "text"

[defaults]
data.corpus = "files"
model.arch = "rnn"
model.hidden_size = 4
model.num_layers = 1
train.epochs = {epochs}
train.batch_size = 8
train.seq_len = 5
optim.optimizer = "sgd"

[backend.slurm]
{backend}

[[grid]]
name = "run"
optim.lr = [{rates}]
resources.cpus = 1
resources.ranks = {ranks}
resources.gpus = {gpus}
"""
SEARCH = """
[search]
rungs = [1, 2]
keep = 0.5
min_runs = 2
"""
DECIDE = """
[[decide]]
a = "lr={}"
b = "lr={}"
seeds = {seeds}
margin = 3.0
error = 0.9
"""
"""After two seeds, losses of the stub are always "no difference" by these: they lie within one nat of each other."""
SEEDS = 5
"""The fewest that a comparison may have."""
BUDGET = """
[policy]
core_hours = {core_hours}
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, and how it is launched. A new field has a default: the stories that are kept do not name it."""

    runs: int
    jobs: int
    """Jobs of its pool, if it has one."""
    epoch_seconds: float
    minutes: int
    """Time limit of a job."""
    nodes: int = 3
    """Of the cluster."""
    is_pool: bool = True
    """Whether its jobs have room for two runs each. Else there are as many jobs as runs."""
    ranks: int = 1
    """Of each run."""
    ranks_per_node: int | None = None
    """``None``: all ranks of a run are on one node."""
    at_once: int | None = None
    """How many runs may be running. ``None``: any number."""
    signal_before_s: int | None = None
    """How many seconds before its time limit a job is warned. ``None``: the default."""
    mem_gb: float | None = None
    """What each job asks for. ``None``: nothing."""
    has_canaries: bool = False
    """Whether canaries run first."""
    most_jobs: int | None = None
    """How many jobs the user may have in the queue. ``None``: any number."""
    backend: str = "slurm"
    """``slurm``, ``ray``, or ``local``: then all of it is on one machine."""
    is_search: bool = False
    """Whether it stops runs that fall behind."""
    core_hours: float | None = None
    """Its budget. ``None``: no limit."""
    is_decided: bool = False
    """Whether it has two settings with :data:`SEEDS` seeds each, and ends once they are compared."""

    def smaller(self) -> Iterator[Study]:
        """Yield studies that are a step smaller."""
        nodes = self.ranks // (self.ranks_per_node or self.ranks)
        runs = 2 * SEEDS if self.is_decided else 2  # the name of a single run does not say its learning rate
        least = {"runs": runs, "jobs": 1, "nodes": nodes}
        for name, number in least.items():
            if (now := getattr(self, name)) > number:
                yield replace(self, **{name: now - 1})
        usual: dict[str, Any] = {"is_decided": False, "is_search": False, "core_hours": None, "has_canaries": False}
        usual |= {"mem_gb": None, "most_jobs": None, "at_once": None, "signal_before_s": None}
        for name, value in usual.items():
            if getattr(self, name) != value:
                yield replace(self, **{name: value})
        if self.ranks_per_node is not None:
            if (self.ranks, self.ranks_per_node) != (2, 1):
                yield replace(self, ranks=2, ranks_per_node=1)
            yield replace(self, ranks=2, ranks_per_node=None)
        elif self.ranks > 1:
            yield replace(self, ranks=1)
        elif not self.is_pool:
            yield replace(self, is_pool=True)

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher has to live as long as the runs."""
        return self.backend != "slurm"

    @property
    def rates(self) -> list[str]:
        """Learning rates, by which its runs are told apart."""
        return [f"{0.1 + number / 100:g}" for number in range(2 if self.is_decided else self.runs)]

    @property
    def seeds(self) -> list[str]:
        """What the names of its runs say of their seeds."""
        return ["", *(f"-seed{1111 + number}" for number in range(1, SEEDS))] if self.is_decided else [""]

    @property
    def names(self) -> list[str]:
        """Names of its runs."""
        return [f"run-lr{rate}{seed}" for seed in self.seeds for rate in self.rates]

    @property
    def manifest(self) -> str:
        pool = f"{{ jobs = {self.jobs}, cpus = 2, gpus = 2 }}" if self.is_pool else None
        keys = {"pool": pool, "timeout_min": self.minutes, "ranks_per_node": self.ranks_per_node}
        keys |= {"mem_gb": self.mem_gb, "signal_before_s": self.signal_before_s}
        backend = "\n".join(f"{key} = {value}" for key, value in keys.items() if value is not None)
        gpus = 1 if self.backend == "slurm" else 0
        rates = ", ".join(self.rates)
        text = MANIFEST.format(epochs=EPOCHS, rates=rates, backend=backend, ranks=self.ranks, gpus=gpus)
        text += SEARCH if self.is_search else ""
        text += DECIDE.format(*self.rates, seeds=SEEDS) if self.is_decided else ""
        return text + (BUDGET.format(core_hours=self.core_hours) if self.core_hours is not None else "")

    @property
    def files(self) -> dict[str, str]:
        """Files from which it is launched, by their paths from the folder of its user."""
        lines = "\n".join([TEXT] * 40)
        return {"m.toml": self.manifest, **{f"text/{split}.txt": lines for split in ("train", "valid", "test")}}

    @property
    def command(self) -> list[str]:
        """The words after ``seqlm`` that launch it."""
        limit = [] if self.at_once is None else ["--max-parallel", str(self.at_once)]
        canaries = "--canary" if self.has_canaries else "--no-canary"
        return ["run", "m.toml", *self.options, *limit, canaries]

    @property
    def options(self) -> list[str]:
        """What each command that launches runs has."""
        backend = ["--backend", self.backend, *(["--ray-address", "head:6379"] if self.backend == "ray" else [])]
        return [*backend, "--runs-dir", "/sim/runs", *([] if self.has_launcher else ["--no-wait"]), "--live-code"]


def draw_study(seed: int, *, is_pool: bool = False) -> Study:
    """Return the study of a seed. ``is_pool``: a pool of jobs and nothing else, which many faults need."""
    dice = random.Random(f"study {seed}")
    study = Study(
        runs=dice.randint(2, 6),
        jobs=dice.randint(1, 3),
        epoch_seconds=dice.choice(EPOCH_SECONDS),
        minutes=dice.choice(LIMIT_MINUTES),
    )
    hours = study.runs * EPOCHS * study.epoch_seconds / 3600
    study = replace(
        study,
        backend=dice.choices(("slurm", "local", "ray"), (6, 1, 1))[0],
        is_search=dice.random() < 0.2,
        core_hours=round(hours * dice.uniform(0.2, 0.9), 4) if dice.random() < 0.15 else None,
    )
    if is_pool:
        return study
    if study.backend == "slurm":
        study = replace(study, **_shape(dice, is_search=study.is_search))
    # The ranks of the stub decide each for itself, as at rungs. Drawn last, so that other studies stay as they were.
    is_decided = dice.random() < 0.1 and study.ranks == 1 and not study.is_search
    return replace(study, runs=2 * SEEDS, is_decided=True) if is_decided else study


def _shape(dice: random.Random, *, is_search: bool) -> dict[str, Any]:
    """Return how the runs of a study are spread over jobs."""
    found: dict[str, Any] = {"has_canaries": dice.random() < 0.2, "mem_gb": dice.choice((None, None, 8))}
    if dice.random() < 0.15:
        found["most_jobs"] = dice.randint(2, 5)
    kind = dice.choice(("pool", "pool", "pool", "jobs", "ranks", "nodes"))
    if kind in ("ranks", "nodes") and is_search:  # the ranks of the stub decide each for itself
        kind = "jobs"
    if kind == "pool":
        return found
    found |= {"is_pool": False, "at_once": dice.choice((None, None, 1, 2))}
    if kind == "ranks":
        found["ranks"] = 2
    elif kind == "nodes":
        found["ranks"], found["ranks_per_node"] = dice.choice(RANKS_OF_SEVERAL_NODES)
    return found
