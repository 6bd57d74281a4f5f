"""How many cores a run gets when it goes on. Sums on a CPU are rounded in an order that follows from the threads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.launch.prepare import plan_runs, resolve_resources
from jobs.spec import RunSpec
from seqlm import machine
from seqlm.files import write_json, write_json_lines
from seqlm.machine import Gpu
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from slurm.backend import SlurmBackend
from slurm.settings import SlurmSettings
from slurm.site import NodeKind, Site
from tests.facts import make_folder
from tests.seqlm.training.studies import make_config


def local() -> Backend:
    return LocalBackend()


def cluster() -> Backend:
    target = SlurmBackend(SlurmSettings())
    kind = NodeKind(count=2, cpus=8, gpus=0, memory_mb=4000)
    target.__dict__["_site"] = Site(name="main", time_limit_min=None, max_nodes=None, kinds=(kind,))
    return target


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "gpus", list)


def begun(study_dir: Path, seed: int, *, epochs: int = 2, worker: dict[str, Any] | None = None) -> RunSpec:
    """A run of which ``epochs`` of two are trained; the attempt that saved them left ``worker`` as its record."""
    spec = RunSpec(name=f"run-{seed}", config=replace(make_config(epochs=2), seed=seed))
    run = make_folder(study_dir, spec)
    write_json_lines(run.metrics_file, [{"epoch": number, "val_ppl": 9.0} for number in range(epochs)])
    run.last_checkpoint.touch()
    run.attempt_dir(1).mkdir(parents=True)
    write_json(run.worker_file(1), {"threads": 1, "gpus": 0, **(worker or {})})
    write_json(run.position_file, {"epoch": epochs, "step": 0, "attempt": 1})
    if epochs == 2:
        write_json(run.result_file, {"epochs": 2, "best_val_ppl": 9.0})
    return spec


def cores(study_dir: Path, specs: list[RunSpec], target: Backend) -> list[int | None]:
    planned = resolve_resources(plan_runs(specs, study_dir), target, None)
    assert all(item.action in ("resume", "extend") for item in planned)
    return [item.spec.resources.cpus for item in planned]


def test_the_last_runs_of_a_study_keep_their_threads_and_so_does_an_extension(tmp_path: Path) -> None:
    two = [begun(tmp_path, seed, epochs=1) for seed in range(2)]
    assert cores(tmp_path, two, local()) == [1, 1], "eight ran at once when they began"
    done = [begun(tmp_path, 9)]
    assert cores(tmp_path, [replace(spec, config=spec.config.with_epochs(3)) for spec in done], local()) == [1]


def test_a_run_keeps_its_threads_on_another_backend(tmp_path: Path) -> None:
    four = begun(tmp_path, 1, epochs=1, worker={"threads": 4})
    assert cores(tmp_path, [four], cluster()) == [4], "a job without GPUs gets one core otherwise"


def test_cores_that_the_launch_asks_for_win(tmp_path: Path) -> None:
    spec = replace(begun(tmp_path, 1, epochs=1), resources=Resources(cpus=3))
    assert cores(tmp_path, [spec], local()) == [3]


def test_the_attempt_that_saved_counts_and_not_one_that_saved_nothing(tmp_path: Path) -> None:
    spec = begun(tmp_path, 1, epochs=1, worker={"threads": 2})
    run = RunDirectory.locate(tmp_path, spec.name, spec.fingerprint)
    run.attempt_dir(2).mkdir()
    write_json(run.worker_file(2), {"threads": 8, "gpus": 0})
    assert cores(tmp_path, [spec], local()) == [2]


@pytest.mark.parametrize(
    "worker", [{"threads": 16}, {"threads": 4, "gpus": 1.0}, {"threads": "many"}, {"threads": True}, {"threads": 0}]
)
def test_a_share_of_the_machine_where_nothing_can_be_kept(tmp_path: Path, worker: dict[str, Any]) -> None:
    assert cores(tmp_path, [begun(tmp_path, 1, epochs=1, worker=worker)], local()) == [8]


def test_a_run_that_now_gets_a_gpu_gets_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("GPU-aa", "Card")])
    assert cores(tmp_path, [begun(tmp_path, 1, epochs=1)], local()) == [8]
