"""What a seed draws of the study that a story launches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
pool = {{ jobs = {jobs}, cpus = 2, gpus = 2 }}
timeout_min = {minutes}

[[grid]]
name = "run"
optim.lr = [{rates}]
resources.cpus = 1
resources.gpus = {gpus}
"""
SEARCH = """
[search]
rungs = [1, 2]
keep = 0.5
min_runs = 2
"""
BUDGET = """
[policy]
core_hours = {core_hours}
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
    backend: str = "slurm"
    """``slurm``, ``ray``, or ``local``: then all of it is on one machine."""
    is_search: bool = False
    """Whether it stops runs that fall behind."""
    core_hours: float | None = None
    """Its budget. ``None``: no limit."""

    def smaller(self) -> Iterator[Study]:
        """Yield studies that are a step smaller."""
        least = {"runs": 2, "jobs": 1, "nodes": 1}  # the name of a single run does not say its learning rate
        for name, number in least.items():
            if (now := getattr(self, name)) > number:
                yield replace(self, **{name: now - 1})
        if self.is_search:
            yield replace(self, is_search=False)
        if self.core_hours is not None:
            yield replace(self, core_hours=None)

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher has to live as long as the runs."""
        return self.backend != "slurm"

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
        gpus = 1 if self.backend == "slurm" else 0
        fields = {"epochs": EPOCHS, "rates": ", ".join(self.rates), "jobs": self.jobs, "minutes": self.minutes}
        text = MANIFEST.format(**fields, gpus=gpus)
        text += SEARCH if self.is_search else ""
        return text + (BUDGET.format(core_hours=self.core_hours) if self.core_hours is not None else "")

    @property
    def files(self) -> dict[str, str]:
        """Files from which it is launched, by their paths from the folder of its user."""
        lines = "\n".join([TEXT] * 40)
        return {"m.toml": self.manifest, **{f"text/{split}.txt": lines for split in ("train", "valid", "test")}}

    @property
    def command(self) -> list[str]:
        """The words after ``seqlm`` that launch it."""
        return ["run", "m.toml", *self.options, "--no-canary"]

    @property
    def options(self) -> list[str]:
        """What each command that launches runs has."""
        backend = ["--backend", self.backend, *(["--ray-address", "head:6379"] if self.backend == "ray" else [])]
        return [*backend, "--runs-dir", "/sim/runs", *([] if self.has_launcher else ["--no-wait"]), "--live-code"]


def draw_study(seed: int) -> Study:
    """Return the study of a seed."""
    dice = random.Random(f"study {seed}")
    study = Study(
        runs=dice.randint(2, 6),
        jobs=dice.randint(1, 3),
        epoch_seconds=dice.choice(EPOCH_SECONDS),
        minutes=dice.choice(LIMIT_MINUTES),
    )
    hours = study.runs * EPOCHS * study.epoch_seconds / 3600
    return replace(
        study,
        backend=dice.choices(("slurm", "local", "ray"), (6, 1, 1))[0],
        is_search=dice.random() < 0.2,
        core_hours=round(hours * dice.uniform(0.2, 0.9), 4) if dice.random() < 0.15 else None,
    )
