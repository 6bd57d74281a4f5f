"""The settings that conclusions may rest on, each with what its finished runs say of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.load import Study
from analysis.seeds import Setting, finished, settings_of

WITHIN = 1.05
"""Near a best perplexity: at most this many times it."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting. With several seeds each number is the mean over them; NaN where one of them lacks it."""

    setting: Setting
    gap: float
    """Validation less training perplexity at the best epoch."""
    seconds_to_best: float
    """From the start to the end of the epoch with the lowest validation perplexity."""
    seconds_to_own_best: float
    """To the first epoch within 5 % of the run's own best."""
    seconds_to_study_best: float
    """To the first epoch within 5 % of the study's best; NaN where that is never reached."""

    @property
    def val_ppl(self) -> float:
        """Best validation perplexity; the geometric mean over seeds."""
        return self.setting.val_ppl.centre

    @property
    def reference(self) -> str:
        return self.setting.reference

    @property
    def only_run(self) -> int | None:
        """The run's number, of a setting with one seed."""
        return self.setting.runs[0] if len(self.setting.runs) == 1 else None

    def unclear_against(self, other: Candidate) -> bool:
        """Whether seeds have been repeated and the intervals over them overlap."""
        several = max(self.setting.val_ppl.n, other.setting.val_ppl.n) > 1
        return several and self.setting.val_ppl.overlaps(other.setting.val_ppl)


def candidates_of(study: Study) -> list[Candidate]:
    """Every setting with a finished run, by number."""
    settings = settings_of(study.runs)
    if not settings:
        return []
    done = finished(study.runs)
    rows: dict[int, dict[Any, Any]] = {row["number"]: row for row in done.to_dict("records")}
    to_best = _seconds_to_best(study)
    to_study_best = _seconds_to(study, WITHIN * min(setting.val_ppl.centre for setting in settings))

    def candidate(setting: Setting) -> Candidate:
        members = [rows[number] for number in setting.runs]
        return Candidate(
            setting=setting,
            gap=_mean([row["gap"] for row in members]),
            seconds_to_best=_mean(_of_runs(to_best, members)),
            seconds_to_own_best=_mean([row["seconds_to_5pct"] for row in members]),
            seconds_to_study_best=_mean(_of_runs(to_study_best, members)),
        )

    return [candidate(setting) for setting in settings]


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The one with the lowest validation perplexity; the first of several alike."""
    return min(candidates, key=lambda candidate: (candidate.val_ppl, candidate.setting.number))


def _seconds_to_best(study: Study) -> dict[str, float]:
    best = dict(zip(study.runs["id"], study.runs["best_epoch"].astype(float), strict=True))
    epochs = study.epochs
    there = epochs[epochs["epoch"].astype(float) == epochs["id"].map(best).astype(float)]
    return dict(zip(there["id"], there["elapsed_seconds"], strict=True))


def _seconds_to(study: Study, perplexity: float) -> dict[str, float]:
    there = study.epochs[study.epochs["val_ppl"] <= perplexity].drop_duplicates("id")
    return dict(zip(there["id"], there["elapsed_seconds"], strict=True))


def _of_runs(seconds: Mapping[str, float], rows: Sequence[Mapping[Any, Any]]) -> list[float]:
    return [seconds.get(row["id"], math.nan) for row in rows]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)
