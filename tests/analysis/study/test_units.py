from collections.abc import Callable

import pytest

from analysis.study import units


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        *((units.duration, 0.04, "0.0 s"), (units.duration, 9.94, "9.9 s"), (units.duration, 60.0, "1 min")),
        *((units.duration, 3569.0, "59 min"), (units.duration, 48 * 3600 - 1.0, "2 d 00 h")),
        *((units.memory, 1023.4 * 2**20, "1023 MiB"), (units.memory, 1023.6 * 2**20, "1.00 GiB")),
        *((units.signed, -0.0004, "0.000"), (units.signed, 0.0, "0.000"), (units.signed, -0.0006, "−0.001")),
    ],
)
def test_a_number_is_rounded_before_its_unit_and_its_sign(
    write: Callable[[float], str], value: float, text: str
) -> None:
    assert write(value) == text
