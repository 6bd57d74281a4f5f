import math
from pathlib import Path

import pytest
from scipy import stats

from analysis.sections.results import results_table, settings_table
from analysis.study.settings import interval, settings_of
from analysis.study.study import StudyFiles, load_study
from seqlm.files import read_json, write_json
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import fail, make_run


def make_seeds(tmp_path: Path, found: dict[int, list[float]]) -> StudyFiles:
    """Finished runs of published settings, one for each of their best validation perplexities."""
    order = 0
    for published, perplexities in found.items():
        for seed, perplexity in enumerate(perplexities):
            run = make_run(tmp_path, published, epochs=2, seed=seed, provenance={"order": order})
            write_json(run.result_file, {**(read_json(run.result_file) or {}), "best_val_ppl": perplexity})
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
        with pytest.raises(ValueError, match="expected positive finite numbers, got "):
            interval(bad)


def test_seeds_of_one_configuration_are_one_setting_and_a_failed_one_is_not_averaged_in(tmp_path: Path) -> None:
    make_seeds(tmp_path, {3: [110.0, 112.0, 111.0], 5: [103.0]})
    fail(make_run(tmp_path, 3, epochs=1, done=False, seed=9, provenance={"order": 9}), "diverged", "NaN")
    first, second = settings_of(load_study(tmp_path).runs)
    assert (first.runs, first.interval.n, second.runs) == ([1, 2, 3], 3, [4])
    assert first.val_ppl == pytest.approx((110.0 * 112.0 * 111.0) ** (1 / 3))


@pytest.mark.parametrize(
    ("gru_sgd", "best"), [([113.0, 113.2, 112.9], "4"), ([103.3, 103.0, 103.2], "4"), ([102.0], "1")]
)
def test_the_lowest_setting_comes_first_and_alone_is_bold(tmp_path: Path, gru_sgd: list[float], best: str) -> None:
    study = make_seeds(tmp_path, {4: gru_sgd, 5: [103.1, 102.8, 103.3]})
    rows = settings_table(study).rows
    assert rows[0].cells[0].text == best
    assert [any(cell.bold for cell in row.cells) for row in rows] == [True, False]
    lowest = study.runs.loc[study.runs["val_ppl"].idxmin(), "number"]
    assert [row.run for row in results_table(study).rows if row.cells[1].bold] == [lowest]


def test_an_interval_that_is_too_wide_for_a_perplexity_has_no_upper_end(tmp_path: Path) -> None:
    found = interval([math.exp(120.0), math.exp(215.0)])
    assert found.high == math.inf
    assert 0 <= found.low < found.centre == pytest.approx(math.exp(167.5))
    table = settings_table(make_seeds(tmp_path, {3: [math.exp(120.0), math.exp(215.0)]}))
    places = [[column.key for column in table.columns].index(key) for key in ("low", "high")]
    (row,) = table.rows
    assert [row.cells[place].text for place in places] == ["0.00", "–"]


def test_the_last_perplexity_of_seeds_is_their_geometric_mean(tmp_path: Path) -> None:
    def last_of(folder: str, first: float | None, second: float) -> float:
        for seed, ppl in enumerate([first, second]):
            add_run(tmp_path / folder, seed, "a", "gru", "sgd", [90.0], seed=seed, result={"final_val_ppl": ppl})
        (setting,) = settings_of(load_study(tmp_path / folder).runs)
        return setting.final_val_ppl

    assert last_of("ordinary", 70.0, 143.0) == pytest.approx(math.sqrt(70.0 * 143.0))
    assert math.isnan(last_of("missing", None, 143.0))
    assert math.isnan(last_of("negative", -70.0, 143.0))


@pytest.mark.parametrize("impossible", [0.0, -3.0])
def test_a_perplexity_that_is_not_above_zero_is_no_result(tmp_path: Path, impossible: float) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0, 90.0], seed=1)
    add_run(tmp_path, 1, "a", "gru", "sgd", [100.0], seed=2, result={"best_val_ppl": impossible})
    study = load_study(tmp_path)
    assert [setting.runs for setting in settings_of(study.compared.runs)] == [[1]]
    assert study.runs["compared_epochs"].tolist() == [2, 2]
