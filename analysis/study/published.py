"""What has been published of a run, held against what the run has reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from analysis.study import units
from analysis.study.values import as_number

WITHIN, BELOW, ABOVE, NO_REPLICATIONS = (
    "within the replications' spread",
    "below it",
    "above it",
    "no replications published",
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run with what has been published of it."""

    run: dict[str, Any]
    """Its row of the runs table, as it was after the first ``published_epochs`` (see :meth:`Study.after`)."""

    @property
    def is_comparable(self) -> bool:
        """Whether the run has a result and has gone as many epochs as the published one."""
        return self.run["state"] == "done" and not self._is_short

    @property
    def _is_short(self) -> bool:
        """Whether the run has gone fewer epochs than the published one; nothing is if those are not recorded."""
        return as_number(self.run["epochs_done"]) < as_number(self.run["published_epochs"])

    @property
    def published(self) -> float:
        return float(self.run["published_val_ppl"])

    @property
    def reproduced(self) -> float:
        """Validation perplexity of the best epoch; NaN if the run is not comparable."""
        return float(self.run["val_ppl"]) if self.is_comparable else math.nan

    @property
    def train_reproduced(self) -> float:
        """Training perplexity of the last epoch, as published ones are; NaN if the run is not comparable."""
        return float(self.run["final_train_ppl"]) if self.is_comparable else math.nan

    @property
    def best_epoch(self) -> int | None:
        """The epoch of ``reproduced``, counted from 1."""
        epoch = self.run["best_epoch"]
        return int(epoch) + 1 if units.is_number(self.reproduced) and units.is_number(epoch) else None

    @property
    def difference(self) -> float:
        """Of validation perplexities: reproduced less published."""
        return self.reproduced - self.published

    @property
    def percent(self) -> float:
        return 100 * (self._ratio - 1)

    @property
    def nats(self) -> float:
        """Of validation losses per predicted token."""
        return math.log(self._ratio)

    @property
    def _ratio(self) -> float:
        """Reproduced by published; NaN where it makes no sense."""
        return self.reproduced / self.published if self.published > 0 and self.reproduced > 0 else math.nan

    @property
    def replications(self) -> tuple[float, float] | None:
        low, high = self.run["replications_low"], self.run["replications_high"]
        return (min(low, high), max(low, high)) if units.is_number(low) and units.is_number(high) else None

    @property
    def verdict(self) -> str:
        if self.run["state"] == "done" and self._is_short:
            return f"{units.epochs(self.run['epochs_done'], self.run['published_epochs'])} epochs"
        if not units.is_number(self.reproduced):
            return units.state_of(self.run["state"], self.run["failure_kind"])
        if self.replications is None:
            return NO_REPLICATIONS
        low, high = self.replications
        return BELOW if self.reproduced < low else ABOVE if self.reproduced > high else WITHIN

    @property
    def reference(self) -> str:
        return f"{self.run['number']} {self.run['name']}"
