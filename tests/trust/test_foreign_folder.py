"""``report`` on a folder that somebody else may have written: it waits for nothing, follows nothing and stays small."""

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.report import render_markdown, report_page, write_report
from analysis.study.behaviour import LARGEST_LOSSES
from analysis.study.study import load_study
from jobs.attempt.supervisor import cause, ended
from jobs.cli.studying import print_log
from jobs.study.folder import launcher_dir, launcher_of, observe_study
from seqlm.errors import FileError, UsageError
from seqlm.files import file_sha256, read_json, write_json
from seqlm.reading import LARGEST_HASHED, LARGEST_RECORD, LARGEST_TEXT, LISTS
from seqlm.records.attempts import LauncherProcess
from seqlm.records.studies import MAX_RUNS
from seqlm.rundir import RunDirectory
from seqlm.token_losses import read_token_losses
from seqlm.training.checkpoint import load_checkpoint
from tests.analysis.attempt_files import write_attempt
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.synthetic import fail, make_run
from tests.facts import failure_of

SECRET = "of-my-own-file"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of the study ``small`` that has failed, with everything that a report reads."""
    run = make_run(tmp_path / "small", 0, epochs=3, done=False)
    fail(run, "code", "it broke")
    write_attempt(run, 1, start=0.0, end=9.0, alive=8.0)
    run.stderr_log(1).write_text("the last line\n")
    write_json(run.exit_file(1), {"kind": "code"})
    add_behaviour(run)
    add_samples(run, [raw_sample(0, ["the", "cat"])])
    return run


JSON = [
    *("config.json", "provenance.json", "metrics.jsonl", "result.json", "attempts/0001/end.json", "behaviour.json"),
    *("samples.jsonl", "../study.json", "attempts/0001/worker.json", "attempts/0001/progress.json"),
    "attempts/0001/exit.json",
]
LOG = "attempts/0001/stderr.log"
FILES = [*JSON, LOG, "checkpoints/best.pt", "losses.f32"]
"""What a report reads, from the run's folder on."""


def vacate(run: RunDirectory, file: str) -> tuple[Path, str]:
    """The place of a file that is gone, and what warnings call it."""
    path = run.path / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    return path, file.removeprefix("../") if file.startswith("..") else f"{run.id}/{file}"


def link(path: Path) -> str:
    mine = path.parents[2] / "mine"
    mine.write_text(json.dumps({"message": SECRET, "kind": SECRET, "name": SECRET}) + "\n")
    path.symlink_to(mine)
    return "a regular file, found a link"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a regular file, found a pipe"


def huge(path: Path) -> str:
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    lists = path.name in LISTS or path.suffix == ".jsonl"
    kinds = {".pt": LARGEST_HASHED, ".f32": LARGEST_LOSSES}
    most = kinds.get(path.suffix, LARGEST_TEXT if lists else LARGEST_RECORD)
    return f"at most {most:,} bytes, found {2**40:,}"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("plant", [link, pipe, huge])
def test_what_is_there_in_place_of_a_file_is_neither_read_nor_waited_for(
    run: RunDirectory, tmp_path: Path, file: str, plant: Callable[[Path], str]
) -> None:
    path, place = vacate(run, file)
    expected = [f"cannot read {place}: expected {plant(path)}"]
    study = load_study(tmp_path / "small")
    assert study.warnings == ([] if (plant, file) == (huge, LOG) else expected), "of a log the end is read"
    assert SECRET not in repr(study)


@pytest.mark.parametrize("plant", [link, pipe, huge])
def test_what_is_there_in_place_of_the_losses_of_tokens_costs_the_report_them_alone(
    tmp_path: Path, plant: Callable[[Path], str]
) -> None:
    runs = [make_run(tmp_path / "small", order, epochs=2) for order in (0, 3)]
    path, _ = vacate(runs[0], "valid.f32")
    found = plant(path).split(", found ")[1]
    study = load_study(tmp_path / "small")
    page = report_page(study)
    shown = render_markdown(page)
    assert page.sections
    assert SECRET not in shown
    with pytest.raises(FileError, match=f"cannot read {path}: .* found {found}"):
        read_token_losses(runs[0])


def test_no_log_is_read_from_a_folder_behind_a_link(run: RunDirectory, tmp_path: Path) -> None:
    attempt = run.attempt_dir(1)
    attempt.rename(tmp_path / "mine")
    (tmp_path / "mine" / "stderr.log").write_text(SECRET)
    attempt.symlink_to(tmp_path / "mine")
    study = load_study(tmp_path / "small")
    assert study.log_tails == {}
    assert f"{run.id}/attempts/0001: expected a folder, found a link" in "".join(study.warnings)


