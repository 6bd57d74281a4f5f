"""Decide at a rung of a search which runs go on, from the files of the study alone. Standard library alone.

A rung is a number of finished epochs at which runs are compared. The worker of a run decides for it: asynchronous
successive halving in its stopping form, as in Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys
2020, and in Klein et al., Model-based Asynchronous Hyperparameter and Neural Architecture Search, 2020.

Each decision is made once and kept in a file of its own in the run's folder, ``rung-9.json``. If the run was stopped, a
later request for it lets it go on. Whatever reads or writes files raises ``FileError`` if that fails.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from seqlm.config import RunConfig, valid_keys
from seqlm.errors import ConfigError, DamagedFileError, FileError, UsageError, nearest_key
from seqlm.files import Guard, unguarded
from seqlm.reading import timestamp
from seqlm.records.runs import Rung
from seqlm.rundir import RunDirectory
from seqlm.schema import Count, Table, Valid, read

Decision: TypeAlias = Literal["goes on", "stopped"]
Group: TypeAlias = Mapping[str, Any]
"""Dotted key -> value, of the keys in which runs must be equal to be compared."""

ALWAYS_WITHIN = tuple(key for key in valid_keys() if key.startswith(("data.", "eval.")) and key != "data.tokenizer")
"""Keys that decide which text is scored and how: values of different texts say nothing about each other. The digest of
a tokenizer is one of them, the name of its file is not."""


def goes_on(
    value: float, reached: Collection[float], *, keep: float, min_runs: int, guessing: float = math.inf
) -> bool:
    """Return whether a run goes on from a rung.

    No run goes on with a value above ``guessing``, what a model has that gives each token the same probability. Else it
    goes on while its value is among the lowest ceil(len(reached) * keep), or if fewer than ``min_runs`` runs have
    reached the rung. Equal values share a place: either all of them go on or none, so the order of arrival of equal
    runs does not matter. Lower is better; NaN and infinite values are the worst, and equal to each other. ``reached``
    has the values of all runs that have reached the rung so far, this one among them.
    """
    is_good_enough = len(reached) < min_runs or _rank(value, reached) <= places(len(reached), keep)
    return is_good_enough and _ordered(value) <= guessing


def guessing(metric: str, vocab_size: int) -> float:
    """Return the value of a metric for a model that gives each token of the vocabulary the same probability."""
    return math.log(vocab_size) if metric == "val_loss" else float(vocab_size)


def places(number: int, keep: float) -> int:
    """Return how many of ``number`` runs go on: the share ``keep`` of them, rounded up; at least one.

    >>> places(25, 0.28)  # of floats, 25 * 0.28 is a little more than 7
    7
    """
    return max(1, math.ceil(round(number * keep, 9)))


def _rank(value: float, reached: Collection[float]) -> int:
    """Return the place of a value, from 1: one more than the number of lower values."""
    own = _ordered(value)
    return 1 + sum(_ordered(other) < own for other in reached)


def _ordered(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _check_keys(name: str, value: Any) -> Iterator[str]:
    for key in value:
        if key not in valid_keys():
            yield f'{name}: expected keys of a run\'s configuration, got "{key}"{nearest_key(key, valid_keys())}'


@dataclass(frozen=True, kw_only=True)
class Search(Table):
    """The rule of a study's search: the table ``[search]`` of its manifest. It is no part of a run's identity."""

    NAME = "search"
    NO_KEYS: ClassVar[Mapping[str, str]] = {
        "mode": "{name}: no such key any more; each run is compared with those that have reached the rung so far",
    }

    rungs: Annotated[
        tuple[Count, ...],
        Valid("a list of epochs above 0 in ascending order, such as [3, 9, 27]", least=1, ascending=True),
    ]
    """Epochs after which runs are compared, ascending, each below every run's `train.epochs`: `[3, 9, 27]`."""
    metric: Literal["val_ppl", "train_ppl", "val_loss"] = "val_ppl"
    """Value of that epoch in `metrics.jsonl` to compare; lower is better."""
    keep: Annotated[float, Valid("a share above 0 and below 1", above=0, below=1)] = 0.33
    """Share of runs that goes on from a rung, rounded up. Runs with equal values go on or stop together."""
    min_runs: Count = 3
    """Runs that must reach the rung before it stops one, unless its perplexity exceeds the vocabulary's size: worse
    than guessing."""
    within: Annotated[tuple[str, ...], Valid('a list of keys, such as ["model.arch"]', check=_check_keys)] = ()
    """Compare only runs with equal values of these keys: `["model.arch"]`. Default: all runs of the study. Keys of
    `data` and `eval` always belong to it: runs on different texts are never compared."""
    final_seeds: Count = 1
    """Seeds of each setting that reaches its end. The search itself is by one seed of each setting; the others are
    trained once that is done, are compared with nobody, and are never stopped."""

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Read the text of ``SEQLM_SEARCH``. ``None``: there is no search.

        Raises:
            UsageError: it is not the JSON of a search.
        """
        if not text:
            return None
        try:
            return read(cls, json.loads(text))
        except (ValueError, ConfigError):
            raise UsageError(f"SEQLM_SEARCH: expected the [search] table as JSON, got {text}") from None

    def to_text(self) -> str:
        """Return the text that :meth:`from_text` reads."""
        return json.dumps(self.to_dict())

    def group_of(self, config: Mapping[str, Any]) -> Group:
        """Return the group of a run, given its configuration by dotted key. Runs of equal groups are compared."""
        return {key: config.get(key) for key in (*ALWAYS_WITHIN, *self.within)}


def group_sizes(search: Search, configs: Iterable[RunConfig]) -> Counter[str]:
    """Return how many of these configurations come to the first rung, of each group of runs that are compared."""
    groups = (search.group_of(config.by_key()) for config in configs if config.train.epochs > search.rungs[0])
    return Counter(json.dumps(group) for group in groups)


def never_stops(search: Search, configs: Iterable[RunConfig]) -> bool:
    """Return whether the rule can stop none of these configurations for its place at a rung, whatever the values."""
    largest = max(group_sizes(search, configs).values(), default=0)
    return all(places(number, search.keep) >= number for number in range(search.min_runs, largest + 1))


def search_of(run: RunDirectory, text: str) -> Search | None:
    """Return the search that may stop a run, given the text of ``SEQLM_SEARCH``.

    ``None``: there is no search, or the run is a final seed, which goes to its end.

    Raises:
        UsageError: the text is not the JSON of a search.
    """
    search = Search.from_text(text)
    return search if run.first_seed() is None else None


# -- the files of a study ------------------------------------------------------------------------------------------


def values_at(run: RunDirectory, search: Search, rung: int) -> dict[str, float]:
    """Return the value of each run of the study that has reached the rung and is compared with ``run``, by run id.

    Of a run about which the rung has decided, the record of that says enough; of others the metrics are read. Files
    that are damaged, half copied, or of something else count as missing, except for those of ``run``.
    """
    group = _group_of(run, search)
    own = _value_at(run, search.metric, rung)
    if own is None:
        raise FileError(f"{run.metrics_file}: expected {search.metric} of epoch {rung}, found none")
    found = {run.id: own}
    for other in RunDirectory.unordered_in(run.path.parent):
        if other.id == run.id or other.first_seed() is not None:
            continue
        with contextlib.suppress(FileError, OSError):
            value = _compared_value(other, search, rung, group)
            if value is not None:
                found[other.id] = value
    return found


def _group_of(run: RunDirectory, search: Search) -> Group:
    """Return the group of a run, in the values that a JSON file has."""
    group: Group = json.loads(json.dumps(search.group_of(run.read_config().by_key())))
    return group


def _compared_value(other: RunDirectory, search: Search, rung: int, group: Group) -> float | None:
    """Return the value of another run at a rung. ``None``: it is not compared with the runs of ``group``, or has none.

    A decision by another metric or by fewer keys, before the table was changed, does not count.
    """
    decision = None
    with contextlib.suppress(DamagedFileError):
        decision = Rung.read_file(other.rung_file(rung))
    recorded = None if decision is None or decision.metric != search.metric else decision.group
    if decision is not None and recorded is not None and recorded.keys() >= group.keys():
        if any(recorded[key] != own for key, own in group.items()):
            return None
        return math.inf if decision.value is None else float(decision.value)
    value = _value_at(other, search.metric, rung)
    return value if value is not None and _group_of(other, search) == group else None


def _value_at(run: RunDirectory, metric: str, rung: int) -> float | None:
    """Return a run's value after ``rung`` epochs; infinity for NaN, which files have as null. ``None``: none."""
    records, _ = run.read_metrics()
    for record in reversed(records):
        if record["epoch"] == rung - 1:
            value = record.get(metric, "")
            if value is None:
                return math.inf
            with contextlib.suppress(OverflowError):  # a whole number of more than 308 digits
                return _ordered(float(value)) if type(value) in (int, float) else None
    return None


