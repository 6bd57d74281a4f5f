import pytest

from seqlm.enough import enough


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("jitter", [0.95, 1.0, 1.05])
def test_five_per_cent_more_or_less_change_no_advice_for_whole_cores(cores: int, jitter: float) -> None:
    assert enough(cores=cores * 0.97 * jitter).cpus == enough(cores=cores * 0.97).cpus == cores


@pytest.mark.parametrize("used", [0.2, 1.0, 1.4, 3.7])
def test_what_a_run_had_was_enough(used: float) -> None:
    assert enough(cores=used, had=1).cpus == 1
    assert enough(cores=used, had=8).cpus >= used / 1.05


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert enough(had=4).cpus == 0
