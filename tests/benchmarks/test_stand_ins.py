import time
from pathlib import Path

import pytest

from benchmarks import utilisation
from benchmarks.stand_ins import (
    WORKER,
    Span,
    StandIn,
    cost_per_run,
    hand_over,
    least_makespan,
    make_study,
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


@pytest.mark.process
def test_a_stand_in_takes_its_time_from_the_start_of_its_process(tmp_path: Path) -> None:
    (planned,) = make_study(tmp_path, [StandIn(seconds=0.3)])
    before = time.time()
    commands.run([*WORKER, planned.run.path], check=True)
    ((span,),) = spans([planned])
    assert before - 0.02 < span.start < span.end < time.time()
    assert span.seconds >= 0.3
    assert planned.run.observe().state == "done"
