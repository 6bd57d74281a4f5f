"""Links in the places of a study: what is behind them is neither read nor changed, and no run starts there."""

import json
import os
from pathlib import Path

import pytest

from jobs.launch.prepare import plan_runs
from jobs.study.folder import observe_study
from seqlm.errors import FileError
from seqlm.files import delete, make_directory, rename, write_new, write_once, write_text
from seqlm.reading import below, confine, exists, listed, read_bytes, status
from seqlm.training import attempt, worker
from tests.seqlm.training.studies import make_config, make_run
from tests.seqlm.training.studies import write_text as write_corpus
from tests.trust import planted


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_what_is_behind_a_link_in_a_study_is_neither_read_nor_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for what, study_dir, ids in planted.planted_studies(tmp_path, planted.link):
        before, exported = planted.digests(tmp_path / "outside"), tmp_path / f"exported-{study_dir.parent.name}"
        draws = what == planted.OF_RUNS or what.startswith("report")
        for answer in planted.ask_all(study_dir, tmp_path / "template", exported, capsys, draws=draws):
            told = f"{what}: {answer}"
            assert answer.code in (0, 1, 2), told
            assert planted.SECRET not in answer.out + answer.err, told
            assert "Traceback" not in answer.err, told
            if answer.words[0] == "status" and answer.words[-1] == "--json" and answer.code == 0:
                listed = {run["id"] for run in json.loads(answer.out)["data"]["runs"]}
                assert listed == set(ids), f"{what}: a run that is listed no more would start again"
        assert planted.digests(tmp_path / "outside") == before, what
        assert [*planted.holds(study_dir, planted.SECRET), *planted.holds(exported, planted.SECRET)] == [], what


@pytest.mark.parametrize("folder", [".", "attempts", "checkpoints"])
def test_a_run_behind_a_link_is_left_alone_by_a_launch_and_the_others_are_not(tmp_path: Path, folder: str) -> None:
    study_dir, outside = tmp_path / "small", tmp_path / "outside"
    linked, other = (planted.add_run(study_dir, seed, "interrupted") for seed in (0, 1))
    planted.add_records(study_dir, [linked, other])
    specs = [one.to_spec() for one in observe_study(study_dir)]
    planted.link(linked.path / folder, outside)
    confine(study_dir)
    planned = {item.run.id: item for item in plan_runs(specs, study_dir, retry=True)}
    assert {run_id: item.action for run_id, item in planned.items()} == {linked.id: "skip", other.id: "resume"}
    assert "found a link" in str(planned[linked.id].reason)


@pytest.mark.parametrize("folder", ["attempts", "checkpoints", "lease"])
def test_a_worker_writes_nothing_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    monkeypatch.setenv("SEQLM_DATA", str(write_corpus(tmp_path / "text")))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    monkeypatch.setattr(attempt.StopSignal, "install", lambda self: None)  # the handlers of this process stay
    run = make_run(tmp_path / "study" / "run", make_config(epochs=1))
    (run.path / folder).mkdir(exist_ok=True)
    planted.link(run.path / folder, tmp_path / "outside")
    before = planted.digests(tmp_path / "outside")
    assert worker.main([str(run.path)]) != 0
    assert "found a link" in capsys.readouterr().err
    assert planted.digests(tmp_path / "outside") == before


def refused(path: Path) -> None:
    """Check that everything which can be done with a path is refused."""
    for act in (exists, status, listed, below, read_bytes, delete, make_directory):
        with pytest.raises(FileError, match="found a link"):
            act(path)
    for write in (write_new, write_once):
        with pytest.raises(FileError, match="found a link"):
            write(path, b"")
    with pytest.raises(FileError, match="found a link"):
        write_text(path, "")


def test_below_a_study_no_folder_on_the_way_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch" / "study" / "run" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to("scratch")
    (tmp_path / "outside" / "file").parent.mkdir()
    (tmp_path / "outside" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    study = Path("runs", "study")
    confine(study)
    write_text(study / "run" / "deep" / "file", "ours")
    assert read_bytes(study / "run" / "deep" / "file") == b"ours", "a link above the study is followed"
    (study / "run" / "link").symlink_to(tmp_path / "outside")
    for place in (study, tmp_path / study, (tmp_path / study).resolve()):
        for path in ("run/link/file", "run/link/new", "run/link/inner/new"):
            refused(place / path)
        with pytest.raises(FileError, match="found a link"):
            rename(place / "run" / "deep", place / "run" / "link" / "deep")
        with pytest.raises(FileError, match="found a link"):
            listed(place / "run" / "link")
        with pytest.raises(FileError, match=r"without \.\."):
            read_bytes(place / "run" / ".." / ".." / "other")
    delete(study / "run" / "link")
    assert (tmp_path / "outside" / "file").read_text() == "mine"
    assert listed(study / "run") == [study / "run" / "deep"]
