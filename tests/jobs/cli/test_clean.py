"""``clean``: what goes, and what stays whatever somebody has put in its way."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.cli import studies
from jobs.cli.studies import delete_leftovers, find_leftovers
from jobs.study.folder import launching, observe_study
from seqlm.errors import FileError
from seqlm.files import write_json
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.records.runs import Provenance
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from tests import commands
from tests.commands import Ask
from tests.facts import fail, owned
from tests.jobs.launch.test_behaviour import done_run
from tests.seqlm.training.studies import runs_in
from tests.small_study import ROOT


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def make_study(study_dir: Path) -> Path:
    """Two runs that are done and one that is not, with leftovers of every kind."""
    for seed, name in enumerate(("first", "second", "open")):
        run = done_run(study_dir, name, 20.0, seed=seed)
        fill(run.last_checkpoint, 1000)
        write_json(run.position_file, {"epoch": 2, "step": 0})
    run_of(study_dir, "open").result_file.unlink()
    write_json(run_of(study_dir, "open").provenance_file, {"name": "open", "code": {"path": "/x/code/launched"}})
    first = run_of(study_dir, "first")
    canary = RunDirectory.canary(study_dir, first.id)
    canary.create(first.read_config(), Provenance())
    fill(canary.canary_file, 100)
    done_run(study_dir / "behaviour", "first", None, checkpoint=False)
    done_run(study_dir / "audits" / "000001", "first", None, checkpoint=False)
    return study_dir


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "runs" / "small")


def run_of(study_dir: Path, name: str) -> RunDirectory:
    return next(run for run in runs_in(study_dir) if run.id.startswith(name))


def found(study_dir: Path) -> dict[str, list[str]]:
    """Kind -> the paths of this kind, with the names of runs in place of their ids."""
    kinds: dict[str, list[str]] = {}
    for item in find_leftovers(study_dir):
        parts = [part.split("-0")[0] if "-" in part else part for part in item.path.parts]
        kinds.setdefault(item.kind, []).append("/".join(parts))
    return {kind: sorted(paths) for kind, paths in kinds.items()}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not {"launcher", "lease"} & {*path.parts}}


def paths(study_dir: Path, kind: str) -> list[Path]:
    return sorted(study_dir / item.path for item in find_leftovers(study_dir) if item.kind == kind)


# -- what goes -----------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_and_deletes_nothing(study: Path, capsys: pytest.CaptureFixture[str], ask: Ask) -> None:
    before = files(study)
    code, data, _ = ask("clean", str(study), "--dry-run")
    assert (code, data["dry_run"], data["freed_bytes"]) == (0, True, 0)
    assert {item["kind"] for item in data["items"]} == set(studies.KINDS) - {"run"}
    assert files(study) == before
    assert not (study / "launcher").exists()
    assert launch.main(["clean", str(study), "-n"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kind", "path", "size"]
    assert len(lines) == 1 + len(data["items"]) + 1


def test_all_of_it_goes_and_all_else_stays_and_a_second_time_finds_nothing(
    study: Path, capsys: pytest.CaptureFixture[str], ask: Ask
) -> None:
    before = files(study)
    items = find_leftovers(study)
    gone = {path for item in items for path in [study / item.path, *(study / item.path).rglob("*")]}
    code, data, _ = ask("clean", str(study), "--yes")
    assert (code, data["freed_bytes"]) == (0, sum(item.size_bytes for item in items))
    assert files(study) == before - gone
    assert run_of(study, "first").best_checkpoint.is_file()
    assert ask("clean", str(study), "--yes")[1]["items"] == []
    assert launch.main(["clean", str(study)]) == 0
    assert capsys.readouterr().out == "nothing to delete in small\n"


def test_a_cleaned_run_is_as_done_as_before(study: Path, ask: Ask) -> None:
    before = ask("status", str(study))
    ask("clean", str(study), "--yes")
    assert ask("status", str(study)) == before
    assert run_of(study, "first").cannot_go_on(2) is not None
    assert run_of(study, "open").cannot_go_on(2) is None


def test_chosen_runs_go_with_their_results_and_all_else_stays(
    study: Path, capsys: pytest.CaptureFixture[str], ask: Ask
) -> None:
    def there() -> set[Path]:
        """What is in the study, without the temporary files that each launch removes."""
        return {path for path in files(study) if not any(part.endswith(".tmp") for part in path.parts)}

    first, second = (run_of(study, name) for name in ("first", "second"))
    config = second.config_file.read_text()
    fail(first, {"kind": "code", "message": "it fails"})
    first.result_file.unlink()
    own = [folder / first.id for folder in (study, study / "behaviour", study / "canary", study / "audits" / "000001")]
    before = there()
    gone = {path for path in before if any(path.is_relative_to(folder) for folder in own)}
    failed = ("--runs", "--only", "state=failed")
    assert launch.main(["clean", str(study), "--yes", "--runs"]) == 2, "all runs would go"
    assert launch.main(["clean", str(study), "--yes", "--only", "state=failed"]) == 2
    assert launch.main(["clean", str(study), *failed]) == 2, "there is no terminal on which to ask"
    assert "it fails" in capsys.readouterr().out, "shown first"
    assert {item["kind"] for item in ask("clean", str(study), *failed, "--dry-run")[1]["items"]} == {"run"}
    assert there() == before
    assert ask("clean", str(study), *failed, "--yes")[0] == 0
    assert there() == before - gone
    assert ask("clean", str(study), *failed, "--yes")[1]["items"] == []
    second.config_file.write_text("{")
    assert ask("clean", str(study), *failed, "--yes")[1]["items"] == [], "it is done; only a file is damaged"
    second.config_file.write_text(config)
    with owned(second):
        assert launch.main(["clean", str(study), "--runs", "--only", "name=*", "--yes"]) != 0
    assert f"{second.path} is running" in capsys.readouterr().err
    assert there() - {second.lease_dir} == before - gone


def test_a_chosen_run_that_waits_for_its_first_attempt_is_listed_no_more(study: Path, ask: Ask) -> None:
    (run,) = (run for run in runs_in(study) if run.read_provenance().name == "open")
    planned = Folder(config=run.read_config().to_dict(), provenance=Provenance(name="waits"))
    waits = RunDirectory(study / "waits-12345678")
    file_request(
        study, RequestFile(kind="run", runs={waits.id: Wanted(), run.id: Wanted()}), Folders(runs={waits.id: planned})
    )
    chosen = ("--runs", "--only", "name=*[ns]")
    assert len(ask("clean", str(study), *chosen, "--dry-run")[1]["items"]) == 2
    assert ask("clean", str(study), *chosen, "--yes")[0] == 0
    assert {seen.name for seen in observe_study(study)} == {"first", "second"}
    file_request(study, RequestFile(kind="run", runs={waits.id: Wanted()}), Folders(runs={waits.id: planned}))
    assert {seen.name for seen in observe_study(study)} == {"first", "second", "waits"}, "launched again"


# -- what stays ----------------------------------------------------------------------------------------------------


def a_link(run: RunDirectory) -> None:
    outside = fill(run.path.parent.parent / "outside" / "last.pt", 10)
    run.last_checkpoint.unlink()
    run.last_checkpoint.symlink_to(outside)


def a_linked_folder(run: RunDirectory) -> None:
    outside = run.path.parent.parent / "outside"
    shutil.move(run.best_checkpoint.parent, outside)
    run.best_checkpoint.parent.symlink_to(outside)


def a_linked_run(run: RunDirectory) -> None:
    outside = run.path.parent.parent / "outside"
    shutil.move(run.path, outside)
    run.path.symlink_to(outside)


def a_worker_elsewhere(run: RunDirectory) -> None:
    run.lease_dir.mkdir()
    write_json(run.lease_dir / "000001.json", {"host": "elsewhere", "pid": 1, "attempt": 1})


DANGERS: dict[str, Callable[[RunDirectory], object]] = {
    "no best.pt": lambda run: run.best_checkpoint.unlink(),
    "an empty best.pt": lambda run: run.best_checkpoint.write_bytes(b""),
    "a damaged result": lambda run: run.result_file.write_text("{"),
    "a damaged configuration": lambda run: run.config_file.write_text("{"),
    "a link": a_link,
    "a linked folder": a_linked_folder,
    "a linked run": a_linked_run,
    "a live worker of another host": a_worker_elsewhere,
}


@pytest.mark.parametrize("danger", DANGERS.values(), ids=DANGERS)
def test_a_last_checkpoint_stays_that_may_be_needed_or_is_reached_through_a_link(
    study: Path, ask: Ask, danger: Callable[[RunDirectory], object]
) -> None:
    run = run_of(study, "first")
    danger(run)
    before = files(study.parent)
    assert run.last_checkpoint not in paths(study, "last checkpoint")
    ask("clean", str(study), "--yes")
    assert os.path.lexists(run.last_checkpoint)
    assert {path for path in before if "outside" in path.parts} <= files(study.parent)


def test_nothing_of_a_run_goes_while_its_worker_lives(study: Path) -> None:
    run = run_of(study, "first")
    with owned(run):
        left = [study / item.path for item in find_leftovers(study)]
        assert [path for path in left if path.is_relative_to(run.path)] == []
    assert run.last_checkpoint in paths(study, "last checkpoint")


@pytest.mark.process
@pytest.mark.parametrize("folder", ["", "behaviour"])
def test_a_study_that_is_being_launched_is_not_cleaned(study: Path, folder: str) -> None:
    program = (
        "import sys; from pathlib import Path; from jobs.study.folder import launching\n"
        "with launching(Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()"
    )
    holder = commands.start([sys.executable, "-c", program, str(study / folder)], cwd=ROOT, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    before = files(study)
    assert set(found(study)) == {"last checkpoint"}
    answer = commands.run([sys.executable, str(ROOT / "launch.py"), "clean", str(study), "--yes"])
    commands.finish(holder)
    name = f"small/{folder}" if folder else "small"
    assert f"error: study {name} is already being launched; " in answer.stderr
    assert f"(pid {holder.pid} on " in answer.stderr
    assert (answer.returncode, files(study)) == (1, before)


def test_the_study_is_owned_while_it_deletes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delete, held = studies._delete, []

    def look(path: Path) -> str | None:
        for folder in (study, study / "behaviour"):
            with pytest.raises(Exception, match="being launched"), launching(folder):
                pass
            held.append(folder)
        return delete(path)

    monkeypatch.setattr(studies, "_delete", look)
    delete_leftovers(study, find_leftovers(study)[:1])
    assert held == [study, study / "behaviour"]


def test_what_has_come_into_use_since_it_was_shown_stays(study: Path) -> None:
    shown = find_leftovers(study)
    run = run_of(study, "first")
    run.create(run.read_config().with_epochs(50), run.read_provenance())
    run.result_file.unlink()
    outcome = {item.path: item.problem for item in delete_leftovers(study, shown)}
    last = run.last_checkpoint.relative_to(study)
    assert outcome.pop(last) == f"{last} stays: it has come into use meanwhile"
    assert run.last_checkpoint.is_file()
    assert set(outcome.values()) == {None}


def test_a_link_inside_a_deleted_folder_goes_and_what_it_names_stays(study: Path, tmp_path: Path) -> None:
    run, precious = run_of(study, "first"), fill(tmp_path / "outside" / "data", 5)
    (run.path / "data").symlink_to(precious.parent)
    found_here = find_leftovers(study, [run.id])
    assert all(item.problem is None for item in delete_leftovers(study, found_here, [run.id]))
    assert not run.path.exists()
    assert precious.exists()


def test_what_cannot_be_deleted_is_a_line_and_the_rest_goes(
    study: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def refuse(path: Any, *, dir_fd: int | None = None) -> None:
        if Path(path).name == "last.pt":
            raise PermissionError(13, "Permission denied")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    code, data, err = ask("clean", str(study), "--yes")
    first, second = (run_of(study, name).last_checkpoint for name in ("first", "second"))
    assert code == 1
    expected = {f"error: cannot delete {path}: Permission denied" for path in (first, second)}
    assert {line for line in err.splitlines() if line.startswith("error")} == expected
    problems = [item["kind"] for item in data["items"] if item["problem"]]
    assert problems == ["last checkpoint"] * 2
    assert data["freed_bytes"] == sum(item["size_bytes"] for item in data["items"] if not item["problem"])
    assert set(found(study)) == {"last checkpoint"}


# -- other users ---------------------------------------------------------------------------------------------------


def test_another_users_study_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(study)
    monkeypatch.setattr(os, "geteuid", lambda: study.stat().st_uid + 1)
    for word in ("--yes", "--dry-run"):
        assert launch.main(["clean", str(study), word]) == 2
        line = f"error: {study} belongs to another user; clean deletes only in your own studies\n"
        assert capsys.readouterr().err == line
    assert files(study) == before


def test_a_folder_of_behaviour_jobs_or_no_study_gets_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (study / "behaviour", study.parent / "none"):
        assert launch.main(["clean", str(folder), "--yes"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"holds behaviour jobs; expected their study|expected a study's folder", line)
    (file_request(study, RequestFile()).folder / "request.json").write_text("{")
    with pytest.raises(FileError, match=r"request\.json is damaged"):
        find_leftovers(study)
