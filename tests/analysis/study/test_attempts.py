import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.section import Points
from analysis.sections.cost import cost_section
from analysis.study.columns import ATTEMPTS
from analysis.study.study import StudyFiles, load_study
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.reading import moment
from seqlm.records.attempts import Exit
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import at, write_attempt, write_job
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import make_run
from tests.cancelling import cancel


def attempt_of(study: StudyFiles, number: int, attempt: int) -> dict[str, Any]:
    rows = study.attempts[(study.attempts["number"] == number) & (study.attempts["attempt"] == attempt)]
    (row,) = rows.to_dict("records")
    return {str(key): value for key, value in row.items()}


def resumed_run(study_dir: Path) -> RunDirectory:
    """Run 1 of 95 s an epoch: cut off in its third epoch, then done, in two attempts."""
    run = make_run(study_dir, 0, epochs=4)
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**r, "attempt": 1 if r["epoch"] < 2 else 2} for r in records])
    result = read_json(run.result_file) or {}
    write_json(run.result_file, {**result, "attempt": 2, "finished_at": at(999)})
    write_attempt(run, 1, start=0, alive=250)
    write_attempt(run, 2, start=300, end=500)
    return run


def test_a_study_names_the_machines_of_its_attempts_and_not_that_of_its_launcher(tmp_path: Path) -> None:
    launcher = {"devices": ["Login CPU"], "host": "login1"}
    shared, pair = (add_run(tmp_path, n, f"r{n}", "gru", "sgd", [9.0], lr=1.0 + n, provenance=launcher) for n in (0, 1))
    write_attempt(shared, 1, start=0, end=9, gpus=("0",), device="NVIDIA H100")
    write_job(shared, 1, gpus=0.5)
    write_attempt(pair, 1, start=0, end=9, hosts=("n1", "n2"), gpus=("0", "0"), device="NVIDIA H100")
    write_job(pair, 1, ranks=2, gpus=1.0)
    study = load_study(tmp_path)
    assert study.origin["Devices"] == ["NVIDIA H100, 0.5 of it", "NVIDIA H100, 2 ranks"]
    assert study.origin["Hosts"] == ["node07", "n1"]
    assert study.runs["machine"].tolist() == study.origin["Devices"]


def test_a_resumed_run_has_an_interrupted_attempt_and_one_that_is_done(tmp_path: Path) -> None:
    resumed_run(tmp_path)
    study = load_study(tmp_path)
    assert list(study.attempts.columns) == list(ATTEMPTS)
    first, second = attempt_of(study, 1, 1), attempt_of(study, 1, 2)
    assert [first["outcome"], second["outcome"]] == ["interrupted", "done"]
    assert [first["seconds"], second["seconds"]] == [250, 200]
    assert [first["epochs"], second["epochs"]] == [2, 2]
    assert [first["lost_seconds"], second["lost_seconds"]] == [60, 10]
    assert (first["started_at"], first["ended_at"]) == ("2026-03-01T09:00:00+00:00", "2026-03-01T09:04:10+00:00")


def test_the_code_of_every_attempt_is_named_where_they_differ(tmp_path: Path) -> None:
    run = resumed_run(tmp_path)
    for attempt, code in ((1, "3f1c9a7be2d0"), (2, "77e0aa31c4d2-01234567")):
        write_json(run.worker_file(attempt), {**(read_json(run.worker_file(attempt)) or {}), "code": f"/x/code/{code}"})
    study = load_study(tmp_path)
    assert attempt_of(study, 1, 1)["code"] == "3f1c9a7be2d0"
    assert attempt_of(study, 1, 2)["code"] == "77e0aa31c4d2-01234567"
    shown = " ".join(text for texts in study.origin.values() for text in texts)
    assert "3f1c9a7be2d0" in shown
    assert "77e0aa31c4d2-01234567" in shown


def test_versions_are_those_of_the_workers_and_what_a_file_lacks_is_left_out(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "a", "gru", "adam", [90.0], device="Card")
    assert load_study(tmp_path).origin["Versions"] == ["seqlm 0.1.0, python 3.12.3, torch 2.13.0"]
    write_json(run.worker_file(1), {"environment": "../../x", "python": "3.11.7", "torch": "2.8.0"})
    assert load_study(tmp_path).origin["Versions"] == ["python 3.11.7, torch 2.8.0"]


def test_an_attempt_names_what_rounds_otherwise_than_in_the_attempt_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1)
    write_attempt(run, 1, start=0, end=10)
    run.attempt_dir(2).mkdir()  # its worker left no record
    write_attempt(run, 3, start=20, end=30, threads=4, hosts=("elsewhere",))
    write_attempt(run, 4, start=40, end=50, threads=4, device="Intel Xeon")
    write_attempt(run, 5)
    write_json(run.worker_file(5), {"device": ["damaged"], "threads": {}, "torch": "2.99"})
    study = load_study(tmp_path)
    assert [attempt_of(study, 1, attempt)["changes"] for attempt in range(1, 6)] == [
        *(None, None, "threads 4 instead of 2", "device Intel Xeon instead of AMD EPYC", None)
    ]
    said = [item for block in cost_section(study).blocks if isinstance(block, Points) for item in block.items]
    assert any("threads 4 instead of 2 (1); device Intel Xeon instead of AMD EPYC (1)" in item for item in said)


