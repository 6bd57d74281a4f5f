"""One rank of the audit of one run: ``python -m seqlm.training.audit JOB_DIR``.

The job's folder is ``runs/<study>/audits/<number>/<run id>/``, with the ``config.json`` of the run and a ``task.json``.
It reads the run, ``runs/<study>/<run id>/``, and writes nothing there. Its ``result.json`` has the findings
(:mod:`seqlm.training.auditor`). Threads, micro-batches and library are those that the run recorded, so PyTorch is
imported after they are set. Each finding is kept in ``findings/`` once it is made, so that an attempt that is killed is
followed by one that makes the others. Exit codes: as of :mod:`seqlm.training.worker`.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from seqlm.audit import Stretch
from seqlm.environment import CAPTURE_RANKS, DATA, MATMUL, MICRO_BATCHES
from seqlm.errors import EXIT_USAGE, SeqlmError
from seqlm.files import make_directory
from seqlm.reading import confine, timestamp
from seqlm.records.attempts import Worker
from seqlm.records.runs import AuditResult, Finding, Result
from seqlm.records.studies import TaskFile
from seqlm.rundir import RunDirectory
from seqlm.trust import require_launched


def follow(worker: Worker) -> None:
    """Set the variables with which a worker computed, before PyTorch reads them. The user's library goes first."""
    if worker.threads:
        os.environ |= {"OMP_NUM_THREADS": str(worker.threads), "MKL_NUM_THREADS": str(worker.threads)}
    if worker.matmul:
        os.environ.setdefault(MATMUL.name, worker.matmul)
    os.environ[MICRO_BATCHES.name] = str(worker.micro_batches or 1)
    os.environ[CAPTURE_RANKS.name] = "1" if worker.reduction == "flat" else "0"


def main(argv: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m seqlm.training.audit JOB_DIR", file=sys.stderr)
        return EXIT_USAGE
    job = RunDirectory(Path(arguments[0]).absolute())
    run = RunDirectory(job.path.parents[2] / job.id)
    confine(run.study_dir)
    try:
        task = TaskFile.read(job.path) or TaskFile()
        follow(run.read_worker((run.read_result() or Result()).attempt or 1))
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    from seqlm.data.corpus import load_corpus
    from seqlm.training.attempt import Attempt, StopSignal, attempt_number
    from seqlm.training.auditor import Auditor
    from seqlm.training.distributed import limit_memory, process_group, rank_from_environment
    from seqlm.training.failure import tell
    from seqlm.training.worker import be_deterministic

    stop = StopSignal()
    stop.install()
    try:
        rank = rank_from_environment(os.environ)
        config = job.read_config()
        require_launched(config)
        attempt = Attempt(run=job, rank=rank, number=attempt_number(job, os.environ), stop=stop)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    be_deterministic()

    def found(number: int, make: Callable[[], Finding]) -> Finding:
        """Return the finding of an earlier attempt, or make and keep it."""
        path = job.finding_file(number)
        kept = Finding.read_file(path, tell) if rank.is_first else None
        if rank.from_rank(0, kept is not None):
            return kept or Finding()
        finding = make()
        if rank.is_first:
            make_directory(path.parent)
            finding.write_file(path, guard=attempt.guard)
        return finding

    def work() -> None:
        corpus = load_corpus(config.data, DATA.read(), job.tokenizer_file)
        limit_memory(rank, os.environ)
        with process_group(rank):
            auditor = Auditor(run, attempt, corpus)
            parts = [auditor.scores]
            for start, end in task.settings.get("stretches", ()):
                parts.append(functools.partial(auditor.stretch, Stretch(start, end)))
            findings = tuple(found(number, make) for number, make in enumerate(parts, start=1))
        if rank.is_first:
            result = AuditResult(findings=findings, attempt=attempt.number, finished_at=timestamp())
            result.write(job.path, guard=attempt.guard)

    return attempt.make(work)


if __name__ == "__main__":
    from seqlm.training.distributed import run_program

    run_program(main)
