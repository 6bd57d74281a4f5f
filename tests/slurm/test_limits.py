"""Jobs that ask for what earlier ones took, on a real SLURM."""

import json
from pathlib import Path

import pytest

from jobs.study.folder import read_jobs
from slurm.site import read_minutes
from slurm.testcluster import LoopbackCluster
from tests.crawl import Crawl
from tests.small_study import SlurmStudy, epochs_of

pytestmark = pytest.mark.process


def test_a_grid_of_short_and_long_runs_asks_for_less_than_half_and_loses_no_epoch(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=0, step_seconds=0.3)
    study = SlurmStudy(slurm_cluster, tmp_path, trains=True, timeout_min=120, epochs=2, gpus=0, env=crawl.env)
    study.manifest.write_text(study.manifest.read_text().replace("timeout_min", "fit_limits = true\ntimeout_min"))
    first = study("run", "small.toml")
    assert first.returncode == 0, first.stderr
    (known,) = study.runs()
    seconds = [record["epoch_seconds"] for record in known.read_metrics()[0]]
    crawl.end()
    study.add(rates=[0.02, 0.03], gpus=0, cpus=1)
    long = round(1000 / max(seconds))
    values = {"name": "long", "model.arch": "rnn", "optim.optimizer": "adam", "optim.lr": 0.04, "train.epochs": long}
    values |= {"resources.gpus": 0, "resources.cpus": 1}
    study.write("[[run]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    again = study("run", "small.toml")
    assert again.returncode == 0, again.stderr
    limits = slurm_cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%l").stdout.split()
    asked = {job: read_minutes(limit) for job, _, limit in (line.partition("|") for line in limits)}
    minutes = [asked[read_jobs(tmp_path / "runs/small")[run.id].id] for run in study.runs()]
    assert minutes == [120, 15, 15, 30], "what nothing like it has shown before, then 2 epochs and many"
    assert sum(minutes[1:]) <= 3 * 120 / 2
    assert study.each() == ["done"] * 4
    assert [epochs_of(run) for run in study.runs()] == [list(range(2))] * 3 + [list(range(long))]
