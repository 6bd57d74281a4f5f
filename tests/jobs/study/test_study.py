import io
import os
from pathlib import Path

import pytest

from jobs.cli.studying import print_log
from jobs.launch.prepare import launch_record, run_record
from jobs.manifests.filters import select
from jobs.spec import RunSpec
from jobs.study.folder import (
    ObservedRun,
    find_study,
    launching,
    observe_study,
    write_queue,
)
from jobs.study.kept_code import Code
from seqlm.errors import FileError, UsageError
from seqlm.files import write_json
from seqlm.records.batch import Batch
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.facts import fail
from tests.seqlm.training.studies import make_config


def make_study(folder: Path, *seeds: int) -> list[RunDirectory]:
    runs = []
    for order, seed in enumerate(seeds):
        spec = RunSpec(
            name=f"run{seed}",
            config=make_config(seed=seed),
            resources=Resources(ranks=2),
            order=order,
            data_path=Path("/text"),
            command=["python", "launch.py"],
        )
        run = RunDirectory.locate(folder, spec.name, spec.fingerprint)
        code = Code(path=Path("/code"), commit="c" * 40, dirty=True, live=False)
        run.create(spec.config, run_record(spec).of_launch(launch_record(folder.name, code)))
        runs.append(run)
    return runs


def test_a_study_is_found_by_folder_manifest_and_name(tmp_path: Path) -> None:
    make_study(tmp_path / "runs" / "mine", 1)
    (tmp_path / "m.toml").write_text(
        '[study]\nname = "mine"\n[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\n'
        'optim.optimizer = "sgd"\noptim.lr = 1\n'
    )
    runs_dir = tmp_path / "runs"
    for argument in (str(runs_dir / "mine"), str(tmp_path / "m.toml"), "mine"):
        assert find_study(argument, runs_dir) == runs_dir / "mine"
    with pytest.raises(UsageError, match=r"\(found: mine\)"):
        find_study("other", runs_dir)
    with pytest.raises(FileError, match=r"cannot read x+: File name too long"):
        find_study(300 * "x", runs_dir)


def test_a_folder_that_only_has_the_name_of_a_study_is_not_mistaken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match=r"mine: expected .* study's folder, found no runs in it"):
        find_study("mine", Path("runs"))
    make_study(tmp_path / "runs" / "mine", 1)
    assert find_study("mine", Path("runs")) == Path("runs/mine")


def test_the_record_of_a_run_counts_its_epochs(tmp_path: Path) -> None:
    begun, fresh, broken = make_study(tmp_path / "s", 1, 2, 3)
    begun.metrics_file.write_text('{"epoch": 0, "val_ppl": 9}\n{"epoch": 1, "val_ppl": 8}\n')
    broken.config_file.write_text("{")
    records = {run.run.id: run.to_dict() for run in observe_study(tmp_path / "s")}
    counted = {key: [records[run.id][key] for run in (begun, fresh, broken)] for key in ("epoch", "epochs_done")}
    assert counted == {"epoch": [1, None, None], "epochs_done": [2, 0, None]}
    total = begun.read_config().train.epochs
    assert [records[run.id]["epochs_total"] for run in (begun, fresh, broken)] == [total, total, None]


def test_a_behaviour_job_has_no_epochs(tmp_path: Path) -> None:
    make_study(tmp_path / "s", 1)
    make_study(tmp_path / "s" / "behaviour", 1)
    (record,) = [run.to_dict() for run in observe_study(tmp_path / "s" / "behaviour")]
    assert (record["epochs_done"], record["epochs_total"]) == (None, None)


def test_runs_are_chosen_by_state_and_kind(tmp_path: Path) -> None:
    done, diverged, _ = make_study(tmp_path / "s", 1, 2, 3)
    write_json(done.result_file, {})
    fail(diverged, {"kind": "diverged", "message": "nan"})
    runs = observe_study(tmp_path / "s")
    assert [run.name for run in select(runs, ["state=done"], [], ObservedRun.facts)[0]] == ["run1"]
    assert [run.name for run in select(runs, [], ["kind=diverged"], ObservedRun.facts)[0]] == ["run1", "run3"]
    with pytest.raises(UsageError, match=r'state: expected one of pending, .*, got "fialed"; did you mean "failed"\?'):
        select(runs, ["state=fialed"], [], ObservedRun.facts)


