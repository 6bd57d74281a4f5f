from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from analysis.blocks.figure import Chart
from analysis.blocks.section import Points, Prose, Section
from analysis.plots.timeline import Bar, lanes_of, pack, timeline_chart, utilisation
from analysis.sections.cost import cost_section
from analysis.study.study import load_study
from seqlm.files import write_json, write_json_lines
from tests.analysis.attempt_files import at, write_attempt, write_job
from tests.analysis.study.test_attempts import resumed_run
from tests.analysis.synthetic import fail, make_run


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
    (table,) = section.tables
    values = {cell.value for cell in (row.cells[0] for row in table.rows)}
    assert values == {1, 2, 4}
    by_run = {
        row.run: {column.key: cell.value for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }
    assert by_run[1]["core_hours"] == pytest.approx(450 * 2 / 3600)
    assert math.isnan(by_run[1]["gpu_hours"])
    assert by_run[2]["gpu_hours"] == pytest.approx(900 * 0.5 / 3600)
    assert by_run[4]["gpu_hours"] == pytest.approx(860 * 2 / 3600)
    assert by_run[1]["lost_seconds"] == pytest.approx(70)
    assert by_run[4]["lost_seconds"] == pytest.approx(100)
    assert (by_run[1]["attempts"], by_run[4]["machine"]) == (2, "AMD EPYC, 2 ranks")
    assert by_run[4]["ratio"] == pytest.approx(2.0)
    assert math.isnan(by_run[2]["ratio"]), "a run that failed has no duration to compare"
    assert by_run[1]["tokens_per_second"] == pytest.approx(929_589 / 95)


def test_totals_are_sums_over_attempts(tmp_path: Path) -> None:
    said = " ".join(sentences(cost_section(load_study(make_costs(tmp_path)))))
    assert f"{(450 + 900 + 860) / 3600:.2f} run hours" in said
    assert f"{(900 / 2 + 2 * 860) / 3600:.2f} GPU hours" in said
    assert f"{2 * 450 / 3600:.2f} core hours" in said


def test_an_attempt_without_its_times_counts_with_its_epochs_and_is_counted_up(tmp_path: Path) -> None:
    run = make_run(make_costs(tmp_path), 6, epochs=2)
    write_attempt(run, 1, end=5000)
    said = sentences(cost_section(load_study(tmp_path)))
    assert said[0].startswith("4 runs in 5 attempts: at least 0.63 run hours")
    assert said[-1] == (
        "Not recorded: the start of 1 attempt and the end of 0. Of these attempts only the finished epochs are counted."
    )
    chart = timeline_chart(load_study(tmp_path))
    assert chart is not None
    assert "Not shown: 1 attempt without a recorded start or end." in chart.caption


def test_a_study_that_has_not_begun_has_cost_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=0, done=False)
    run.attempt_dir(1).rmdir()
    (block,) = cost_section(load_study(tmp_path)).blocks
    assert isinstance(block, Prose)
    assert "nothing has been spent" in block.text


def bar(run: int, start: float, end: float) -> Bar:
    return Bar(run=run, attempt=1, outcome="done", arch="gru", name="x", start=start, end=end)


def test_bars_that_overlap_lie_in_lanes_of_their_own_and_a_free_lane_is_used_again() -> None:
    packed = pack([bar(4, 10, 12), bar(1, 0, 10), bar(2, 1, 5), bar(3, 5, 9)])
    assert [[b.run for b in lane] for lane in packed] == [[1, 4], [2, 3]]


def test_a_lane_for_each_gpu_and_an_attempt_of_two_ranks_on_both(tmp_path: Path) -> None:
    lanes = lanes_of(load_study(make_costs(tmp_path)))
    assert {lane.label: [(b.run, b.attempt) for b in lane.bars] for lane in lanes} == {
        "node07": [(1, 1), (1, 2)],
        "node07 GPU 0": [(2, 1), (4, 1)],
        "node08 GPU 0": [(4, 1)],
    }
    assert utilisation(lanes) == pytest.approx((450 + 900 + 2 * 860) / (3 * 1860))


def test_the_timeline_draws_each_attempt_and_hatches_those_that_failed(tmp_path: Path) -> None:
    chart = timeline_chart(load_study(make_costs(tmp_path)))
    assert isinstance(chart, Chart)
    (axes,) = chart.figure.axes
    assert axes.get_xlabel() == "Time since the first start (minutes)"
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(b.get_gid(), b.get_x(), b.get_width(), bool(b.get_hatch())) for b in bars] == [
        ("run-1", 0, pytest.approx(250 / 60), True),
        ("run-1", 5, pytest.approx(200 / 60), False),
        ("run-2", pytest.approx(100 / 60), pytest.approx(15), True),
        ("run-4", pytest.approx(1000 / 60), pytest.approx(860 / 60), False),
        ("run-4", pytest.approx(1000 / 60), pytest.approx(860 / 60), False),
    ]
    assert "The 3 lanes were busy 55 % of the time." in chart.caption


def test_one_lane_was_busy_and_several_were(tmp_path: Path) -> None:
    write_attempt(make_run(tmp_path, 0, epochs=1), 1, start=0, end=60)
    chart = timeline_chart(load_study(tmp_path))
    assert chart is not None
    assert "The lane was busy 100 % of the time." in chart.caption


def test_many_lanes_are_cut_and_the_caption_says_so(tmp_path: Path) -> None:
    for order in range(3):
        run = make_run(tmp_path, order, epochs=1)
        write_attempt(run, 1, start=0, end=60, hosts=tuple(f"node{n}" for n in range(30)), gpus=(str(order),) * 30)
    chart = timeline_chart(load_study(tmp_path))
    assert chart is not None
    (axes,) = chart.figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 40
    assert labels.index("node9 GPU 0") < labels.index("node10 GPU 0")
    assert "Shown are the first 40 of 90 lanes." in chart.caption
    assert len(axes.texts) == 40, "each bar has the number of its run"


def test_times_are_counted_from_the_first_start_in_any_zone(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1)
    write_attempt(run, 1, start=0, end=60)
    record = {"host": "b", "started_at": at(0).replace("09:00:00+00:00", "10:00:30+01:00"), "ended_at": at(60)}
    write_json(run.worker_file(1), record)
    (lane,) = lanes_of(load_study(tmp_path))
    assert lane.bars[0].end - lane.bars[0].start == 30


def test_an_attempt_that_saved_its_state_within_an_epoch_has_lost_little(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1)
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**records[0], "epoch_seconds": 10_800, "attempt": 2}])
    write_json(run.result_file, {**(run.read_result() or {}), "attempt": 2})
    write_attempt(run, 1, start=0, end=5400)
    write_attempt(run, 2, start=6000, end=6000 + 5436)
    said = sentences(cost_section(load_study(tmp_path)))
    assert (
        "1 attempt ended early (interrupted, or failed and repeated): 36 s outside finished epochs is lost."
    ) in said
