"""The table ``[search]``: at which epochs the runs of a study are compared, and how many of them go on.

The rule itself is :mod:`seqlm.search`. It is no part of a run's identity. It is kept in ``study.json``, for launches
without the manifest, and each worker gets it in ``SEQLM_SEARCH``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Lt, MinLen

from jobs.manifests.fields import Problems, Valid
from jobs.manifests.reader import show
from jobs.spec import RunSpec
from seqlm.config import valid_keys
from seqlm.errors import nearest_key
from seqlm.search import METRICS, Metric, Search

_RUNGS = "a list of epochs above 0 in ascending order"


def _ascending(name: str, value: Any) -> Iterator[str]:
    if any(second <= first for first, second in itertools.pairwise(value)):
        yield f"{name}: expected {_RUNGS}, got {show(value)}"


def _keys(name: str, value: Any) -> Iterator[str]:
    for key in value:
        if key not in valid_keys():
            yield f'{name}: expected keys of a run\'s configuration, got "{key}"{nearest_key(key, valid_keys())}'


@dataclass(frozen=True, kw_only=True)
class SearchTable:
    """``[search]``."""

    NO_KEYS: ClassVar[Mapping[str, str]] = {
        "mode": "{name}: no such key any more; each run is compared with those that have reached the rung so far",
    }

    rungs: Annotated[list[Annotated[int, Ge(1)]], MinLen(1), Valid(f"{_RUNGS}, such as [3, 9, 27]", check=_ascending)]
    """Epochs after which runs are compared, in ascending order, such as `[3, 9, 27]`. Each is below `train.epochs` of
    every run."""
    metric: Annotated[Metric, Valid(f"one of {', '.join(METRICS)}")] = Search.metric
    """What is compared: the value of that epoch in `metrics.jsonl`. Lower is better."""
    keep: Annotated[float, Gt(0), Lt(1), Valid("a share above 0 and below 1")] = Search.keep
    """Share of the runs that goes on from a rung, rounded up. Runs with equal values go on together or stop
    together."""
    min_runs: Annotated[int, Ge(1), Valid("a whole number of at least 1")] = Search.min_runs
    """No run is stopped before this number of runs has reached the rung."""
    within: Annotated[list[str], Valid('a list of keys, such as ["model.arch"]', check=_keys)] = field(
        default_factory=list
    )
    """Keys of the configuration, such as `["model.arch"]`: a run is compared with the runs that have the same values.
    Without it, with all runs of the study."""


def check_epochs(
    table: Mapping[str, Any], runs: Iterable[tuple[RunSpec, RunSpec]], where: str, lines: Problems
) -> None:
    """Add a line if a rung is not below the epochs of a run. ``runs`` are pairs: as written, and after ``--set``.

    A trial with fewer epochs by ``--set`` is no mistake: it ends before it comes to the rung.
    """
    last = table["rungs"][-1]
    for written, launched in runs:
        epochs = max(written.config.train.epochs, launched.config.train.epochs)
        if last >= epochs:
            what = f"expected epochs below train.epochs of every run, got {last}"
            lines.add(where, f"search.rungs: {what}; {launched.name} has {epochs}")
            return
