"""What a launch says of own models whose files have been edited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch.own_models import tell_changes
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import Resources, RunSpec
from seqlm.architectures import CustomConfig
from seqlm.rundir import RunDirectory
from tests.training.studies import make_config


def prepared(folder: Path, seed: int, sha256: str) -> PlannedRun:
    """A run that has its folder and has not started."""
    model = CustomConfig(arch="custom", source="m.py:M", sha256=sha256)
    config = replace(make_config(seed=seed), model=model)
    spec = RunSpec(name=f"run{seed}", config=config, resources=Resources(), order=seed)
    run = RunDirectory.locate(folder, spec.name, spec.fingerprint)
    run.create(config, {"name": spec.name})
    return plan(spec, run, run.observe(), has_checkpoint=False, retry=False)


def test_only_runs_with_another_version_of_the_file_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = [prepared(tmp_path, seed, "b" * 64) for seed in (1, 2)]
    tell_changes(waiting, tmp_path)
    assert capsys.readouterr().err == ""
    prepared(tmp_path, 1, "a" * 64)
    tell_changes(waiting, tmp_path)
    assert "m.py:M has changed since 1 run of this study was launched" in capsys.readouterr().err
