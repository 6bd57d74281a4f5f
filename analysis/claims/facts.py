"""The numbers that claims rest on, of each setting of a study at equal epochs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analysis.claims.verdict import EQUAL_NATS, Difference, EpochTimes, Losses, Noise, Verdict, difference, verdicts
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.settings import Setting, by_perplexity, on_one_machine
from analysis.study.study import StudyFiles
from analysis.study.values import read_or_warn
from seqlm.records.comparisons import ComparisonVerdict
from seqlm.token_losses import read_token_losses

SAME_LOSS_NATS = 0.002
"""The mean of the recorded losses is that of the perplexity in the table: else they are of another epoch."""

MOST_BYTES = 2**29
"""Most memory that the losses of all compared settings take, by and large."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the settings of a study."""

    study: StudyFiles
    """At equal epochs."""
    warnings: list[str] = field(default_factory=list)
    """What could not be read, one line each."""

    @property
    def settings(self) -> list[Setting]:
        return self.study.settings

    @cached_property
    def rows(self) -> dict[RunNumber, dict[Any, Any]]:
        """The row of each finished run, by its number."""
        return {row["number"]: row for row in finished(self.study.runs).to_dict("records")}

    def noise(self, text: str, column: str = "val_loss") -> Noise:
        """Return how far a number of runs of one setting is apart on a text: of the study's own seeds.

        Of validation losses, also of published replications.
        """
        if (text, column) not in self._noises:
            own = [self.values(setting, column) for setting in self.settings if setting.text == text]
            known = [values for values in own if all(map(math.isfinite, values))]
            self._noises[text, column] = Noise.of(known, self._replications(text) if column == "val_loss" else ())
        return self._noises[text, column]

    @cached_property
    def _noises(self) -> dict[tuple[str, str], Noise]:
        return {}

    def _replications(self, text: str) -> list[tuple[float, float]]:
        """Return the lowest and the highest loss of the published replications of runs on a text."""
        runs = self.study.runs[self.study.runs["text"] == text]
        rows = runs[["replications_low", "replications_high"]].astype(float).dropna()
        return [(math.log(low), math.log(high)) for low, high in rows.itertuples(index=False) if 0 < low <= high]

    def values(self, setting: Setting, column: str) -> list[float]:
        """Return a number of each run of a setting: a column of the runs table, or the loss of a perplexity there.

        ``val_loss`` is the logarithm of ``val_ppl``, and so on. NaN: a run lacks the number.
        """
        found = []
        for run in setting.runs:
            row = self.rows[run]
            if column in row:
                found.append(float(row[column]) if units.is_number(row[column]) else math.nan)
            else:
                perplexity = row[column.removesuffix("_loss") + "_ppl"]
                is_known = units.is_number(perplexity) and perplexity > 0
                found.append(math.log(perplexity) if is_known else math.nan)
        return found

    def mean(self, setting: Setting, column: str) -> float:
        """Return the mean over the runs of a setting; NaN: one of them lacks the number."""
        return statistics.fmean(self.values(setting, column))

    # -- losses ------------------------------------------------------------------------------------------------------

    @cached_property
    def _token_losses(self) -> dict[tuple[RunNumber, ...], Losses | None]:
        return {}

    def token_losses(self, setting: Setting) -> Losses | None:
        """Return the loss of each token of the validation text, the mean over the runs of a setting.

        ``None``: a run has not recorded them, or not those of the epoch by which the setting is compared.
        """
        runs = tuple(setting.runs)  # an expectation may be about some seeds of a setting alone
        if runs not in self._token_losses:
            found = [self._losses_of(run) for run in runs]
            known = [losses for losses in found if losses is not None]
            lengths = {len(losses) for losses in known}
            is_whole = len(known) == len(found) and len(lengths) == 1
            self._token_losses[runs] = np.mean(known, axis=0) if is_whole else None
        return self._token_losses[runs]

    def _losses_of(self, run: RunNumber) -> Losses | None:
        row = self.rows[run]
        if sum(losses.nbytes for losses in self._token_losses.values() if losses is not None) > MOST_BYTES:
            self.warnings.append("the losses of tokens of some runs are left out: together they are too large")
            return None
        recorded = read_or_warn(lambda: read_token_losses(self.study.directory_of(row["id"])), None, self.warnings)
        if recorded is None:
            return None
        losses = np.array(recorded, np.float64)
        losses[~(np.isfinite(losses) & (losses >= 0))] = math.nan
        known = losses[np.isfinite(losses)]
        # Else they are those of another epoch: the run has gone on, or is compared as it was earlier.
        is_of_epoch = len(known) and abs(float(known.mean()) - math.log(row["val_ppl"])) < SAME_LOSS_NATS
        return losses if is_of_epoch else None

    def difference(self, a: Setting, b: Setting) -> Difference:
        """Return the validation loss of ``b`` less that of ``a``."""
        return difference(
            (self.mean(a, "val_loss"), self.mean(b, "val_loss")),
            (self.token_losses(a), self.token_losses(b)),
            (len(a.runs), len(b.runs)),
        )

    def judged(
        self, pairs: Sequence[tuple[Setting, Setting]], differences: Sequence[Difference], noise: Noise
    ) -> list[tuple[Verdict, ComparisonVerdict | None]]:
        """Return a verdict on the losses of each pair of one question, and the comparison over seeds that gives it.

        ``None``: the study does not compare these settings over seeds. One that does may have added seeds until it was
        clear, so the verdict is that of its test, which allows for that.
        """
        found: list[tuple[Verdict, ComparisonVerdict | None]] = []
        for (a, b), one, verdict in zip(pairs, differences, verdicts(differences, noise), strict=True):
            over_seeds = self._over_seeds(a, b)
            found.append((verdict if over_seeds is None else _of_seeds(over_seeds, one.nats), over_seeds))
        return found

    def _over_seeds(self, a: Setting, b: Setting) -> ComparisonVerdict | None:
        """Return what a comparison over seeds shows of the loss of ``a`` less that of ``b``, at the same epochs."""
        ids = [{self.rows[run]["id"] for run in one.runs} for one in (a, b)]
        epochs = {self.rows[run]["compared_epochs"] for run in (*a.runs, *b.runs)}
        for one in self.study.comparisons:
            if epochs != {one.verdict.epochs}:
                continue
            for sides, verdict in (((one.a, one.b), one.verdict), ((one.b, one.a), one.verdict.turned())):
                own = [side & self._finished for side in sides]
                if all(own) and own[0] <= ids[0] and own[1] <= ids[1]:
                    return verdict
        return None

    @cached_property
    def _finished(self) -> frozenset[str]:
        return frozenset(row["id"] for row in self.rows.values())

    def gap(self, setting: Setting) -> float:
        """Return validation less training loss at the best epoch, both without dropout; NaN: not recorded."""
        return self.mean(setting, "val_loss") - self.mean(setting, "train_slice_loss")

    # -- times -------------------------------------------------------------------------------------------------------

    @cached_property
    def _curves(self) -> dict[Any, tuple[list[float], list[float]]]:
        """The validation perplexity and the time of each epoch of each run, by its number."""
        epochs = self.study.epochs
        perplexities, seconds = (epochs[name].to_numpy(float).tolist() for name in ("val_ppl", "epoch_seconds"))
        curves: dict[Any, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
        for number, perplexity, time in zip(epochs["number"].tolist(), perplexities, seconds, strict=True):
            curves[number][0].append(perplexity)
            curves[number][1].append(time)
        return dict(curves)

    @cached_property
    def _epoch_times(self) -> dict[tuple[RunNumber, ...], EpochTimes | None]:
        return {}

    def epoch_times(self, setting: Setting) -> EpochTimes | None:
        """Return the times of its epochs, but the first of each run; ``None``: there are none."""
        runs = tuple(setting.runs)
        if runs not in self._epoch_times:
            seconds = [one for run in runs for one in self._curves.get(run, ([], []))[1][1:]]
            known = tuple(one for one in seconds if math.isfinite(one) and one > 0)
            self._epoch_times[runs] = EpochTimes(seconds=known) if len(known) > 1 else None
        return self._epoch_times[runs]

    def epochs_to(self, setting: Setting, target: float) -> float | None:
        """Return after how many epochs a setting reaches a perplexity, the mean over its runs.

        ``None``: a run does not.
        """
        counts = []
        for run in setting.runs:
            curve = self._curves.get(run, ([], []))[0]
            place = next((place for place, value in enumerate(curve, start=1) if value <= target), None)
            if place is None:
                return None
            counts.append(place)
        return statistics.fmean(counts)

    def seconds_to(self, setting: Setting, target: float) -> float | None:
        """Return epochs to a perplexity times the median time of an epoch; ``None``: not reached, or no times."""
        epochs, times = self.epochs_to(setting, target), self.epoch_times(setting)
        return None if epochs is None or times is None else epochs * times.median

    def is_sooner(self, a: Setting, b: Setting, target: float) -> bool:
        """Return whether ``a`` reaches a perplexity sooner than ``b`` by more than an epoch of either."""
        times = [self.epoch_times(one) for one in (a, b)]
        seconds = [self.seconds_to(one, target) for one in (a, b)]
        assert None not in times, "both have times"
        longest = max(one.median for one in times if one is not None)
        return seconds[0] is not None and (seconds[1] is None or seconds[1] - seconds[0] > longest)


def _of_seeds(found: ComparisonVerdict, nats: float) -> Verdict:
    """Return the verdict of a comparison over seeds. ``nats``: the loss of b less that of a, as the claim has it."""
    if found.outcome in ("lower", "higher"):
        return Verdict.APART if (found.outcome == "lower") == (nats > 0) else Verdict.NOT_APART
    low, high = found.low, found.high
    is_equal = low is not None and high is not None and -EQUAL_NATS < low <= high < EQUAL_NATS
    return Verdict.EQUAL if is_equal else Verdict.NOT_APART


def timed_on_one_machine(facts: Facts) -> list[Setting]:
    """Return the settings with epoch times that ran on the machine of the most; times compare on one alone."""
    return on_one_machine([one for one in facts.settings if facts.epoch_times(one) is not None])


def best_of_each(settings: Sequence[Setting]) -> dict[tuple[str | None, str | None], Setting]:
    """Return the setting with the lowest perplexity of each architecture and optimizer."""
    best: dict[tuple[str | None, str | None], Setting] = {}
    for setting in by_perplexity(settings):
        best.setdefault((setting.arch, setting.optimizer), setting)
    return best


def middle(settings: Sequence[Setting], facts: Facts) -> float:
    """Return the lowest perplexity that each run of at least half of these settings reaches, whatever the others do."""
    return sorted(highest([one], facts) for one in settings)[len(settings) // 2]


def highest(settings: Sequence[Setting], facts: Facts) -> float:
    """Return the lowest perplexity that each run of each of these settings reaches."""
    return max(float(facts.rows[run]["val_ppl"]) for one in settings for run in one.runs)