def test_a_link_to_nothing_is_no_file(run: RunDirectory, tmp_path: Path) -> None:
    for file in ("end.json", "exit.json"):
        vacate(run, f"attempts/0001/{file}")[0].symlink_to(tmp_path / "nowhere")
    assert failure_of(run) is None


@pytest.mark.parametrize("plant", [link, pipe])
def test_a_log_that_is_none_is_neither_shown_nor_told_as_the_cause_of_a_failure(
    run: RunDirectory, tmp_path: Path, plant: Callable[[Path], str]
) -> None:
    path, _ = vacate(run, LOG)
    found = plant(path)
    (observed,) = observe_study(tmp_path / "small")
    shown = io.StringIO()
    with pytest.raises(FileError, match=f"expected {found}"):
        print_log(observed, 10, shown)
    assert SECRET not in shown.getvalue()
    assert cause(ended({0: 1}, 1), path) == ("code", "the worker ended with exit code 1")


def test_pipes_in_place_of_leases_keep_nobody_waiting(run: RunDirectory, tmp_path: Path) -> None:
    run.end_file(1).unlink()
    for folder in (run.lease_dir, launcher_dir(tmp_path / "small")):
        folder.mkdir()
        os.mkfifo(folder / "000001.json")
    assert len(load_study(tmp_path / "small").runs) == 1
    launcher = launcher_of(tmp_path / "small")
    assert launcher is not None, "it may live for as long as the time of its file is recent"
    assert launcher.identity == LauncherProcess()


def test_a_pipe_in_place_of_a_checkpoint_keeps_nobody_waiting(run: RunDirectory) -> None:
    os.mkfifo(run.best_checkpoint)
    with pytest.raises(FileError, match="found a pipe"):
        load_checkpoint(run.best_checkpoint, "f" * 64)


def test_what_is_there_in_place_of_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has few characters
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, kind in {"folder": "a folder", "socket": "a socket", "/dev/zero": "a device"}.items():
            with pytest.raises(FileError, match=f"cannot read {name}: expected a regular file, found {kind}"):
                read_json(Path(name))
            with pytest.raises(FileError, match=f"found {kind}"):
                file_sha256(Path(name))


@pytest.mark.parametrize("file", JSON)
@pytest.mark.parametrize(
    "content",
    ["[" * 10**6, '{"a":' * 900 + "1" + "}" * 900, '{"order": 1' + "0" * 400 + "}"],
    ids=["deep", "900", "long"],
)
def test_deep_json_and_an_endless_number_are_damage(run: RunDirectory, tmp_path: Path, content: str, file: str) -> None:
    path, place = vacate(run, file)
    path.write_text(content)
    (warning,) = load_study(tmp_path / "small").warnings
    assert warning.startswith(f"{place}: line 1 is cut or damaged" if file.endswith("l") else f"{place} is damaged")


@pytest.mark.parametrize("order", [MAX_RUNS, 10**9, -1, 0.5, True, "first", [[]]])
def test_an_impossible_place_in_the_manifest_is_one_warning(tmp_path: Path, order: object) -> None:
    make_run(tmp_path, 0, epochs=2)
    odd = make_run(tmp_path, 1, epochs=2, provenance={"order": order})
    study = load_study(tmp_path)
    assert study.runs["number"].tolist() == [1, 2]
    assert study.absent == []
    (warning,) = study.warnings
    assert warning.startswith(f"{odd.id}/provenance.json")
    assert "order: expected a whole number" in warning


def test_each_damaged_part_of_study_json_is_one_warning(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=2)
    planned = [{"number": number, "name": "far", "fingerprint": f"{number:08x}"} for number in (2, 10**9, 10**12, 0)]
    write_json(tmp_path / "study.json", {"planned": planned, "expectations": [{"metric": "val_ppl", "lower": 7}]})
    far, claim = load_study(tmp_path).warnings
    assert "planned[1].number" in far
    assert "expectations[0]" in claim


def test_epochs_that_no_run_has_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2)
    epochs, _ = run.read_metrics()
    run.metrics_file.write_text("".join(json.dumps({**epoch, "epoch": 2**63 - 1}) + "\n" for epoch in epochs))
    study = load_study(tmp_path)
    assert study.epochs.empty
    assert len(study.warnings) == len(epochs)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_report_that_is_a_link_is_not_replaced(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", 0, epochs=2)
    other = write_report(tmp_path / "mine").parent
    before = (other / "index.html").stat()
    make_run(tmp_path / "small", 0, epochs=2)
    (tmp_path / "small" / "report").symlink_to(other)
    with pytest.raises(UsageError, match=r"small/report is a link, which is not replaced"):
        write_report(tmp_path / "small")
    assert (other / "index.html").stat() == before