def wrong_shapes(run: RunDirectory) -> None:
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**records[0], "attempt": [1], "epoch_seconds": "long"}, *records[1:]])
    write_json(run.worker_file(1), {"host": ["a"], "rank": "first", "ranks": None, "gpu": {}, "started_at": 7})
    write_json(run.progress_file(1), {"updated_at": "0001-01-01T00:00:00+14:00"})
    write_json(run.start_file(1), {"resources": [1], "backend": 3})


def on_two_gpus(run: RunDirectory) -> None:
    write_attempt(run, 2, hosts=("a", "b"), gpus=("0", "3"))
    write_job(run, 2, backend="slurm", ranks=2, cpus=4, gpus=1.0)


def on_a_quarter(run: RunDirectory) -> None:
    write_attempt(run, 2, hosts=("a",), gpus=("0",))
    write_job(run, 2, gpus=0.25)


NAN = float("nan")


@pytest.mark.parametrize(
    ("write", "attempt", "expected"),
    [
        (lambda run: None, 1, {"backend": None, "cores": 2.0, "gpus": 0.0, "micro_batches": 1}),
        (lambda run: write_job(run, 2, backend="ray", cpus=7), 2, {"backend": "ray", "cores": 7.0}),
        (lambda run: write_attempt(run, 2, start=300, end=500, micro_batches=4), 2, {"micro_batches": 4}),
        (on_two_gpus, 2, {"ranks": 2, "gpus": 2.0, "cores": 8.0, "places": "a GPU 0 + b GPU 3"}),
        (on_a_quarter, 2, {"gpus": 0.25, "places": "a GPU 0", "backend": "local"}),
        # without a recorded end, it ended when the result was written; an end before the start is not believed
        (lambda run: write_attempt(run, 2, start=300), 2, {"seconds": 699}),
        (lambda run: write_attempt(run, 1, start=260), 1, {"seconds": NAN, "ended_at": None}),
        (
            lambda run: run.write_exit(1, Exit(kind="preempted", message="m", ended_at=at(260))),
            1,
            {"outcome": "failed", "failure_kind": "preempted", "seconds": 260},
        ),
        (lambda run: run.worker_file(1).write_text("{"), 1, {"outcome": "interrupted"}),
        (wrong_shapes, 1, {"host": None, "started_at": None, "ended_at": None, "places": None}),
    ],
)
def test_an_attempt_has_what_its_records_say(
    tmp_path: Path, write: Callable[[RunDirectory], object], attempt: int, expected: dict[str, Any]
) -> None:
    write(resumed_run(tmp_path))
    study = load_study(tmp_path)
    found = attempt_of(study, 1, attempt)
    assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    assert study.runs["state"].tolist() == ["done"]


def test_a_cancelled_attempt_ends_with_its_last_sign_of_life(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1, done=False)
    write_attempt(run, 1, start=0, alive=120)
    cancel(run)
    row = attempt_of(load_study(tmp_path), 1, 1)
    assert (row["outcome"], row["failure_kind"], row["seconds"]) == ("cancelled", "cancelled", 120)


def test_times_that_nobody_recorded_are_missing_whatever_the_files_dates_are(tmp_path: Path) -> None:
    run = resumed_run(tmp_path)
    write_attempt(run, 1, alive=250)
    before = load_study(tmp_path).attempts
    for path in run.path.rglob("*"):
        os.utime(path, (1, 1))
    study = load_study(tmp_path)
    assert study.attempts.equals(before)
    first = attempt_of(study, 1, 1)
    assert first["started_at"] is None
    assert math.isnan(first["seconds"])
    assert math.isnan(first["lost_seconds"])
    assert first["epoch_seconds"] == 190


def test_moments_without_a_zone_are_utc_wherever_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    assert moment("2026-03-01T09:00:00") == moment("2026-03-01T10:00:00+01:00") == 1772355600
    assert [moment(value) for value in ("soon", None, 3)] == [None, None, None]
    monkeypatch.undo()
    time.tzset()


def test_an_epoch_that_a_later_attempt_went_on_with_is_not_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2)
    records, _ = run.read_metrics()
    times = [{"epoch_seconds": 100, "attempt": 1}, {"epoch_seconds": 10_800, "attempt": 4}]
    write_json_lines(run.metrics_file, [{**one, **time} for one, time in zip(records, times, strict=True)])
    write_json(run.result_file, {**(read_json(run.result_file) or {}), "attempt": 4})
    write_attempt(run, 1, start=0, end=100 + 3600 + 20)  # and 20 s to start and to save
    write_attempt(run, 2, start=5000, end=5000 + 3600 + 20)
    run.attempt_dir(3).mkdir()  # never started
    write_attempt(run, 4, start=9000, end=9000 + 3600 + 20)
    rows = load_study(tmp_path).attempts
    assert rows["outcome"].tolist() == ["interrupted", "interrupted", "not started", "done"]
    assert rows["lost_seconds"].fillna(-1).tolist() == [60, 0, -1, 0]
    write_attempt(run, 2, end=8620)  # its start is not recorded, so what it adds to the epoch is unknown
    assert load_study(tmp_path).attempts["lost_seconds"].fillna(-1).tolist() == [3620, -1, -1, 0]
