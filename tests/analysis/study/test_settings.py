from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from analysis.sections.results import results_table, settings_table
from analysis.study.settings import clear_winners, interval, settings_of
from analysis.study.study import Study, load_study
from seqlm.files import write_json
from tests.analysis.synthetic import fail, make_run


def make_seeds(tmp_path: Path, found: dict[int, list[float]]) -> Study:
    """Finished runs of published settings, one for each of their best validation perplexities."""
    order = 0
    for published, perplexities in found.items():
        for seed, perplexity in enumerate(perplexities):
            run = make_run(tmp_path, published, epochs=2, seed=seed, provenance={"order": order})
            write_json(run.result_file, {**(run.read_result() or {}), "best_val_ppl": perplexity})
            order += 1
    return load_study(tmp_path)


def test_the_interval_is_students_t_on_the_losses() -> None:
    values = [111.0, 113.5, 107.8, 114.4]
    found = interval(values)
    losses = [math.log(value) for value in values]
    low, high = stats.t.interval(0.95, len(losses) - 1, loc=sum(losses) / len(losses), scale=stats.sem(losses))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-12)
    assert found.n == 4


def test_one_seed_has_no_interval_and_no_seed_is_an_error() -> None:
    assert math.isnan(interval([100.0]).low)
    assert interval([100.0]).centre == 100.0
    for bad in ([], [100.0, math.nan], [0.0], [math.inf]):
        with pytest.raises(ValueError, match="valid are positive finite numbers"):
            interval(bad)


def test_seeds_of_one_configuration_are_one_setting_and_a_failed_one_is_not_averaged_in(tmp_path: Path) -> None:
    make_seeds(tmp_path, {3: [110.0, 112.0, 111.0], 5: [103.0]})
    fail(make_run(tmp_path, 3, epochs=1, done=False, seed=9, provenance={"order": 9}), "diverged", "NaN")
    first, second = settings_of(load_study(tmp_path).runs)
    assert (first.runs, first.interval.n, second.runs) == ([1, 2, 3], 3, [4])
    assert first.val_ppl == pytest.approx((110.0 * 112.0 * 111.0) ** (1 / 3))


@pytest.mark.parametrize(
    ("gru_sgd", "winner"),
    [
        ([113.0, 113.2, 112.9], ["gru-sgd-schedule"]),
        ([103.2, 103.0, 103.1], []),
        ([102.9], []),
        ([150.0], ["gru-sgd-schedule"]),
    ],
)
def test_the_best_setting_is_bold_only_where_its_interval_overlaps_with_no_other(
    tmp_path: Path, gru_sgd: list[float], winner: list[str]
) -> None:
    study = make_seeds(tmp_path, {4: gru_sgd, 5: [103.1, 102.8, 103.3]})
    assert [setting.name for setting in clear_winners(settings_of(study.runs))] == winner
    table = settings_table(study)
    assert table is not None
    assert [row.cells[1].text for row in table.rows if row.cells[1].bold] == winner
    assert not any(cell.bold for row in results_table(study).rows for cell in row.cells)


def test_without_repeated_seeds_there_is_no_table_of_settings(study: Study) -> None:
    assert settings_table(study) is None
    assert "n = 1" in results_table(study).caption
