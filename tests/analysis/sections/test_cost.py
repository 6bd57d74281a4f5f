import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.section import Points, Section
from analysis.sections.cost import cost_section, resources_of
from analysis.study.pools import used_of_pools
from analysis.study.study import load_study
from seqlm.files import read_json, write_json
from seqlm.records.batch import Batch
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt, write_job
from tests.analysis.study.test_attempts import resumed_run
from tests.analysis.synthetic import fail, make_run
from tests.slurm_jobs import array_of


def sentences(section: Section) -> list[str]:
    return [item for block in section.blocks if isinstance(block, Points) for item in block.items]


def make_costs(study_dir: Path) -> Path:
    """Run 1: 250 + 200 s on two cores, 60 s lost. Run 2: failed after 900 s on half a GPU. Run 4: 760 s on two GPUs."""
    resumed_run(study_dir)
    failed = make_run(study_dir, 1, epochs=2, done=False)
    fail(failed, "oom", "out of memory")
    write_attempt(failed, 1, start=100, end=1000, gpus=("0",))
    write_job(failed, 1, gpus=0.5)
    pair = make_run(study_dir, 3, epochs=4)
    write_attempt(pair, 1, start=1000, end=1860, hosts=("node07", "node08"), gpus=("0", "0"))
    write_job(pair, 1, backend="slurm", ranks=2, gpus=1.0)
    digits = [run.rpartition("-")[2] for run in (failed.id, pair.id)]
    write_json(study_dir / "study.json", {"estimates": {d: {"seconds": 380.0} for d in digits}})
    return study_dir


def test_hours_are_those_of_the_attempts_times_their_cores_and_gpus(tmp_path: Path) -> None:
    section = cost_section(load_study(make_costs(tmp_path)))
    by_run: dict[object, dict[str, Any]] = {}
    for table in [table for table in section.tables if table.name == "resources"]:
        assert {row.cells[0].value for row in table.rows} == {1, 2, 4}
        for row in table.rows:
            cells = zip(table.columns, row.cells, strict=True)
            by_run.setdefault(row.run, {}).update({column.key: cell.value for column, cell in cells})
    assert by_run[1]["core_hours"] == pytest.approx(450 * 2 / 3600)
    assert math.isnan(by_run[1]["gpu_hours"])
    assert by_run[2]["gpu_hours"] == pytest.approx(900 * 0.5 / 3600)
    assert by_run[4]["gpu_hours"] == pytest.approx(860 * 2 / 3600)
    assert by_run[1]["lost_seconds"] == pytest.approx(70)
    assert by_run[4]["lost_seconds"] == pytest.approx(100)
    assert by_run[1]["attempts"] == 2
    said = " ".join(sentences(section))
    assert f"{(450 + 900 + 860) / 3600:.2f} run hours" in said
    assert f"{(900 / 2 + 2 * 860) / 3600:.2f} GPU hours" in said
    assert f"{2 * 450 / 3600:.2f} core hours" in said


def test_jobs_with_room_for_several_runs_were_idle_where_their_runs_left_room_while_one_ran(tmp_path: Path) -> None:
    times = {"7_0": [(0, 100), (0, 100), (100, 200), (900, 1000)], "7_1": [(0, 400)], "8_0": [(0, 9000)]}
    for number, (job, start, end) in enumerate((job, *time) for job, found in times.items() for time in found):
        run = make_run(tmp_path, number)
        write_attempt(run, 1, start=start, end=end, gpus=("0",))
        write_job(run, 1, backend="slurm", job=job, gpus=1.0)
    folder = tmp_path / "launches/000001"
    folder.mkdir(parents=True)
    shared, filled = array_of("a", job="7", jobs=2, gpus=2, cpus=8), array_of("b", job="8", gpus=1, cpus=8)
    halves, whole = Resources(cpus=4, gpus=1), Resources(cpus=8, gpus=1)
    Batch(arrays=(replace(shared, runs={"a": halves}), replace(filled, runs={"b": whole}))).write(folder)
    assert used_of_pools([tmp_path], load_study(tmp_path).attempts) == {
        "GPU": (pytest.approx(2 * (300 + 400) / 3600), pytest.approx((400 + 400) / 3600))
    }
    said = " ".join(sentences(cost_section(load_study(tmp_path))))
    assert "0.39 GPU hours, of which 43 % were idle" in said


def test_what_ranks_have_used_is_summed_over_them_and_over_attempts(tmp_path: Path) -> None:
    study_dir = make_costs(tmp_path)
    before = load_study(study_dir)
    assert before.attempts["cpu_seconds"].isna().all()
    (pair,) = before.runs.loc[before.runs["number"] == 4, "id"]
    for rank, (cores, busy) in enumerate([(0.7, 0.5), (1.1, 0.7)]):
        file = RunDirectory(study_dir / pair).worker_file(1, rank)
        gpu = {"busy": busy, "peak_memory_bytes": 2**30, "joules": 1.8e6, "throttled": {}}
        used = {"seconds": 860.0, "cpu_seconds": 860 * cores, "peak_resident_bytes": 2**31, "gpu": gpu}
        write_json(file, {**(read_json(file) or {}), "resources": used})
    study = load_study(study_dir)
    (row,) = [row for row in resources_of(study).to_dict("records") if row["number"] == 4]
    assert row["used_cores"] == pytest.approx(1.8)
    assert row["enough_cores"] == 2
    assert row["idle_gpu_hours"] == pytest.approx(2 * 860 / 3600 * 0.4)
    assert row["kwh"] == pytest.approx(1.0)
    assert row["resident_bytes"] == 2**32
    keys = {column.key for table in cost_section(study).tables for column in table.columns}
    assert {"used_cores", "idle_gpu_hours", "kwh"} <= keys


def test_of_an_attempt_that_took_no_whole_second_the_cores_are_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1)
    write_attempt(run, 1, start=5.0, end=5.0)
    write_json(run.worker_file(1), {**(read_json(run.worker_file(1)) or {}), "resources": {"cpu_seconds": 0.5}})
    (row,) = resources_of(load_study(tmp_path)).to_dict("records")
    assert math.isnan(row["used_cores"])
    assert math.isnan(row["enough_cores"])


@pytest.mark.parametrize(("used", "enough"), [(0.96, 1), (1.0, 1), (1.05, 1), (1.5, 2), (1.95, 2), (2.05, 2), (2.6, 2)])
def test_no_more_cores_are_advised_than_the_run_had(tmp_path: Path, used: float, enough: int) -> None:
    """Times of attempts are whole seconds, and clocks differ, so a run on two cores may seem to use more."""
    run = make_run(tmp_path, 0, epochs=1)
    write_attempt(run, 1, start=0, end=100)
    write_job(run, 1, cpus=2)
    worker = read_json(run.worker_file(1)) or {}
    write_json(run.worker_file(1), {**worker, "threads": 2, "resources": {"cpu_seconds": 100 * used}})
    (row,) = resources_of(load_study(tmp_path)).to_dict("records")
    assert (row["cores"], row["enough_cores"]) == (2, enough)
