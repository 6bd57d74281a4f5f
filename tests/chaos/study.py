"""The study that is disturbed: small runs of all architectures and optimizers, two of them with two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from seqlm.rundir import RunDirectory
from tests import warm
from tests.crawl import crawl_env
from tests.seqlm.training.studies import runs_in, write_text

ROOT = Path(__file__).parent.parent.parent
NAME = "chaos"

HEAD = """
[study]
name = "chaos"
data = "text"

[policy]
checkpoint_min = 0.02                  # as often as a large model's: every few hundred steps

[defaults.model]
hidden_size = 24
num_layers = 2
embedding_size = 12
num_heads = 4
mlp_size = 24
keep = 0.8

[defaults.data]
corpus = "files"

[defaults.optim]
flat_epochs = 1

[defaults.train]
epochs = {epochs}
batch_size = 8
seq_len = 8
"""

POOL = """
[backend.slurm]
pool = { jobs = 2, cpus = 3 }
"""

RUN = """
[[run]]
name = "{arch}-{optimizer}-{seed}"
model.arch = "{arch}"
optim.optimizer = "{optimizer}"
optim.lr = {lr}
seed = {seed}
resources.ranks = {ranks}
resources.cpus = 1
resources.priority = {ranks}           # else runs of two ranks wait for two free cores until the end
"""

LR = {"adam": 0.01, "sgd": 0.5, "sgd_schedule": 0.5}
ALL = [
    *((arch, optimizer, 1, 1) for arch in ("rnn", "gru", "transformer") for optimizer in LR),
    ("rnn", "adam", 2, 1),
    ("gru", "adam", 2, 2),
    ("transformer", "sgd", 2, 2),
]
"""Architecture, optimizer, seed and ranks of each run."""
FEW = [("gru", "adam", 2, 2), ("transformer", "sgd_schedule", 1, 1), ("rnn", "adam", 1, 1)]


@dataclass(frozen=True)
class Study:
    """A copy of the study in a folder of its own, and real launchers on it."""

    folder: Path
    lab: Lab

    @property
    def runs_dir(self) -> Path:
        return self.folder / "runs"

    @property
    def study_dir(self) -> Path:
        return self.runs_dir / NAME

    def runs(self) -> list[RunDirectory]:
        return runs_in(self.study_dir)

    def start(self, output: IO[bytes], *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """``launch.py run``, with more words and variables; it waits for the runs, as one in a terminal does."""
        options = ["--backend", self.lab.backend, "--runs-dir", str(self.runs_dir)]
        options.append("--no-canary")
        argv = [sys.executable, str(ROOT / "launch.py"), "run", str(self.lab.manifest), *options, *words]
        env = {**self.lab.env(), **variables}
        return warm.Popen(argv, cwd=self.lab.folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@dataclass(frozen=True)
class Lab:
    """A folder with the manifest, its text, and what its processes are to believe and note (``shim``)."""

    folder: Path
    backend: str = "local"
    variables: Mapping[str, str] = field(default_factory=dict)
    """Those by which SLURM's commands find the test cluster."""

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        few: bool,
        epochs: int,
        lines: int,
        backend: str = "local",
        pool: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Lab:
        lab = cls(folder, backend, variables or {})
        write_text(folder / "text", train_lines=lines)
        runs = [
            RUN.format(arch=arch, optimizer=optimizer, seed=seed, ranks=ranks, lr=LR[optimizer])
            for arch, optimizer, seed, ranks in (FEW if few else ALL)
        ]
        lab.manifest.write_text("".join([HEAD.format(epochs=epochs), POOL if pool else "", *runs]), "utf-8")
        (lab.shim / "steps").mkdir(parents=True)
        return lab

    @property
    def manifest(self) -> Path:
        return self.folder / "chaos.toml"

    @property
    def shim(self) -> Path:
        return self.folder / "shim"

    def env(self) -> dict[str, str]:
        """Of launchers, and so of their workers."""
        found = {**os.environ, **self.variables}
        env = {name: value for name, value in found.items() if not name.startswith("SEQLM_")}
        # A rank whose launcher and whose peer are gone waits so long for the peer, and nobody else ends it.
        waits = {"SEQLM_COLLECTIVE_MINUTES": "0.5"}
        places = {"SEQLM_CACHE": str(self.folder / "cache"), "SEQLM_TEST_CHAOS": str(self.shim)}
        return {**env, **waits, **crawl_env(), **places}

    def control(self, **values: Any) -> None:
        """Tell the processes what to believe (``tests/chaos/shim``)."""
        temporary = self.shim / "control.new"
        temporary.write_text(json.dumps(values))
        temporary.replace(self.shim / "control.json")

    def take_steps(self) -> dict[str, int]:
        """Run id -> steps that its workers have computed, all ranks together, since this was asked before."""
        found: dict[str, int] = {}
        for file in sorted((self.shim / "steps").iterdir()):
            run_id = file.name.rpartition("-")[0]
            found[run_id] = found.get(run_id, 0) + file.stat().st_size
            file.unlink()
        return found


@dataclass(frozen=True)
class Process:
    """A live process of a study."""

    pid: int
    words: tuple[str, ...]
    rank: int
    ranks: int

    @property
    def is_worker(self) -> bool:
        return "seqlm.training.worker" in self.words

    @property
    def is_job(self) -> bool:
        """Whether it is a job of SLURM that follows workers."""
        return "jobs.scheduled.job" in self.words and "srun" not in Path(self.words[0]).name

    @property
    def run_dir(self) -> Path:
        return Path(self.words[-1])


def processes(folder: Path) -> Iterator[Process]:
    """What lives and has a path below ``folder`` in its command line, by process number."""
    for entry in sorted((e for e in Path("/proc").iterdir() if e.name.isdigit()), key=lambda e: int(e.name)):
        try:
            words = tuple((entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0"))
            if not any(word.startswith(f"{folder}/") for word in words):
                continue
            variables = dict(
                pair.split("=", 1)
                for pair in (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if "=" in pair
            )
        except OSError:  # it has ended meanwhile
            continue
        yield Process(int(entry.name), words, int(variables.get("RANK", "0")), int(variables.get("WORLD_SIZE", "1")))


def workers(study: Study) -> list[Process]:
    """The live workers of a study; a zombie has no command line and is none."""
    return [process for process in processes(study.folder) if process.is_worker]
