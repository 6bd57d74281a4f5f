"""Distributions of a ``[[sample]]`` entry, and settings drawn from them.

The settings are a scrambled Sobol sequence (Sobol, 1967; Owen, 1998), SciPy's: it covers the ranges more evenly than
random numbers do. The first n of 2n settings are the same n, so a search can be enlarged.

SciPy takes about a second to import, so it is imported when something is drawn.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from seqlm.errors import nearest
from seqlm.schema import show

SIGNIFICANT_DIGITS = 4
"""Significant digits of a drawn number. Names and identities have exactly these."""
DISTRIBUTIONS = ("uniform", "log_uniform", "int", "log_int")
"""Names of the distributions that are tables. A list is a choice."""
_SURELY_LOG2 = 13
"""Base-2 logarithm of the points after which no setting is expected to be accepted, if none has been."""
_MOST_POINTS_LOG2 = 17
"""Base-2 logarithm of the most points of the sequence in which different settings are looked for."""


@final
@dataclass(frozen=True)
class Choice:
    """One of several values, each equally likely."""

    values: tuple[Any, ...]

    @property
    def size(self) -> int:
        return len(set(self.values))

    def at(self, point: float) -> Any:
        return self.values[int(point * len(self.values))]


@final
@dataclass(frozen=True)
class Real:
    """A number between two bounds, uniform or, if ``log``, with a uniform logarithm."""

    low: float
    high: float
    log: bool

    size = None

    def at(self, point: float) -> float:
        if self.log:
            return self.rounded(math.exp(math.log(self.low) * (1 - point) + math.log(self.high) * point))
        return self.rounded(self.low * (1 - point) + self.high * point)

    def rounded(self, value: float) -> float:
        """Return a number in few digits: :data:`SIGNIFICANT_DIGITS` of the number or of the range, the finer of both.

        >>> Real(low=0.2, high=0.9, log=False).rounded(0.2345678)
        0.2346
        >>> Real(low=0.9999, high=1.0, log=False).rounded(0.99991234567)
        0.9999123
        """
        finest = min(abs(value), self.high - self.low)
        if finest > 0:
            value = round(value, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(finest)))
        return min(max(value, self.low), self.high)


@final
@dataclass(frozen=True)
class Whole:
    """A whole number between two bounds, both included, in steps from the lower one.

    If ``log``, the logarithm is uniform, and small numbers are likelier.
    """

    low: int
    high: int
    step: int
    log: bool = False

    @property
    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def at(self, point: float) -> int:
        number = point * self.size
        if self.log:  # the steps from the lowest one to a number whose logarithm is uniform
            behind = self.high + self.step
            number = (math.exp(math.log(self.low) * (1 - point) + math.log(behind) * point) - self.low) / self.step
        return self.low + self.step * min(max(int(number), 0), self.size - 1)


Distribution: TypeAlias = Choice | Real | Whole
"""Each has these members.

    size         number of different values; ``None``: not counted
    at(point)    the value at a point of [0, 1)
"""


def is_distribution(value: Any) -> bool:
    """Whether a value of a manifest is, or is meant to be, the table of a distribution."""
    return isinstance(value, Mapping) and any(nearest(str(key), DISTRIBUTIONS) for key in value)


def read_distribution(key: str, value: Any) -> Distribution:
    """Return the distribution that a ``[[sample]]`` has for a key: a list or a table.

    Raises:
        ValueError: one line, which begins with the key.
    """
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{key}: expected at least one value, got an empty list")
        if any(isinstance(one, list | Mapping) for one in value):
            raise ValueError(f"{key}: expected single values in the list, got {show(value)}")
        return Choice(tuple(value))
    for name in value:
        if name not in (*DISTRIBUTIONS, "step"):
            hint = nearest(name, DISTRIBUTIONS)
            raise ValueError(
                f'{key}: unknown distribution "{name}"{hint} (valid: {", ".join(DISTRIBUTIONS)}, or a list)'
            )
    names = [name for name in DISTRIBUTIONS if name in value]
    if len(names) != 1:
        found = " and ".join(names) if names else show(value)
        raise ValueError(f"{key}: expected one of {', '.join(DISTRIBUTIONS)}, got {found}")
    (name,) = names
    is_whole = name in ("int", "log_int")
    if "step" in value and not is_whole:
        raise ValueError(f"{key}.step: applies to int and log_int only, got {name}")
    low, high = _bounds(f"{key}.{name}", value[name], name)
    if not is_whole:
        return Real(low=low, high=high, log=name == "log_uniform")
    step = value.get("step", 1)
    if type(step) is not int or not 1 <= step <= high - low:
        raise ValueError(f"{key}.step: expected a whole number from 1 to {high - low}, the range, got {show(step)}")
    return Whole(low=int(low), high=int(high), step=step, log=name == "log_int")


def _bounds(key: str, value: Any, name: str) -> tuple[Any, Any]:
    is_whole, is_log = name in ("int", "log_int"), name in ("log_uniform", "log_int")
    kinds = (int,) if is_whole else (int, float)
    if isinstance(value, list) and len(value) == 2 and all(type(one) in kinds for one in value):
        low, high = value
        if low < high and math.isfinite(low) and math.isfinite(high) and (not is_log or low > 0):
            return (low, high) if is_whole else (float(low), float(high))
    numbers = ("whole numbers" if is_whole else "numbers") + (" above 0" if is_log else "")
    raise ValueError(f"{key}: expected two {numbers}, the lower one first, got {show(value)}")


def draw(
    space: Mapping[str, Distribution],
    count: int,
    seed: int,
    accepts: Callable[[dict[str, Any]], bool] = lambda setting: True,
) -> list[dict[str, Any]]:
    """Return ``count`` different settings: key -> value.

    A setting that is drawn again is left out, and so is one that ``accepts`` refuses. There are fewer if the space has
    fewer, or if some are too rare to be found. ``space`` has at least one key. The order of its keys does not matter.
    What ``accepts`` raises is raised.
    """
    from scipy.stats import qmc

    keys = sorted(space)
    count = min(count, number_of_settings(space) or count)
    accepted: dict[tuple[Any, ...], bool] = {}
    found: list[dict[str, Any]] = []
    # Any other number of points than a power of 2 loses balance, of which SciPy warns. Here a prefix of one is wanted.
    for exponent in range((count - 1).bit_length(), _MOST_POINTS_LOG2 + 1):
        points = qmc.Sobol(d=len(keys), scramble=True, rng=seed).random_base2(exponent).tolist()
        rows = (tuple(space[key].at(x) for key, x in zip(keys, point, strict=True)) for point in points)
        found = []
        for row in dict.fromkeys(rows):
            setting = dict(zip(keys, row, strict=True))
            if row not in accepted:
                accepted[row] = accepts(setting)
            if accepted[row]:
                found.append({key: setting[key] for key in space})
            if len(found) == count:
                return found
        if not found and exponent >= _SURELY_LOG2:
            break
    return found


def number_of_settings(space: Mapping[str, Distribution]) -> int | None:
    """Return how many different settings there are. ``None``: a key is a real number, and they are not counted."""
    sizes = [distribution.size for distribution in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)