# -- decisions -----------------------------------------------------------------------------------------------------


def decide(
    run: RunDirectory, search: Search, rung: int, attempt: int, *, vocab_size: int, guard: Guard = unguarded
) -> Decision:
    """Return the decision about a run that has finished ``rung`` epochs, on a text of ``vocab_size`` different tokens.

    Unless that is done, it is made and recorded with its evidence, and with the ``attempt`` that makes it. A run that
    was stopped here goes on if a later request says so.

    Raises:
        LeaseLostError: ``guard`` says that the run belongs to another worker by now.
    """
    if rung in run.read_rungs():
        stopped = run.read_stopped()
        return "stopped" if stopped is not None and stopped.rung == rung else "goes on"
    values, group = values_at(run, search, rung), _group_of(run, search)
    value, reached = values[run.id], list(values.values())
    going_on = places(len(reached), search.keep)
    worst = guessing(search.metric, vocab_size)
    is_good = goes_on(value, reached, keep=search.keep, min_runs=search.min_runs, guessing=worst)
    decision: Decision = "goes on" if is_good else "stopped"
    evidence = Rung(
        decision=decision,
        metric=search.metric,
        rung=rung,
        value=value,
        rank=_rank(value, reached),
        of=len(reached),
        keep=search.keep,
        goes_on=going_on,
        cut=min(sorted(reached)[going_on - 1], worst),
        min_runs=search.min_runs,
        guessing=worst,
        group=group,
        attempt=attempt,
        at=timestamp(),
    )
    evidence.write_file(run.rung_file(rung), guard=guard)
    return decision
