"""Runs that a search has stopped, made up for tests."""

import math

from seqlm.rundir import RunDirectory
from tests import facts
from tests.analysis.attempt_files import at

RULE = {"metric": "val_ppl", "rungs": [3, 9], "keep": 0.33, "min_runs": 3, "within": ["model.arch"]}


def stop(run: RunDirectory, rung: int, value: float, *, rank: int, of: int, cut: float) -> None:
    """Stop a run as the worker does."""
    goes_on = math.ceil(0.33 * of)
    evidence = {"metric": "val_ppl", "rung": rung, "value": value, "rank": rank, "of": of, "keep": 0.33}
    facts.stop(run, {**evidence, "goes_on": goes_on, "cut": cut, "min_runs": 3, "at": at(0)})
