"""``list``: the studies under the runs folder, whatever state their folders are in."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.cli.studies import summary
from jobs.study.scheduler import Views
from seqlm.files import read_json, write_json
from seqlm.rundir import RunDirectory
from tests.facts import fail, owned
from tests.fake_slurm import FakeSlurm
from tests.jobs.launch.test_behaviour import done_run
from tests.seqlm.training.studies import make_config, make_run, runs_in
from tests.slurm_jobs import write_jobs

DAY = 86400
NOW = 1_700_000_000.0


def change(study_dir: Path, seconds_ago: float) -> None:
    for run in runs_in(study_dir):
        os.utime(run.path, (NOW - seconds_ago, NOW - seconds_ago))


def unfinished_run(study_dir: Path, name: str, seed: int, failure: str | None = None) -> RunDirectory:
    run = done_run(study_dir, name, 50.0, seed=seed)
    run.result_file.unlink()
    if failure:
        fail(run, {"kind": failure, "message": "bad"})
    return run


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """An old study that is done, and a new one in every state."""
    folder = tmp_path / "runs"
    for seed in range(2):
        done_run(folder / "old", f"run{seed}", 30.0 + seed, seed=seed)
    done_run(folder / "new", "done", 20.0, seed=0)
    unfinished_run(folder / "new", "diverged", 1, "diverged")
    unfinished_run(folder / "new", "stopped", 2, "cancelled")
    pending = unfinished_run(folder / "new", "pending", 3)
    prints = [run.read_config().fingerprint() for run in (*runs_in(folder / "new"), pending)]
    prints = [*dict.fromkeys(prints), "f" * 64]
    planned = [{"number": number, "fingerprint": text} for number, text in enumerate(prints, start=1)]
    write_json(folder / "new" / "study.json", {"planned": planned})
    change(folder / "old", 3 * DAY)
    change(folder / "new", DAY)
    return folder


def listed(capsys: pytest.CaptureFixture[str], runs_dir: Path) -> dict[str, dict[str, Any]]:
    assert launch.main(["list", "--runs-dir", str(runs_dir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    return {study["study"]: study for study in document["data"]["studies"]}


def test_studies_are_listed_by_their_last_change_with_state_and_perplexity(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = listed(capsys, runs_dir)
    assert list(studies) == ["new", "old"]
    assert studies["new"]["states"] == {"failed": 1, "cancelled": 1, "done": 1, "pending": 2}
    assert (studies["new"]["runs"], studies["new"]["best_val_ppl"], studies["new"]["problem"]) == (5, 20.0, None)
    assert studies["new"]["changed_at"] == "2023-11-13T22:13:20+00:00"
    assert (studies["old"]["states"], studies["old"]["best_val_ppl"]) == ({"done": 2}, 30.0)
    change(runs_dir / "old", 0)
    assert list(listed(capsys, runs_dir)) == ["old", "new"]
    with owned(next(run for run in runs_in(runs_dir / "new") if run.id.startswith("pending"))):
        assert listed(capsys, runs_dir)["new"]["states"]["running"] == 1


def test_a_run_that_no_manifest_asks_for_any_more_is_not_counted_as_one_of_the_study(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs_dir / "new" / "study.json"
    planned = [one for one in (read_json(file) or {})["planned"] if one["fingerprint"] != "f" * 64]
    gone = next(run for run in runs_in(runs_dir / "new") if run.id.startswith("diverged")).read_config().fingerprint()
    write_json(file, {"planned": [one for one in planned if one["fingerprint"] != gone]})
    new = listed(capsys, runs_dir)["new"]
    assert (new["runs"], new["states"], new["unplanned"]) == (3, {"cancelled": 1, "done": 1, "pending": 1}, 1)
    assert launch.main(["list", "--runs-dir", str(runs_dir)]) == 0
    assert "1 of 3 done, 1 cancelled, 1 pending; 1 more that no manifest asks for" in capsys.readouterr().out


def test_the_report_of_several_studies_is_no_study(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs_dir / "report").mkdir()
    (runs_dir / "report" / "report.md").touch()
    assert set(listed(capsys, runs_dir)) == {"old", "new"}
    assert launch.main(["status", "nwe", "--runs-dir", str(runs_dir)]) == 2
    offered = capsys.readouterr().err.rpartition("found")[2]
    assert "old" in offered
    assert "report" not in offered


def test_the_table_says_it_in_words(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["list", "--runs-dir", str(runs_dir)]) == 0
    header, new, old = capsys.readouterr().out.splitlines()
    assert header.split() == ["study", "state", "changed", "best", "val", "ppl"]
    assert "1 of 5 done, 1 failed, 1 cancelled, 2 pending" in new
    assert "2023-11-" in old
    assert "30.00" in old


def test_damaged_and_foreign_folders_are_a_line_each_and_hide_no_study(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs_dir / "foreign" / "deep").mkdir(parents=True)
    (runs_dir / ".hidden").mkdir()
    (runs_dir / "file").write_text("x")
    (runs_dir / "loop").symlink_to("loop")
    for name in ("jobs", "record", "result", "config", "provenance"):
        done_run(runs_dir / name, "run", 5.0, seed=0)
    unfinished_run(runs_dir / "jobs", "other", 1)
    request = write_jobs(runs_dir / "jobs", {})
    (request.folder / "request.json").write_text("{")
    (runs_dir / "record" / "study.json").write_text("{")
    runs_in(runs_dir / "result")[0].result_file.write_text("{")
    runs_in(runs_dir / "config")[0].config_file.write_text("{")
    runs_in(runs_dir / "provenance")[0].provenance_file.write_text("{")
    studies = listed(capsys, runs_dir)
    assert set(studies) == {"new", "old", "foreign", "jobs", "record", "result", "config", "provenance"}
    assert set(list(studies)[-2:]) == {"foreign", "jobs"}, "their last change is unknown"
    assert studies["foreign"]["problem"] == "holds no runs"
    for name, file in (("jobs", "launches/000001/request.json"), ("record", "study.json")):
        assert studies[name]["problem"].startswith(f"{runs_dir / name / file} is damaged (not JSON: ")
    assert studies["record"]["states"] == {"done": 1}
    for name in ("result", "config", "provenance"):
        assert (studies[name]["states"], studies[name]["problem"]) == ({"failed": 1}, None), "as status says"
    assert launch.main(["list", "--runs-dir", str(runs_dir)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8


def test_a_folder_that_cannot_be_read_is_a_line(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs_dir / "locked").mkdir()
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    found = summary(runs_dir / "locked", Views())
    assert found["problem"] == f"cannot read {runs_dir / 'locked'}: Permission denied"


def test_without_a_study_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert launch.main(["list", "--runs-dir", str(folder)]) == 0
        assert f"no study in {folder}" in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    assert launch.main(["list", "--runs-dir", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"error: cannot read {tmp_path / 'file'}: Not a directory\n"


@pytest.mark.process
def test_slurm_is_asked_once_about_all_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    for number in range(3):
        run = make_run(tmp_path / "runs" / f"s{number}" / "run-00000001", make_config())
        write_jobs(run.path.parent, {run.id: f"{number + 1}_0"})
    assert [one["states"] for one in listed(capsys, tmp_path / "runs").values()] == [{"pending": 1}] * 3
    assert len(slurm.calls("squeue")) == 1


def test_a_study_without_a_folder_of_a_run_has_the_age_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "planned").mkdir()
    write_json(tmp_path / "planned" / "study.json", {"planned": [{"number": 1, "fingerprint": "a" * 64}]})
    os.utime(tmp_path / "planned" / "study.json", (NOW, NOW))
    found = summary(tmp_path / "planned", Views())
    assert (found["states"], found["runs"]) == ({"pending": 1}, 1)
    assert found["changed_at"] == "2023-11-14T22:13:20+00:00"
