"""Into how many micro-batches the next attempt of a run cuts its steps, from what its attempts have left behind."""

from __future__ import annotations

from jobs.retry import Failed, failed_of, history
from seqlm.data.layout import own_columns
from seqlm.rundir import RunDirectory

VARIABLE = "SEQLM_MICRO_BATCHES"
"""How a worker is told."""


def most_micro_batches(batch_size: int, ranks: int) -> int:
    """The largest of 1, 2, 4, ... that gives each part of each rank a column."""
    columns = len(own_columns(batch_size, ranks - 1, ranks))  # the last rank has the fewest
    return 1 << (columns.bit_length() - 1)


def micro_batches(run: RunDirectory, batch_size: int, ranks: int) -> int:
    """The number for the next attempt: twice as many after each that was short of memory, else what it was.

    So a run that needed four keeps them for the rest of its life, whoever launches it. A canary has the number of the
    run that it stands for, and the job of a model's behaviour, which takes no steps, one.
    """
    if run.task_file.exists():
        return 1
    if run.is_canary:
        run = RunDirectory(run.path.parents[1] / run.id)
    failures = history(run)
    if (last := run.read_failure()) is not None:  # of a run that is about to be launched again
        failures.append(failed_of(last))
    return min(after(failures), most_micro_batches(batch_size, ranks))


def after(failures: list[Failed]) -> int:
    """The number that follows from a run's failures, in order."""
    number = 1
    for failed in failures:
        if failed.kind == "oom":
            number = 2 * failed.micro_batches
    return number