def test_a_run_comes_back_from_its_folder_as_it_was_launched(tmp_path: Path) -> None:
    make_study(tmp_path / "s", 7)
    (observed,) = observe_study(tmp_path / "s")
    spec = observed.to_spec()
    assert (spec.name, spec.config, spec.order, spec.resources) == ("run7", make_config(seed=7), 0, Resources(ranks=2))
    assert (spec.data_path, spec.command) == (Path("/text"), ("python", "launch.py"))


def test_the_runs_in_the_queue_of_a_live_launcher_are_queued_with_the_reason(tmp_path: Path) -> None:
    waiting, other = make_study(tmp_path / "s", 1, 2)
    write_queue(tmp_path / "s", {waiting.id: "needs 2 GPUs, 1 free"})
    assert [run.observation.state for run in observe_study(tmp_path / "s")] == ["pending", "pending"]
    with launching(tmp_path / "s"):
        first, second = (run.observation for run in observe_study(tmp_path / "s"))
    assert (first.state, first.reason) == ("queued", "needs 2 GPUs, 1 free")
    assert second.state == "pending", other.id


def test_who_owns_the_launch_sweeps_what_a_dead_launcher_has_begun(tmp_path: Path) -> None:
    begun = [
        tmp_path / ".queue.json.abc.tmp",
        tmp_path / ".study.json.abc.tmp",
        tmp_path / "launches" / "000001" / f".{Batch.FILE}.abc.tmp",
        tmp_path / "launches" / "000001" / ".array-0.sh.abc.tmp",
        tmp_path / "launches" / "000002" / ".request.json.old.tmp",
        tmp_path / "canary" / "launches" / "000001" / f".{Batch.FILE}.abc.tmp",
        tmp_path / "canary" / "launches" / "000001" / ".submitted.json.old.tmp",
    ]
    kept = [
        tmp_path / "launches" / "000001" / Batch.FILE,
        tmp_path / "launches" / "000001" / ".submitted.json.abc.tmp",  # of a job that starts
        tmp_path / "launches" / "000002" / ".request.json.abc.tmp",  # of a `cancel` that is at work
        tmp_path / "launches" / "000001" / ".withdrawn.json.abc.tmp",  # of a job
    ]
    for path in (*begun, *kept):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x")
        if ".old." in path.name:
            os.utime(path, (0, 0))
    with launching(tmp_path):
        assert not [path for path in begun if path.exists()]
        assert all(path.exists() for path in kept)


def test_a_study_folder_is_read_once_to_find_all_its_runs(tmp_path: Path) -> None:
    runs = make_study(tmp_path / "s", 1, 2)
    folders = RunDirectory.folders(tmp_path / "s")
    assert sorted(folders.values()) == sorted(run.path for run in runs)
    found = RunDirectory.locate(tmp_path / "s", "renamed", make_config(seed=2).fingerprint(), folders)
    assert found == runs[1]


def test_logs_are_those_of_the_latest_attempt(tmp_path: Path) -> None:
    (run,) = make_study(tmp_path / "s", 1)
    (observed,) = observe_study(tmp_path / "s")
    stream = io.StringIO()
    assert print_log(observed, 2, stream)[0]["attempt"] is None
    for attempt in (1, 2):
        run.attempt_dir(attempt).mkdir(parents=True)
        run.stdout_log(attempt).write_text("".join(f"attempt {attempt} line {n}\n" for n in range(5)))
    run.stderr_log(2).write_text("a warning\n")
    record, _ = print_log(observed, 2, stream)
    assert record["stdout"] == ["attempt 2 line 3", "attempt 2 line 4"]
    assert record["stderr"] == ["a warning"]
    assert "stderr: a warning" in stream.getvalue()
