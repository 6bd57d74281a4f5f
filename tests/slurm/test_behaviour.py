"""Behaviour jobs as jobs of SLURM: what is submitted, with fake programs, and what comes of it, with the real ones."""

import json
from pathlib import Path

import pytest

import launch
from jobs.scheduled.job import Signals, run_job
from jobs.scheduled.slot import OVER, Start
from jobs.scheduled.submission import JobPlan
from jobs.study.kept_code import live_code
from seqlm.files import write_json
from seqlm.rundir import RunDirectory, study_record_file
from seqlm.trust import record_launch, table_digest
from slurm.backend import SlurmBackend
from slurm.scheduler import Slurm
from slurm.settings import SlurmSettings
from tests.end_to_end.test_launch_behaviour import STAND_IN, finished_runs
from tests.fake_slurm import FakeSlurm

pytestmark = pytest.mark.process


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake").on_path(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return fake


def test_an_array_of_behaviour_jobs_runs_their_module_and_is_submitted_once(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.launch.behaviour.WORKER", STAND_IN)
    monkeypatch.setattr("jobs.study.kept_code.KEPT", ("--",))  # with the tests, which the substitute is one of
    runs = finished_runs(tmp_path)
    study_dir = tmp_path / "runs" / "small"
    backends = {"slurm": {"timeout_min": 7}}  # of the launch of the runs
    write_json(study_record_file(study_dir), {"backend": backends})
    record_launch(study_dir, {table_digest("backend", backends)})
    words = ["behaviour", "small", "--backend", "slurm", "--no-wait", "--json"]
    assert launch.main(words) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"study": "small/behaviour", "jobs": ["1"]}
    first = fake.jobs()["1_0"]
    assert first.options["job-name"] == "seqlm-small-behaviour"
    assert first.options["time"] == "7"
    assert f"{study_dir}/code/" in first.script

    jobs = [RunDirectory(study_dir / "behaviour" / runs[name].id) for name in ("rnn-b", "gru")]
    plan = JobPlan.read(study_dir / "behaviour/launches/000001/batch.json")
    assert plan.study.worker == ("-m", STAND_IN)
    assert sorted(plan.arrays[0].runs) == sorted(job.id for job in jobs)
    assert launch.main(words) == 0
    assert json.loads(capsys.readouterr().out)["data"]["jobs"] == []
    assert len(fake.calls("sbatch")) == 1

    for index in range(2):
        env = {"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": str(index)}
        place = Slurm().allocation({**env, "CUDA_VISIBLE_DEVICES": "0"})
        start = Start(plan.folder / f"job-0-{index}" / "1")
        start.folder.mkdir(parents=True)
        run_job(plan, 0, place, Signals(), start)
        assert start.folder.with_name(OVER).read_text() == "0\n"
    capsys.readouterr()
    assert all(job.observe().state == "done" for job in jobs)
    assert all(runs[name].behaviour_file.exists() for name in ("rnn-b", "gru"))
    assert launch.main(words) == 0
    assert [run["reason"] for run in json.loads(capsys.readouterr().out)["data"]["runs"]] == ["up to date"] * 2


@pytest.mark.parametrize(("behaviour", "second"), [(None, [""]), (True, [" --behaviour"]), (False, [])])
def test_the_reports_job_writes_it_before_it_computes_what_may_take_too_long(
    fake: FakeSlurm, tmp_path: Path, behaviour: bool | None, second: list[str]
) -> None:
    (tmp_path / "small").mkdir()
    code, settings = live_code(), SlurmSettings(timeout_min=90)
    SlurmBackend(settings).submit_last(
        tmp_path / "small", tmp_path / "small", ["7"], code, message=False, report=True, behaviour=behaviour
    )
    script = (tmp_path / "small/last.sh").read_text().splitlines()
    assert {
        "#SBATCH --dependency=afterany:7",
        "#SBATCH --job-name=seqlm-small-last",
        f"#SBATCH --output={tmp_path / 'small/last.log'}",
        f"#SBATCH --time={90 if second else 30}",
        "unset SLURM_JWT",
    } <= {*script}
    written = [line.partition("launch report ")[2] for line in script if "report " in line]
    assert written == [f"{tmp_path / 'small'}{flag}" for flag in (" --no-behaviour", *second)]
    assert len(fake.calls("sbatch")) == 1
