"""Behaviour jobs on a Ray cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from seqlm.rundir import RunDirectory
from tests.end_to_end.test_launch_behaviour import LAUNCHER, STAND_IN, finished_runs
from tests.facts import start_of
from tests.ray_lab import ROOT, RayLab

pytestmark = pytest.mark.process


def test_a_node_of_a_cluster_computes_the_behaviour_of_a_model(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ray_cluster.env, "PYTHONPATH", str(ROOT))
    runs = finished_runs(tmp_path)
    words = ["behaviour", "small", "--json", "--samples", "3"]
    answer = ray_cluster.run([sys.executable, "-c", LAUNCHER, *words], cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    found = {run["name"]: run["state"] for run in json.loads(answer.stdout)["data"]["runs"]}
    assert found == {"rnn-b": "done", "gru": "done"}
    job = RunDirectory(tmp_path / "runs/small/behaviour" / runs["gru"].id)
    record = start_of(job)
    assert (record["backend"], record["argv"][1:3]) == ("ray", ["-m", STAND_IN])
    assert (job.read_result() or {})["settings"]["samples"] == 3
    assert runs["gru"].behaviour_file.exists()
