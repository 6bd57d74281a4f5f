"""Audits as jobs of SLURM."""

import json
from pathlib import Path

import pytest

from slurm.testcluster import LoopbackCluster
from tests.small_study import SlurmStudy

pytestmark = pytest.mark.process


def test_an_audit_runs_with_a_low_priority_on_other_nodes_than_the_run(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    study = SlurmStudy(slurm_cluster, tmp_path, epochs=1, gpus=0, trains=True)
    assert study("run", "small.toml").returncode == 0
    done = study("audit", "small", "--backend", "slurm", "--share", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(done.stdout)["data"]["runs"]
    found = {one["part"]: one for one in run["findings"]}
    assert {part: one["verdict"] for part, one in found.items()} == {
        "records": "equal",
        "scores": "equal",
        "epoch 1": "equal",
    }
    nodes = (found["epoch 1"]["node"], found["epoch 1"]["trained_on"])
    assert set(nodes) <= set(slurm_cluster.node_names)
    assert nodes[0] != nodes[1]
    scripts = [path.read_text() for path in (tmp_path / "runs" / "small" / "audits").rglob("*.sh")]
    assert scripts
    assert all("--nice=10000" in script for script in scripts)
