"""One rank of one run, from start to end: ``python -m seqlm.training.worker RUN_DIR``.

The command line is the same on every backend and for every attempt: training resumes from the run's last checkpoint.
What differs between ranks and machines comes from the environment: ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``
(default: the only rank), and the variables of :mod:`seqlm.environment`.

Exit codes: 0 done, else those of :mod:`seqlm.errors`. SIGTERM, SIGINT and SIGUSR2 stop the worker after it has saved.
"""

import os
import sys
from pathlib import Path

import torch
import torch.utils.deterministic

from seqlm.data.corpus import load_corpus
from seqlm.environment import DATA, DETERMINISTIC, SEARCH, VARIABLES
from seqlm.errors import EXIT_STORAGE, EXIT_USAGE, SeqlmError
from seqlm.reading import confine
from seqlm.rundir import RunDirectory
from seqlm.search import search_of
from seqlm.training.attempt import Attempt, StopSignal, attempt_number
from seqlm.training.distributed import limit_memory, process_group, rank_from_environment, run_program
from seqlm.training.failure import making_weights
from seqlm.training.self_check import check_device
from seqlm.training.step import micro_batches_from
from seqlm.training.train import canary_steps, run_canary, train
from seqlm.training.trainer import Trainer
from seqlm.trust import require_launched


def main(argv: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m seqlm.training.worker RUN_DIR", file=sys.stderr)
        return EXIT_USAGE
    run = RunDirectory(Path(arguments[0]).absolute())
    confine(run.study_dir)
    stop = StopSignal()
    stop.install()
    try:
        rank = rank_from_environment(os.environ)
        steps = canary_steps(run, os.environ)
        config = run.read_config()
        require_launched(config)
        parts = micro_batches_from(os.environ, config.train.batch_size, rank.world_size)
        for variable in VARIABLES:
            variable.read()
        search = search_of(run, SEARCH.read())
        attempt = Attempt(run=run, rank=rank, number=attempt_number(run, os.environ), stop=stop)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        # A file that is there and cannot be read just now is trouble with the disk, which is tried again.
        return EXIT_STORAGE if isinstance(error.__context__, OSError) else EXIT_USAGE
    be_deterministic()

    def work() -> None:
        check_device(config, rank)
        corpus = load_corpus(config.data, DATA.read(), run.tokenizer_file)
        limit_memory(rank, os.environ)
        with process_group(rank):
            with making_weights():
                trainer = Trainer(
                    config, corpus, rank=rank, attempt=attempt.number, micro_batches=parts, model_dir=run.model_dir
                )
            if steps is None:
                train(trainer, attempt, search)
            else:
                run_canary(trainer, attempt, steps)

    return attempt.make(work)


def be_deterministic() -> None:
    """Use only operations whose results do not vary, if ``SEQLM_DETERMINISTIC`` asks for it."""
    if DETERMINISTIC.read():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        # Else every new tensor is filled with NaN first, to find reads of what was never written: a kernel for each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


if __name__ == "__main__":
    run_program(main)
