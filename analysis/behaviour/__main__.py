"""How one finished run's model behaves: ``python -m analysis.behaviour JOB_DIR``.

The job's folder is ``runs/<study>/behaviour/<run id>/``, with the ``config.json`` of the run and a ``task.json``. The
run is ``runs/<study>/<run id>/``; its folder gets ``behaviour.json``, ``samples.jsonl`` and ``losses.f32``. The job's
own ``result.json`` says that it is done. Variables: those of :mod:`seqlm.environment` for a worker of one rank.

One process. Exit codes: 0 done, else those of :mod:`seqlm.errors`.
"""

import os
import sys
from pathlib import Path

from analysis.behaviour.record import record_behaviour
from analysis.behaviour.task import Task
from seqlm.data.corpus import load_corpus
from seqlm.environment import DATA
from seqlm.errors import EXIT_USAGE, SeqlmError, UsageError
from seqlm.reading import confine
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import Attempt, StopSignal, attempt_number
from seqlm.training.distributed import limit_memory, rank_from_environment, run_program
from seqlm.trust import require_launched


def main(argv: list[str] | None = None) -> int:
    """Do one job; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m analysis.behaviour JOB_DIR", file=sys.stderr)
        return EXIT_USAGE
    job = RunDirectory(Path(arguments[0]).absolute())
    confine(job.study_dir)
    stop = StopSignal()
    stop.install()
    try:
        rank = rank_from_environment(os.environ)
        if rank.world_size != 1:
            raise UsageError(f"WORLD_SIZE: expected 1 (behaviour is computed by one process), got {rank.world_size}")
        config = job.read_config()
        require_launched(config)
        task = Task.read(job, config)
        attempt = Attempt(run=job, rank=rank, number=attempt_number(job, os.environ), stop=stop)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE

    def work() -> None:
        corpus = load_corpus(config.data, DATA.read(), job.tokenizer_file)
        stop.check()
        limit_memory(rank, os.environ)
        record_behaviour(attempt, task, corpus)

    return attempt.make(work)


if __name__ == "__main__":
    run_program(main)
