import pytest

from analysis.study import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (60.0, "1 min")),
        *((3569.0, "59 min"), (3571.0, "1 h 00 min"), (3599.0, "1 h 00 min"), (48 * 3600 - 1.0, "2 d 00 h")),
    ],
)
def test_a_duration_is_rounded_before_its_unit_is_chosen(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_a_number_that_is_rounded_to_0_has_no_sign() -> None:
    write = units.decimals("+.3f")
    assert [write(value) for value in (-0.0004, 0.0004, 0.0, -0.0006, 12.0)] == [
        "0.000",
        "0.000",
        "0.000",
        "-0.001",
        "+12.000",
    ]


def test_memory_is_rounded_before_its_unit_is_chosen() -> None:
    assert (units.memory(1023.4 * 2**20), units.memory(1023.6 * 2**20)) == ("1023 MiB", "1.00 GiB")
