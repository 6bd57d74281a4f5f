"""A job that waits runs the plan and the code of its launch, or nothing: its script has their digests."""

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.scheduled import job
from jobs.scheduled.environment import program_of
from jobs.scheduled.slot import OVER
from jobs.scheduled.submission import JobPlan, plan_sha256
from jobs.study.kept_code import keep_code
from seqlm.files import read_json, write_json
from slurm.settings import SlurmSettings
from tests import commands
from tests.slurm.test_submission import jobs, planned


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
