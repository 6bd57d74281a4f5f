from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import scheduling, utilisation
from benchmarks.scheduling import as_markdown
from benchmarks.stand_ins import (
    WORKER,
    Span,
    StandIn,
    cost_per_run,
    equal,
    hand_over,
    least_makespan,
    make_study,
    mixed,
    spans,
)
from tests import commands


def test_what_is_left_of_the_slots_time_is_the_cost_of_the_runs() -> None:
    workers = [Span(start=1, end=3), Span(start=1, end=3), Span(start=3.5, end=5.5), Span(start=3.5, end=5.5)]
    assert cost_per_run(6, 2, workers) == pytest.approx((6 * 2 - 4 * 2) / 4)
    assert hand_over(2, workers) == pytest.approx(0.5)


def test_no_order_beats_the_bound() -> None:
    short = [Span(start=0, end=1)]
    wide = [Span(start=0, end=2), Span(start=0, end=2)]
    assert least_makespan(2, [short, short, wide]) == 3
    assert least_makespan(8, [short, short, wide]) == 2, "the longest run"
    assert utilisation.utilisation(4, 2, [short, short, wide]) == pytest.approx(6 / 8)


def test_the_same_seed_draws_the_same_runs() -> None:
    assert mixed(200, seed=0) == mixed(200, seed=0) != mixed(200, seed=1)
    assert {one.ranks for one in mixed(200, seed=0)} == {1, 2}
    assert all(0.5 <= one.seconds <= 4 for one in mixed(200, seed=0))


def test_memory_is_that_of_the_first_and_the_last_quarter() -> None:
    found = utilisation.memory([1, 1, 5, 5, 5, 5, 3, 3])
    assert found == {"launcher_mb_first_quarter": 1, "launcher_mb_last_quarter": 3, "growth": 2}


@pytest.mark.process
def test_a_stand_in_takes_its_time_from_the_start_of_its_process(tmp_path: Path) -> None:
    (planned,) = make_study(tmp_path, [StandIn(seconds=0.3)])
    before = time.time()
    commands.run([*WORKER, planned.run.path], check=True)
    ((span,),) = spans([planned])
    assert before - 0.02 < span.start < span.end < time.time()
    assert span.seconds >= 0.3
    assert planned.run.observe().state == "done"


def test_equal_runs_have_folders_of_their_own(tmp_path: Path) -> None:
    assert len({item.run.id for item in make_study(tmp_path, equal(3, 0.5))}) == 3


def test_the_table_has_the_medians_with_their_spread() -> None:
    spread = {"median": 2.0, "least": 1.5, "most": 2.51}
    document = {
        "command": "python -m benchmarks.scheduling",
        "git": {"commit": "abc", "dirty": False},
        "date": "today",
        "processor": "P",
        "cores": 2,
        "versions": {"ray": "2", "cuda": None},
        "cost": {"turns": {"ray": {"seconds_per_run": spread}}},
    }
    assert "| ray | 2 (1.5-2.51) |" in as_markdown(document)


def test_a_wrong_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert utilisation.main(["--gpus", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert scheduling.main(["--rounds", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_published_results_name_no_folder() -> None:
    for path in (Path(scheduling.__file__).parent / "results").glob("2026-11-25-*.json"):
        assert json.loads(path.read_text())["git"]["dirty"] is False
        assert "/tmp" not in path.read_text()
