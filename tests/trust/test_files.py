"""What is written obeys the user's umask and follows no link out of the run's folder."""

import json
import os
import stat
import struct
from pathlib import Path

import pytest

from jobs.study.kept_code import live_code
from seqlm.files import append_to, write_json
from seqlm.rundir import RunDirectory
from slurm import backend
from tests import commands
from tests.crawl import blank_figures
from tests.fake_slurm import FakeSlurm
from tests.seqlm.training.studies import runs_in
from tests.small_study import Study


def modes(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*") if not path.is_symlink()}


@pytest.mark.process
@pytest.mark.parametrize(("umask", "words"), [(0o077, ["--report", "--no-behaviour"]), (0o022, [])], ids=["077", "022"])
def test_a_study_is_as_closed_to_others_as_the_umask_says(tmp_path: Path, umask: int, words: list[str]) -> None:
    study = Study(tmp_path, epochs=1, stub=True)
    argv = study.command("run", "small.toml", *words)
    done = commands.run(argv, cwd=tmp_path, umask=umask, env={**os.environ, **blank_figures()})
    assert done.returncode == 0, done.stderr
    found = modes(tmp_path / "runs")
    assert len(found) > 25
    assert {path: oct(mode) for path, mode in found.items() if mode & umask} == {}


def give_default_acl(folder: Path, *, uid: int) -> None:
    """Have a user read and write what is made in the folder from now on, as ``setfacl -d -m u:UID:rwx`` does."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 7, nobody), (0x02, 7, uid), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_default", packed)
    except OSError as error:
        pytest.skip(f"no ACLs in {folder}: {error}")


def test_a_default_acl_of_the_folder_decides_over_the_umask(tmp_path: Path) -> None:
    give_default_acl(tmp_path, uid=4711)
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(before)
    # Where there is an ACL, the bits of the group are its mask: the most that any named user gets.
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o660


@pytest.mark.process
def test_links_in_a_runs_folder_are_replaced_and_their_targets_are_not_written(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=1, stub=True)
    assert study("plan", "small.toml").returncode == 0
    folder = next(iter(_planned(study)))
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder.path / "checkpoints").mkdir(parents=True)
    planted = [folder.last_checkpoint, folder.best_checkpoint, folder.metrics_file, folder.result_file]
    planted += [folder.config_file, folder.provenance_file]
    for path in planted:
        path.symlink_to(outside / path.name)
    done = study("run", "small.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in planted if path.is_symlink() or not path.is_file()] == []
    assert list(outside.iterdir()) == []


def _planned(study: Study) -> list[RunDirectory]:
    """The run's folder as a launch would call it: taken from a launch in another place."""
    assert study("run", "small.toml", "--runs-dir", "first", "--set", "train.epochs=1").returncode == 0
    (run,) = runs_in(study.folder / "first" / "small")
    return [RunDirectory(study.folder / "runs" / "small" / run.id)]


def test_a_log_that_is_a_link_is_replaced_and_one_that_is_a_file_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    log = tmp_path / "stdout.log"
    log.symlink_to(target)
    for word in (b"first ", b"second"):
        with append_to(log) as output:
            output.write(word)
    assert not log.is_symlink()
    assert log.read_text() == "first second"
    assert target.read_text() == "precious"


@pytest.mark.process
def test_a_study_may_lie_behind_a_link(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=1, stub=True)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    assert study("run", "small.toml").returncode == 0
    assert RunDirectory.any_in(tmp_path / "scratch" / "small")
    assert study("status", "small").returncode == 0


def test_no_link_that_waits_where_a_file_is_written_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    for name in (".progress.json.tmp", "progress.json"):
        (tmp_path / name).symlink_to(target)
    write_json(tmp_path / "progress.json", {"steps": 2}, sync=False)
    assert target.read_text() == "precious"
    assert not (tmp_path / "progress.json").is_symlink()
    assert json.loads((tmp_path / "progress.json").read_text())["steps"] == 2


@pytest.mark.process
def test_no_link_that_waits_where_the_script_of_the_report_is_written_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "0002").mkdir()
    (tmp_path / "0002" / "last.sh").symlink_to(target)
    backend.SlurmBackend().submit_last(
        tmp_path / "study", tmp_path / "0002", ["1"], live_code(), message=False, report=True
    )
    assert target.read_text() == "precious"
    assert "launch report" in slurm.jobs()["1"].script
