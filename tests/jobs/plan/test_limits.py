"""Limits that fit: what earlier runs used, and what is asked for."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.plan.limits import advice, fitting, more_memory_gb
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.files import write_json, write_json_lines
from seqlm.records.attempts import Exit, RankEnd, Start
from seqlm.records.batch import Limits
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.fakes import make_fresh
from tests.seqlm.training.studies import make_config

PAIR = Resources(ranks=2, cpus=1, gpus=1)
MOST = Limits(timeout_min=240, mem_gb=64)
DIGEST = "a" * 64


def trained(
    folder: Path,
    seed: int,
    *,
    seconds: float = 60,
    gigabytes: float = 2,
    config: RunConfig | None = None,
    resources: Resources = PAIR,
    backend: str = "slurm",
    partition: str = "gpu",
    device: str = "A100",
    epochs: int = 10,
) -> RunDirectory:
    """A run of two ranks on one node that has trained, on a cluster."""
    spec = RunSpec(name=f"run{seed}", config=config or make_config(seed=seed), resources=resources)
    run = make_fresh(folder, spec).run
    records = [
        {"epoch": n, "val_ppl": 9.0, "attempt": 1, "phases": {"step": seconds, **({"start_up": 30.0} if not n else {})}}
        for n in range(epochs)
    ]
    write_json_lines(run.metrics_file, records)
    run.attempt_dir(1).mkdir(parents=True)
    Start(backend=backend, resources=resources).write(run.attempt_dir(1))
    environment = {"packages": {}, "variables": {"SLURM_JOB_PARTITION": partition}}
    run.environment(DIGEST).parent.mkdir(exist_ok=True)
    write_json(run.environment(DIGEST), environment)
    for rank in range(resources.ranks):
        used = {"seconds": 700.0, "cpu_seconds": 700.0, "peak_resident_bytes": gigabytes * 2**30}
        record = {"node": "n1", "device": device, "environment": DIGEST, "resources": used}
        write_json(run.worker_file(1, rank), record)
    return run


def planned(folder: Path, *, epochs: int = 20, resources: Resources = PAIR) -> PlannedRun:
    """A run like those that :func:`trained` makes, of another study."""
    return make_fresh(folder / "new", RunSpec(name="x", config=make_config(seed=9, epochs=epochs), resources=resources))


def is_there(variables: Mapping[str, str]) -> bool:
    return variables.get("SLURM_JOB_PARTITION") == "gpu"


def asked(folder: Path, item: PlannedRun, *, save: float = 120, runs: int = 1) -> Limits | None:
    """What the job of a run asks for. ``None``: nothing is known of runs like it."""
    found = fitting(folder, [item], "slurm", is_there, MOST, save_seconds=save, sharing=lambda _: runs)
    return found.get(item.run.id)


def test_a_run_asks_for_the_time_of_its_epochs_and_three_that_agree_set_its_memory(tmp_path: Path) -> None:
    item, found = planned(tmp_path), []
    for seed in range(3):
        trained(tmp_path / "old", seed, gigabytes=2 + 0.1 * seed)
        found.append(asked(tmp_path, item))
    # 1.25 x (30 s + 20 epochs of 60 s), 60 s for the begin and 120 s to save: 28.6 minutes
    assert found == [Limits(timeout_min=30, mem_gb=64)] * 2 + [Limits(timeout_min=30, mem_gb=7)], "1.3 x 4.4 GB, and 1"
    assert asked(tmp_path, item, runs=2) == Limits(timeout_min=30, mem_gb=13), "two runs that share a job"


@pytest.mark.parametrize(
    ("epochs", "seconds", "save", "minutes"),
    [(1, 1, 120, 15), (20, 60, 120, 30), (20, 120, 120, 60), (20, 600, 120, 240), (1, 1, 800, 30)],
)
def test_the_time_is_a_step_and_at_most_that_of_the_settings(
    tmp_path: Path, epochs: int, seconds: float, save: float, minutes: int
) -> None:
    trained(tmp_path / "old", 0, seconds=seconds)
    found = asked(tmp_path, planned(tmp_path, epochs=epochs), save=save)
    assert found == Limits(timeout_min=minutes, mem_gb=64)


def test_what_disagrees_sets_no_memory_and_the_slower_device_the_time(tmp_path: Path) -> None:
    for seed in range(3):
        device = ("A100", "A100", "V100")[seed]
        trained(tmp_path / "old", seed, gigabytes=2 + 2 * seed, device=device, seconds=60 + 60 * (device == "V100"))
    assert asked(tmp_path, planned(tmp_path)) == Limits(timeout_min=60, mem_gb=64)


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "ray"},
        {"partition": "old"},
        {"resources": replace(PAIR, ranks=1)},
        {"resources": replace(PAIR, gpus=0)},
        {"config": make_config(hidden_size=17)},
        {"config": make_config(batch_size=9)},
    ],
    ids=str,
)
def test_runs_on_other_devices_with_other_ranks_or_of_other_models_set_no_limit(
    tmp_path: Path, other: dict[str, object]
) -> None:
    trained(tmp_path / "old", 0, **other)  # type: ignore[arg-type]
    assert asked(tmp_path, planned(tmp_path)) is None


def test_a_line_of_advice_where_less_than_half_was_used() -> None:
    small, large = Limits(timeout_min=30, mem_gb=8), Limits(timeout_min=120, mem_gb=40)
    assert advice([], MOST) is None
    assert advice([small, large], MOST) is None
    line = advice([small, replace(small, timeout_min=60)], MOST) or ""
    assert all(part in line for part in ("60 of timeout_min = 240", "8 of mem_gb = 64", "fit_limits")), line
    assert "mem_gb" not in (advice([small], Limits(timeout_min=240)) or "")


def test_only_a_kill_for_the_memory_of_a_node_on_a_gpu_asks_for_more_of_it(tmp_path: Path) -> None:
    gpu, cpu = (trained(tmp_path, seed, resources=Resources(gpus=1 - seed)) for seed in (0, 1))
    for run in (gpu, cpu):
        Start(resources=Resources(gpus=float(run is gpu)), memory_mb=2048).write(run.attempt_dir(1))
        run.write_exit(1, Exit(kind="oom", message="killed"))
    assert [more_memory_gb(run) for run in (gpu, cpu)] == [3.0, 0.0]
    own = trained(tmp_path, 2)
    own.write_end(1, RankEnd(kind="oom", message="CUDA out of memory"))
    assert more_memory_gb(own) == 0.0


@pytest.mark.parametrize("value", [1e308, 1e60, 2**62, -1, -1e60])
def test_times_and_memory_that_no_machine_has_are_passed_over(tmp_path: Path, value: float) -> None:
    item = planned(tmp_path)
    for seed in range(3):
        trained(tmp_path / "old", seed)
    usual = asked(tmp_path, item)
    for seed in range(3, 6):
        trained(tmp_path / "odd", seed, seconds=value, gigabytes=value)
    assert asked(tmp_path, item) == usual


def test_what_another_users_runs_took_limits_none_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = planned(tmp_path)
    trained(tmp_path / "old", 1)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert asked(tmp_path, item) is None
