from __future__ import annotations

from dataclasses import replace

from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.plan.totals import BudgetPlan, waiting
from jobs.search import epochs_left, expected_share, expected_shares, rungs_within
from jobs.spec import Resources, RunSpec
from jobs.study.budget import Budget, Hours
from seqlm.search import Search
from tests.fakes import make_planned
from tests.training.studies import make_config

HOUR = 3600.0
SEARCH = Search(rungs=(3, 9, 27), keep=0.34, min_runs=3)


def runs(*hours: float | None, epochs: int = 40, gpus: float = 1) -> list[PlannedRun]:
    specs = [
        RunSpec(
            name=f"run{number}",
            config=make_config(seed=number, epochs=epochs),
            resources=Resources(cpus=4, gpus=gpus),
            order=number,
        )
        for number in range(len(hours))
    ]
    return [
        make_planned(spec, None if expected is None else expected * HOUR)
        for spec, expected in zip(specs, hours, strict=True)
    ]


def budget(**limits: float) -> Budget:
    return Budget.of(Policy(**limits))


def test_runs_wait_in_the_order_of_the_queue_and_shorter_ones_fill_what_is_left() -> None:
    todo = runs(3, 9, 5, 2)
    assert list(waiting(todo, budget(gpu_hours=12), Hours())) == ["run2", "run3"], "9 and 3 fit"
    assert list(waiting(todo, budget(gpu_hours=12), Hours(gpu_hours=4))) == ["run1", "run3"], "5 and 3 fit"


def test_both_limits_hold() -> None:
    todo = runs(1, 1)
    assert waiting(todo, budget(gpu_hours=2, core_hours=8), Hours()) == {}
    (why,) = waiting(todo, budget(gpu_hours=2, core_hours=7), Hours()).values()
    assert why == "waits: needs about 4 core hours; 3 of the budget of 7 are left"


def test_a_plan_fits_or_not_or_it_is_not_known() -> None:
    fits = BudgetPlan.of(runs(1, 2), budget(gpu_hours=3), Hours())
    assert (fits.fits, fits.needs) == (True, Hours(gpu_hours=3, core_hours=12))
    assert fits.line() == "budget: 0 of 3 GPU hours spent; the rest needs about 3 GPU hours, and fits"
    too_much = BudgetPlan.of(runs(1, 2), budget(gpu_hours=3), Hours(gpu_hours=1))
    assert too_much.line().endswith("the rest needs about 3 GPU hours: 1 of 2 runs wait")
    unknown = BudgetPlan.of(runs(1, None), budget(gpu_hours=3), Hours())
    assert (unknown.fits, unknown.waits) == (None, {})
    assert BudgetPlan.of(runs(1, None), budget(gpu_hours=3), Hours(gpu_hours=3)).fits is False
    assert BudgetPlan.of([], budget(gpu_hours=3), Hours(gpu_hours=9)).fits is True, "nothing is left to do"


def test_a_search_is_expected_to_use_the_share_that_it_trains() -> None:
    todo = runs(*[40.0] * 27)
    specs = [item.spec for item in todo]
    shares = expected_shares(SEARCH, specs)
    assert shares[0] == (0, expected_share(SEARCH, specs))
    assert [rung for rung, _ in shares] == [0, 3, 9, 27]
    assert [share for _, share in shares] == sorted(share for _, share in shares)
    assert shares[-1] == (27, 1.0), "nothing stops it any more"
    item = replace(todo[0], shares=shares)
    assert item.hours == Hours(gpu_hours=1, core_hours=4) * (40 * shares[0][1])
    assert item.hours_after(30) == Hours(gpu_hours=1, core_hours=4) * 10
    assert todo[0].hours_after(30) == Hours(gpu_hours=1, core_hours=4) * 10
    assert epochs_left(40, 39, shares) == 1
    assert epochs_left(40, 12, ((0, 0.1),)) == 0


def test_a_plan_names_the_rungs_with_which_a_search_would_fit() -> None:
    search = replace(SEARCH, rungs=(20, 30))
    todo = runs(*[40.0] * 27)
    specs = [item.spec for item in todo]
    everything = 27 * 40.0
    half = expected_share(replace(search, rungs=(8, 24)), specs) * everything
    shares = expected_shares(search, specs)
    searched = [replace(item, shares=shares) for item in todo]
    found = BudgetPlan.of(searched, budget(gpu_hours=half + 0.1), Hours(), search)
    assert found.fits is False
    assert found.rungs == (8, 24)
    assert found.line().endswith("; it would fit with search.rungs = [8, 24]")
    assert found.to_dict()["rungs"] == [8, 24]
    fits = replace(search, rungs=(8, 24))
    searched = [replace(item, shares=expected_shares(fits, specs)) for item in todo]
    assert BudgetPlan.of(searched, budget(gpu_hours=half + 0.1), Hours(), fits).fits is True, "with these it does"
    assert rungs_within(search, specs, 0.01) is None, "one epoch of each is too much"
    assert rungs_within(search, specs, 1.0) == (39,)
