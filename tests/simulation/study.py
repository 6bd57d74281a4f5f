"""What a seed draws of the study that a story launches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

EPOCHS = 4
EPOCH_SECONDS = (20.0, 60.0, 300.0, 600.0)
"""How long an epoch may take."""
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
resources.gpus = 1
resources.ranks = {ranks}
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, and how it is launched. A new field has a default: the stories that are kept do not name it."""

    runs: int
    jobs: int
    """Jobs of its pool."""
    epoch_seconds: float
    minutes: int
    """Time limit of a job."""
    nodes: int = 3
    """Of the cluster."""
    is_pool: bool = True
    """Whether its runs share jobs. Else each has one of its own."""
    ranks: int = 1
    """Of each run."""
    ranks_per_node: int | None = None
    """``None``: all ranks of a run are on one node."""
    at_once: int | None = None
    """How many runs may be running. ``None``: any number."""
    mem_gb: float | None = None
    """What each job asks for. ``None``: nothing."""
    has_canaries: bool = False
    """Whether canaries run first."""
    most_jobs: int | None = None
    """How many jobs the user may have in the queue. ``None``: any number."""

    def smaller(self) -> Iterator[Study]:
        """Yield studies that are a step smaller."""
        least = {"runs": 2, "jobs": 1, "nodes": 1}  # the name of a single run does not say its learning rate
        for name, number in least.items():
            if (now := getattr(self, name)) > number:
                yield replace(self, **{name: now - 1})

    @property
    def rates(self) -> list[str]:
        """Learning rates, by which its runs are told apart."""
        return [f"{0.1 + number / 100:g}" for number in range(self.runs)]

    @property
    def names(self) -> list[str]:
        """Names of its runs."""
        return [f"run-lr{rate}" for rate in self.rates]

    @property
    def manifest(self) -> str:
        pool = f"{{ jobs = {self.jobs}, cpus = 2, gpus = 2 }}" if self.is_pool else None
        keys = {"pool": pool, "timeout_min": self.minutes, "ranks_per_node": self.ranks_per_node}
        keys |= {"mem_gb": self.mem_gb}
        backend = "\n".join(f"{key} = {value}" for key, value in keys.items() if value is not None)
        return MANIFEST.format(epochs=EPOCHS, rates=", ".join(self.rates), backend=backend, ranks=self.ranks)

    @property
    def files(self) -> dict[str, str]:
        """Files from which it is launched, by their paths from the folder of its user."""
        lines = "\n".join([TEXT] * 40)
        return {"m.toml": self.manifest, **{f"text/{split}.txt": lines for split in ("train", "valid", "test")}}

    @property
    def command(self) -> list[str]:
        """The words after ``seqlm`` that launch it."""
        where = ["--backend", "slurm", "--runs-dir", "/sim/runs", "--no-wait", "--live-code"]
        limit = [] if self.at_once is None else ["--max-parallel", str(self.at_once)]
        return ["run", "m.toml", *where, *limit, "--canary" if self.has_canaries else "--no-canary"]


def draw_study(seed: int) -> Study:
    """Return the study of a seed."""
    dice = random.Random(f"study {seed}")
    return Study(
        runs=dice.randint(2, 6),
        jobs=dice.randint(1, 3),
        epoch_seconds=dice.choice(EPOCH_SECONDS),
        minutes=dice.choice(LIMIT_MINUTES),
        **_shape(dice),
    )


def _shape(dice: random.Random) -> dict[str, Any]:
    """Return how the runs of a study are spread over jobs."""
    found: dict[str, Any] = {"has_canaries": dice.random() < 0.2, "mem_gb": dice.choice((None, None, 8))}
    if dice.random() < 0.15:
        found["most_jobs"] = dice.randint(2, 5)
    kind = dice.choice(("pool", "pool", "jobs", "ranks", "nodes"))
    if kind == "pool":
        return found
    found |= {"is_pool": False, "at_once": dice.choice((None, None, 1, 2))}
    if kind != "jobs":
        found["ranks"] = 2
    if kind == "nodes":
        found["ranks_per_node"] = 1
    return found
