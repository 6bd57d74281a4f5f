"""One rank of one run, from start to end: ``python -m seqlm.training.worker RUN_DIR``.

The same command line on every backend and for every attempt: it goes on where the run's files say it stopped. What
differs between ranks and machines comes from the environment:

    RANK, WORLD_SIZE, LOCAL_RANK    which rank this is (default: the only one)
    SEQLM_RENDEZVOUS                file:///... names the port where ranks meet; else MASTER_ADDR and MASTER_PORT
    SEQLM_RENDEZVOUS_HOST           the first rank's host, which has that port (default: 127.0.0.1)
    SEQLM_DEVICE                    cpu or cuda (default: cuda where there is a device)
    SEQLM_GPU_SHARE                 share of the GPU whose memory this rank may use, such as 0.25 (default: 1)
    SEQLM_DATA                      folder or zip of the corpus
    SEQLM_NODE                      the node's name where hosts do not tell nodes apart, for the record
    SEQLM_ATTEMPT                   number of this attempt (default: one more than there were)
    SEQLM_CHECKPOINT_MINUTES        how often the state is saved within an epoch (default: 10)
    SEQLM_KEEP_LAST                 0: delete last.pt once the run is done (default: 1)
    SEQLM_DETERMINISTIC             1: operations whose results do not vary from one time to the next, on a GPU too
    SEQLM_MICRO_BATCHES             parts in which each step takes the rank's columns, to save memory (default: 1)
    SEQLM_LEASE_SECONDS             between two heartbeats of the run's lease (default: 10)
    SEQLM_STALE_LEASE_MINUTES       without one until a worker of another host is taken over (default: 3)
    SEQLM_COLLECTIVE_MINUTES        a rank waits for the others before it gives up (default: 10)
    SEQLM_CANARY                    in the folder of a canary: train so many steps, write canary.json, and be done

Exit codes: 0 done, else those of :mod:`seqlm.errors`. SIGTERM, SIGINT and SIGUSR2 stop the worker after it has saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.utils.deterministic

from seqlm.data.corpus import load_corpus
from seqlm.environment import positive_number
from seqlm.errors import EXIT_STORAGE, EXIT_USAGE, SeqlmError
from seqlm.files import Guard
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopSignal, attempt_number, make_attempt
from seqlm.training.canary import canary_steps, run_canary
from seqlm.training.distributed import gpu_share, process_group, rank_from_environment
from seqlm.training.micro_batches import micro_batches_from
from seqlm.training.progress_file import WRITE_SECONDS
from seqlm.training.self_check import check_device
from seqlm.training.trainer import CHECKPOINT_MINUTES, Trainer


def main(argv: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m seqlm.training.worker RUN_DIR", file=sys.stderr)
        return EXIT_USAGE
    run = RunDirectory(Path(arguments[0]).absolute())
    stop = StopSignal()
    stop.install()
    try:
        rank = rank_from_environment(os.environ)
        steps = canary_steps(run, os.environ)
        config = run.read_config()
        minutes = positive_number(os.environ, "SEQLM_CHECKPOINT_MINUTES", CHECKPOINT_MINUTES, "minutes")
        progress = positive_number(os.environ, "SEQLM_PROGRESS_SECONDS", WRITE_SECONDS, "seconds")
        parts = micro_batches_from(os.environ, config.train.batch_size, rank.world_size)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        # A file that is there and cannot be read just now is trouble with the disk, which is tried again.
        return EXIT_STORAGE if isinstance(error.__context__, OSError) else EXIT_USAGE
    attempt = attempt_number(run, os.environ)
    if os.environ.get("SEQLM_DETERMINISTIC") == "1":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        # Else every new tensor is filled with NaN first, to find reads of what was never written: a kernel for each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def train(guard: Guard) -> None:
        check_device(config, rank)
        path = os.environ.get("SEQLM_DATA")
        corpus = load_corpus(config.data, Path(path) if path else None)
        with gpu_share(rank, os.environ), process_group(rank):
            trainer = Trainer(
                config,
                corpus,
                run,
                rank=rank,
                attempt=attempt,
                micro_batches=parts,
                stop=stop,
                checkpoint_minutes=minutes,
                progress_seconds=progress,
                keep_last=os.environ.get("SEQLM_KEEP_LAST") != "0",
                guard=guard,
            )
            if steps is None:
                trainer.train()
            else:
                run_canary(trainer, steps)

    return make_attempt(run, rank, attempt, stop, train)


if __name__ == "__main__":
    sys.exit(main())
