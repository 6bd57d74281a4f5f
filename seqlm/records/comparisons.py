"""The files of comparisons of two settings, ``comparisons/<key>/``."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from seqlm.records.base import Record
from seqlm.schema import Count, NotNegative


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pair(Record):
    """Two runs with one seed, by their ids."""

    seed: NotNegative
    a: str
    b: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison(Record):
    """``comparison.json``: two settings that are compared."""

    FILE: ClassVar[str] = "comparison.json"

    a: str = ""
    """Conditions on runs, as typed. Likewise ``b``."""
    b: str = ""
    pairs: tuple[Pair, ...] = ()
    """In the order of their seeds."""
    epochs: Count = 1
    """Epochs after which the runs are compared."""
    margin: float = 0.0
    """A smaller difference does not matter, in nats."""
    error: float = 0.05
    """Share of studies in which chance may lead to a false claim."""
    manifest: str | None = None
    """Name of the file of the manifest that has it as a ``[[decide]]``: its runs stop once it is decided. ``None``: it
    was typed, or the manifest has it no more."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ComparisonVerdict(Record):
    """``verdict-9-of-2.json``: what 9 seeds show in a study of 2 comparisons. Losses are in nats."""

    a: str = ""
    b: str = ""
    outcome: str = "undecided"
    """``lower``: a is lower. ``higher``, ``no difference``: none above the margin. ``undecided``."""
    alone: str = "undecided"
    """The outcome if it were the only comparison of its study."""
    text: str = ""
    """The verdict in words."""
    seeds: tuple[int, ...] = ()
    """Those that were used, in order."""
    differences: tuple[float, ...] = ()
    """Best validation loss of a less that of b, by seed."""
    mean: float | None = None
    """``None``: there is no difference yet."""
    low: float | None = None
    """``None``: not finite. Likewise ``high``."""
    high: float | None = None
    decided_after: int | None = None
    """The fewest first seeds that decide it."""
    comparisons: Count = 1
    """Comparisons of the study."""
    error: float = 0.05
    margin: float = 0.0
    epochs: int = 1
    left_out: tuple[str, ...] = ()
    """Ids of the runs that have no loss, since they diverged. Their pairs are left out."""
    waits_for: tuple[str, ...] = ()
    """Ids of the runs of the first seed that have not ended: later seeds do not count before. Empty: all have ended."""

    def turned(self) -> Self:
        """Return it with its sides the other way round. Its text stays."""
        outcome = {"lower": "higher", "higher": "lower"}
        return replace(
            self,
            a=self.b,
            b=self.a,
            outcome=outcome.get(self.outcome, self.outcome),
            alone=outcome.get(self.alone, self.alone),
            differences=tuple(-one for one in self.differences),
            mean=None if self.mean is None else -self.mean,
            low=None if self.high is None else -self.high,
            high=None if self.low is None else -self.low,
        )
