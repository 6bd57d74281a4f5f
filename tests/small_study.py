"""A study of small runs in a folder of its own, and the command line on it: here, on a Ray cluster, and on SLURM."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqlm.lease import newest_lease
from seqlm.rundir import RunDirectory
from slurm.testcluster import LoopbackCluster
from tests import commands, hostile
from tests.crawl import Crawl
from tests.ray_lab import RayLab
from tests.seqlm.training.studies import runs_in, write_text
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent
STUB_LAUNCH, STUB_WORKER = (Path(__file__).parent / "tools" / f"stub_{name}.py" for name in ("launch", "worker"))

MANIFEST = """
[study]
name = "small"
data = "text"
{head}
[defaults.model]
hidden_size = 16
num_layers = 1
embedding_size = 8
num_heads = 4
mlp_size = 16
keep = {keep}

[defaults.data]
corpus = "files"

[defaults.train]
epochs = {epochs}
batch_size = 8
seq_len = 5
"""


class Study:
    """A manifest in a folder of its own, and the command line on it."""

    def __init__(
        self,
        folder: Path,
        *,
        stub: bool = False,
        epochs: int = 2,
        keep: float = 0.9,
        lines: int = 220,
        head: str = "",
        **grid: Any,
    ) -> None:
        """``stub``: with the stub (:mod:`tests.tools.stub_worker`), where it does not matter what is trained.

        ``lines`` are those of the text, ``head`` comes behind the keys of the study, and ``grid`` goes to :meth:`add`.
        """
        self.folder = folder
        self.env: Mapping[str, str] = os.environ
        self.program = STUB_LAUNCH if stub else ROOT / "launch.py"
        write_text(folder / "text", train_lines=lines)
        self.manifest = folder / "small.toml"
        self.manifest.write_text(MANIFEST.format(head=head, keep=keep, epochs=epochs))
        self.add(**grid)

    def add(self, *, archs: Sequence[str] = ("rnn",), rates: Sequence[float] = (0.01,), **resources: float) -> None:
        """Add a grid to the manifest."""
        values = {"model.arch": archs, "optim.optimizer": "adam", "optim.lr": rates}
        values |= {f"resources.{name}": value for name, value in resources.items()}
        self.write("[[grid]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))

    def write(self, *lines: str) -> None:
        """Add lines to the manifest."""
        with self.manifest.open("a") as manifest:
            manifest.write("\n".join(["", *lines, ""]))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(self.program), *words]

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return commands.run(self.command(*words), cwd=self.folder, **{"env": self.env, **options})

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return commands.start(self.command(*words), cwd=self.folder, **{"env": self.env, **options})

    def runs(self) -> list[RunDirectory]:
        return runs_in(self.folder / "runs" / "small")

    def epochs(self) -> list[list[int]]:
        """The epochs that each run has finished."""
        return [epochs_of(run) for run in self.runs()]

    def status(self) -> list[dict[str, Any]]:
        """The runs in ``status --json``."""
        found: list[dict[str, Any]] = commands.ask(["status", "small.toml"], folder=self.folder, env=self.env)["runs"]
        return found

    def states(self) -> dict[str, str]:
        return {run["name"]: run["state"] for run in self.status()}

    def each(self, key: str = "state") -> list[str]:
        """The value of this key of each run in ``status --json``."""
        return [run[key] for run in self.status()]

    def until_they_train(self, epochs: int = 1) -> None:
        enough = f"{epochs} epochs of each run"
        wait_for(self.epochs, enough, until=lambda seen: seen and min(map(len, seen)) >= epochs)


class ClusterStudy(Study):
    """A study on the fake GPUs of a cluster, with the stub unless it ``trains``."""

    def __init__(
        self, backend: str, folder: Path, *settings: str, trains: bool, env: Mapping[str, str], **grid: Any
    ) -> None:
        table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in {"SEQLM_DEVICE": "cpu", **env}.items())
        head = "\n".join([f'backend = "{backend}"', f"[backend.{backend}]", f"env = {{{table}}}", *settings, ""])
        super().__init__(folder, stub=not trains, head=head, **{"ranks": 1, "gpus": 1, "cpus": 1, **grid})
        hostile.put_modules(folder)


class SlurmStudy(ClusterStudy):
    """A study on a test cluster of SLURM."""

    def __init__(
        self,
        cluster: LoopbackCluster,
        folder: Path,
        *,
        trains: bool = False,
        env: Mapping[str, str] | None = None,
        timeout_min: int = 10,
        settings: Sequence[str] = ("ranks_per_node = 1",),
        **grid: Any,
    ) -> None:
        """``settings``: more lines of ``[backend.slurm]``."""
        times = (f"timeout_min = {timeout_min}", "signal_before_s = 20", "progress_s = 0.5")
        super().__init__("slurm", folder, *times, *settings, trains=trains, env=env or {}, **grid)
        self.env = {**cluster.env, "SEQLM_BACKEND": ""}


class RayStudy(ClusterStudy):
    """A study in a lab of Ray."""

    def __init__(
        self,
        lab: RayLab,
        folder: Path,
        *,
        trains: bool = False,
        env: Mapping[str, str] | None = None,
        epochs: int = 2,
        **grid: Any,
    ) -> None:
        # What never ends by itself leaves the processor to others from its second epoch on.
        crawl = Crawl(folder, epochs=1).env if epochs >= 1000 else {}
        super().__init__("ray", folder, trains=trains, env={**crawl, **(env or {})}, epochs=epochs, **grid)
        self.lab = lab
        self.env = lab.env

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.lab.run(self.command(*words), cwd=self.folder, **options)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return self.lab.start(self.command(*words), cwd=self.folder, **options)


def epochs_of(run: RunDirectory) -> list[int]:
    return [record["epoch"] for record in run.read_metrics()[0]]


def read_soon(path: Path) -> dict[str, Any]:
    """What a process writes down that has only just started: a run is called running before its worker is so far."""

    def read() -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):  # not written, or written halfway
            return {}

    return wait_for(read, f"the content of {path}")


def worker_of(run: RunDirectory, rank: int = 0) -> dict[str, Any]:
    """What a rank of the newest attempt has written of itself."""
    return read_soon(run.worker_file(run.last_attempt(), rank))


def worker_pid(run: RunDirectory) -> int:
    return wait_for(lambda: newest_lease(run.lease_dir).pid, "a worker") or 0
