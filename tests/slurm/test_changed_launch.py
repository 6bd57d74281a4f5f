"""A job that waits runs the plan and the code of its launch, or nothing: its script has their digests."""

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch.job import StudySettings
from jobs.manifests.policy import Notify, Policy
from jobs.scheduled import job
from jobs.scheduled.environment import program_of
from jobs.scheduled.slot import OVER
from jobs.scheduled.submission import JobPlan, plan_sha256
from jobs.study.kept_code import keep_code
from seqlm.errors import UsageError
from seqlm.files import read_json, write_json
from seqlm.search import Search
from slurm.settings import SlurmSettings
from tests import commands
from tests.slurm.test_submission import jobs, planned

EARLIER = """{
"options": {"study_dir": "/runs/study", "worker": ["-m", "seqlm.training.worker"], "code_dir": null, "tasks": {}, \
"live_code": true, "retry": false, "max_parallel": null, "policy": {"checkpoint_min": 10, "oom": 3, "timeout": 20, \
"node": null, "preempted": null, "start": 2, "max_stalled_retries": 10, "keep_last": true, "gpu_hours": null, \
"core_hours": null}, "notify": {"command": "mail", "url_env": null, "on": ["over", "failed", "stalled"]}, "search": \
{"rungs": [1, 3], "metric": "val_ppl", "keep": 0.33, "min_runs": 3, "within": [], "final_seeds": 1}, "env": \
{"A": "1"}, "canary": null, "record": null, "request": 7},
"arrays": [{"runs": {"run0-a87195b0": {"ranks": 1, "cpus": 4, "gpus": 1, "gpu_memory_gb": null, "accelerator_type": \
null, "priority": 0}}, "jobs": 1, "nodes": 1, "cpus": 4, "gpus": 1, "accelerator_type": null, "at_once": 1, \
"most_runs": null, "timeout_min": 60, "mem_gb": null, "most": null, "job": "12", "why": ""}],
"code": "/code",
"data": {},
"launched": {"run0-a87195b0": ["a87195b0c84e5aeecfedadef5c3547706e44629a2f6d336041fac845de75c9d9"]},
"signal_before_s": 120,
"must_have_nodes": false,
"scheduler": "slurm",
"grid": null
}
"""
"""``batch.json`` as it was while its options were those of a launch, with ``--live-code``."""
EARLIER_SHA256 = "da95389595536981587c6adc49687bf189d150f28f3519445581160dad47d42c"
"""The digest of it in the script of its jobs."""


def test_jobs_that_an_earlier_version_has_submitted_with_live_code_go_on(tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text(EARLIER)
    plan = JobPlan.read(tmp_path / "batch.json", EARLIER_SHA256)
    notify, search = Notify(command="mail"), Search(rungs=(1, 3))
    assert plan.study == StudySettings(path=Path("/runs/study"), policy=Policy(), notify=notify, search=search)
    assert (plan.env, plan.request, plan.folder) == ({"A": "1"}, 7, Path("/runs/study/launches/000007"))
    with pytest.raises(UsageError, match="has changed since its launch"):
        JobPlan.read(tmp_path / "batch.json", "f" * 64)


@pytest.mark.process
def test_an_archive_that_was_changed_runs_nothing_of_it(tmp_path: Path) -> None:
    archive, marker = keep_code(tmp_path / "study").archive, tmp_path / "ran"
    assert archive is not None
    program = program_of(archive, "launch", SlurmSettings())
    # SLURM starts it in a folder of the study. Python would find its own modules there first.
    (tmp_path / "hashlib.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    answer = commands.run(["bash", "-c", f"{program} --version"], cwd=tmp_path)
    assert (answer.returncode, answer.stdout.split()[0]) == (0, "seqlm"), answer.stderr
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", f"open({str(marker)!r}, 'w').close()\n")
    answer = commands.run(["bash", "-c", f"{program} --version"], cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr == f"error: {archive} has changed since its launch; launch again\n"
    assert not marker.exists()


def test_a_plan_that_was_changed_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = jobs(planned(tmp_path / "study", 2), SlurmSettings(env={"A": "1"}))
    path = tmp_path / "batch.json"
    batch = plan.to_batch()
    batch.write(tmp_path)
    digest = plan_sha256(batch)
    first, *others = plan.arrays
    submitted = replace(plan, arrays=(replace(first, job="12"), *others))
    submitted.to_batch().write(tmp_path)
    assert JobPlan.read(path, digest) == submitted, "the ids of the jobs come after the scripts"
    raw = read_json(path)
    assert raw is not None
    options = raw["options"]
    changes = {
        "options": {**options, "env": {"LD_PRELOAD": "x.so"}},
        "code": "/other",
        "launched": {key: ["f" * 64] for key in raw["launched"]},
    }
    start = tmp_path / "job-0-0" / "1"
    start.mkdir(parents=True)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.setenv(name, "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    for key, value in changes.items():
        write_json(path, {**raw, key: value})
        monkeypatch.setattr(sys, "argv", ["job", "slurm", str(path), digest, "0", str(start), "node"])
        assert job.main() == 0
        assert start.with_name(OVER).read_text() == "2\n", "its script does not put it back"
        assert capsys.readouterr().err == f"error: {path} has changed since its launch; launch again\n"
