"""Whether the records of a finished run agree with each other, and which parts of it can be trained again.

Nothing is trained here (:mod:`seqlm.training.audit` does). Standard library alone.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from seqlm.config import RunConfig
from seqlm.records.runs import Finding, Result
from seqlm.rundir import FINGERPRINT_DIGITS, RunDirectory
from seqlm.trace import read_trace

WORDS = {
    "equal": "equal",
    "rounding": "equal up to rounding",
    "differs": "differs",
    "unknown": "not checked",
    "failed": "failed",
}
"""Verdicts in words, in the order in which they are counted up."""
TENTH = 0.1
"""Share of false epochs for which the probability to miss all of them is said."""
HALF_UNIT = 2.0**-24
"""Largest relative error of a number that is rounded to float32."""


def records_finding(run: RunDirectory, config: RunConfig) -> Finding:
    """Compare ``config.json``, ``metrics.jsonl``, ``steps.f32`` and ``result.json`` of a run that is done.

    Raises:
        FileError: a file cannot be read.
    """
    problems = [*_problems(run, config)]
    more = f"; {len(problems) - 3} more" if len(problems) > 3 else ""
    if problems:
        return Finding(part="records", verdict="differs", text="; ".join(problems[:3]) + more)
    return Finding(part="records", verdict="equal", text="metrics, steps and result agree")


def _problems(run: RunDirectory, config: RunConfig) -> Iterator[str]:
    epochs, warnings = run.read_metrics()
    result = run.read_result() or Result()
    yield from warnings
    digits = config.fingerprint()[:FINGERPRINT_DIGITS]
    if not run.id.endswith(digits):
        yield f"config.json is that of a run {digits}"
    if [record["epoch"] for record in epochs] != list(range(result.epochs or 0)):
        yield f"result.json is about {result.epochs} epochs, metrics.jsonl has {len(epochs)}"
        return
    for record in epochs:
        for split in ("train", "val"):
            loss, perplexity = record.get(f"{split}_loss"), record.get(f"{split}_ppl")
            if not _is_exponential(loss, perplexity):
                yield f"epoch {record['epoch'] + 1}: {split}_ppl is {perplexity}, but {split}_loss is {loss}"
    yield from _problems_of_result(result, epochs)
    yield from _problems_of_trace(run, epochs)


def _problems_of_result(result: Result, epochs: list[dict[str, Any]]) -> Iterator[str]:
    best = min(epochs, key=lambda record: _number(record.get("val_loss")))  # the first of equals
    final = epochs[-1]
    expected = {"best_epoch": best["epoch"], "best_val_bits_per_byte": best.get("val_bits_per_byte")}
    expected |= {f"best_{key}": best.get(key) for key in ("train_ppl", "val_loss", "val_ppl")}
    expected |= {f"final_{key}": final.get(key) for key in ("epoch", "train_ppl", "val_ppl")}
    for name, value in expected.items():
        found = getattr(result, name)
        if found != value and not (name == "best_val_bits_per_byte" and found is None):  # of an earlier version
            yield f"{name} is {found} in result.json, but {value} in metrics.jsonl"
    if not _is_exponential(result.test_loss, result.test_ppl):
        yield f"test_ppl is {result.test_ppl}, but test_loss is {result.test_loss}"


def _problems_of_trace(run: RunDirectory, epochs: list[dict[str, Any]]) -> Iterator[str]:
    trace = read_trace(run)
    if trace is None:
        return
    steps = trace.steps
    if len(trace.rows) != steps * len(epochs):
        yield f"steps.f32 has {len(trace.rows):,} steps, expected {steps * len(epochs):,}"
        return
    for record in epochs:
        place, loss = record["epoch"] * steps, _number(record.get("train_loss"))
        losses = [row[0] for row in trace.rows[place : place + steps]]
        mean = math.fsum(losses) / steps
        if math.isnan(mean):
            continue  # an earlier version recorded no steps, which an audit says when it trains them again
        # Each row is rounded. The second bound is over eight deviations of the mean of so many roundings.
        bound = max(1e-7, HALF_UNIT * max(map(abs, losses)) * min(1.0, 5 / math.sqrt(steps)))
        if not abs(mean - loss) <= bound:
            yield f"epoch {record['epoch'] + 1}: train_loss is {loss}, but the mean of its steps is {mean:.9g}"


def _number(value: Any) -> float:
    return value if type(value) is float else math.inf


def _is_exponential(loss: Any, perplexity: Any) -> bool:
    if type(loss) is not float:
        return False
    try:
        expected = math.exp(loss)
    except OverflowError:
        return perplexity is None
    return type(perplexity) is float and math.isclose(perplexity, expected, rel_tol=1e-12)


# -- verdicts ------------------------------------------------------------------------------------------------------


def counted(verdicts: Iterable[str]) -> str:
    """Return how many there are of each verdict: ``24 equal, 1 differs``."""
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {words}" for verdict, words in WORDS.items() if counts[verdict])


def chance_to_miss(drawn: int) -> float:
    """Return the probability that none of the drawn epochs shows a fault if one epoch in ten has one."""
    return (1 - TENTH) ** drawn


# -- stretches -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """Consecutive epochs of a run that can be trained again: from its seed, or from a kept checkpoint."""

    start: int
    """Epochs before it."""
    end: int
    """Epochs up to its end."""

    @property
    def part(self) -> str:
        """What it is called, with epochs counted from 1."""
        return f"epoch {self.end}" if self.end == self.start + 1 else f"epochs {self.start + 1}-{self.end}"


def stretches_of(run: RunDirectory, epochs: int) -> list[Stretch]:
    """Return the epochs that can be trained again one at a time: the first, and each after a kept checkpoint."""
    return [Stretch(start, start + 1) for start in (0, *run.kept_epochs()) if start < epochs]
