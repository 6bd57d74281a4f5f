"""A worker that trains nothing: ``stub_worker.py RUN_DIR``, with the variables of :mod:`seqlm.training.worker`.

It owns its run, keeps its records, saves and resumes, obeys signals and ends as the real worker does, through the same
code. Only what needs torch is replaced: the process group, the tensors of a checkpoint, and the losses, which follow
from the configuration: they are drawn from one distribution, whatever the settings, but a learning rate below 1e-6
makes them worse. ``SEQLM_TEST_CRAWL`` (:mod:`tests.crawl`) holds it as it holds a real worker.
``SEQLM_TEST_STUB_SECONDS`` is how long an epoch takes. ``SEQLM_TEST_STUB`` says what happens in which attempt after how
many epochs, such as ``{"1/3": "oom"}``: an error of that kind, or the signal of that name.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

LOOK_SECONDS = 0.02
PROGRESS_SECONDS = 0.5
FOLLOWS = False
"""Whether ranks that are not the first end an epoch when it does, as :func:`is_left` says."""
COMPARES = __name__ == "__main__"
"""Whether comparisons of the study stop it. In the simulation, a look at them makes another story of a seed."""


def substitute(name: str, **content: Any) -> None:
    """Put a module in the place of one that needs torch."""
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(content)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands between two steps."""

    epoch: int
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps."""

    fingerprint: str
    history: list[dict[str, Any]]
    position: Position
    model: dict[str, int]
    """The epochs of its weights, in place of the weights."""
    optimizer: dict[str, Any] | None = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, guard: Any) -> None:
    write_text(path, json.dumps({**vars(checkpoint), "position": vars(checkpoint.position)}), guard=guard)


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    try:
        content = read_json(path)
    except DamagedFileError as error:
        raise DamagedError(str(error)) from None
    if content is None or content["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path} is missing, or of another run")
    return Checkpoint(**{**content, "position": Position(**content["position"])})


def weights_digest(model: dict[str, int]) -> str:
    return hashlib.sha256(json.dumps(model).encode()).hexdigest()


def nothing(*_: Any, **__: Any) -> None:
    pass


if __name__ == "__main__" or "SEQLM_TEST_WITHOUT_TORCH" in os.environ:
    cuda = SimpleNamespace(OutOfMemoryError=MemoryError)
    distributed = SimpleNamespace(DistError=ConnectionError)
    substitute("torch", __version__="none", get_num_threads=lambda: 1, cuda=cuda, distributed=distributed)
    substitute("seqlm.training.witness", watched=lambda *_: contextlib.nullcontext(), process_seconds=lambda: 0.0)
    substitute("seqlm.training.distributed", Rank=SimpleNamespace, AllLeave=Exception)
    parts = {"Checkpoint": Checkpoint, "load_checkpoint": load_checkpoint, "save_checkpoint": save_checkpoint}
    parts |= {"weights_digest": weights_digest, "require_text": nothing}
    substitute("seqlm.training.checkpoint", **parts)

from seqlm.comparisons import is_compared, settle  # noqa: E402 -- after the substitutes
from seqlm.config import RunConfig  # noqa: E402 -- after the substitutes
from seqlm.environment import CANARY, KEEP_LAST, SEARCH  # noqa: E402 -- after the substitutes
from seqlm.errors import (  # noqa: E402
    EXIT_STORAGE,
    EXIT_USAGE,
    CheckpointError,
    DamagedError,
    DamagedFileError,
    DivergedError,
    SeqlmError,
)
from seqlm.files import read_json, write_json, write_text  # noqa: E402
from seqlm.reading import confine, timestamp  # noqa: E402
from seqlm.rundir import RunDirectory  # noqa: E402
from seqlm.search import Search, decide, search_of  # noqa: E402
from seqlm.training.attempt import (  # noqa: E402
    Attempt,
    LeftAtRungError,
    StopRequested,
    StopSignal,
    attempt_number,
)
from seqlm.training.checkpoint_files import CheckpointFiles  # noqa: E402
from seqlm.training.records import Phases, Scores, TokenLoss, epoch_record, result_record  # noqa: E402

ERRORS = {
    "oom": MemoryError("no memory"),
    "node": OSError(5, "Input/output error"),
    "diverged": DivergedError("the loss of a step is nan"),
    "code": ValueError("an error of the model"),
}
VOCAB_SIZE = 10**6
CORPUS: Any = SimpleNamespace(sha256="0" * 64, lossless=True, bits_per_byte=lambda split, loss: loss)


def this_rank() -> Any:
    """Return the rank of this process."""
    index = int(os.environ.get("RANK", "0"))
    return SimpleNamespace(
        index=index,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        is_first=index == 0,
        device=SimpleNamespace(type="cpu"),
        device_name="no device",
        instructions="",
        multiprocessors=0,
        matmul="",
        peak_memory_bytes=lambda: 2**20,
    )


def attend(run: RunDirectory, config: RunConfig, search: Search | None, attempt: int, stop: StopSignal) -> int:
    """Make an attempt at a run; return the exit code."""
    rank = this_rank()
    seconds = float(os.environ.get("SEQLM_TEST_STUB_SECONDS", "0.02"))

    def work() -> None:
        meet()
        if run.is_canary and CANARY.is_set():
            happen(0, attempt)
            write_json(run.canary_file, {"attempt": attempt, "step_seconds": 0.1, "peak_memory_bytes": 1})
            return
        fingerprint = config.fingerprint()
        files = CheckpointFiles(attempt=made, fingerprint=fingerprint, corpus_sha256=CORPUS.sha256)
        if reason := run.cannot_go_on(config.train.epochs):
            raise CheckpointError(f"this run cannot go on: {reason}")
        found = files.load_last()
        history, step = (found.history, found.position.step) if found else ([], 0)
        if found and rank.is_first:
            files.write_metrics(history)
        model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1)])
        parts = {"rank": rank, "corpus": CORPUS, "model": model, "attempt": attempt, "micro_batches": 1}
        parts |= {"phases": Phases(), "take_step": SimpleNamespace(communication_seconds=nothing)}
        trainer: Any = SimpleNamespace(**parts, steps=2, history=history, lr=config.optim.lr, seconds=seconds)

        def save(step: int = 0) -> None:
            if rank.is_first:
                position, model = Position(epoch=len(history), step=step), {"epochs": len(history)}
                files.save(Checkpoint(fingerprint=fingerprint, history=[*history], position=position, model=model))

        while (epochs := len(history)) < config.train.epochs:
            if (
                search
                and epochs in search.rungs
                and decide(run, search, epochs, attempt, vocab_size=VOCAB_SIZE, guard=made.guard) == "stopped"
            ):
                raise LeftAtRungError(f"stopped at epoch {epochs}")
            if (
                COMPARES
                and is_compared(run, config.train.epochs)
                and (reason := settle(run, config.train.epochs, attempt, guard=made.guard))
            ):
                raise LeftAtRungError(reason)
            happen(len(history), attempt)
            if not wait(run, attempt, len(history), stop, seconds, tells=rank.is_first):
                save(step + 1)
                raise StopRequested
            drawn = int(hashlib.sha256(fingerprint.encode()).hexdigest()[:4], 16) / 2**16
            loss = drawn + 4 / (1 + len(history)) + (10 if config.optim.lr < 1e-6 else 0)
            step, trainer.total = 0, TokenLoss(loss, 1)
            history.append(epoch_record(trainer, trainer.total, valid_seconds=0.0))
            save()
            print(f"epoch {len(history)}/{config.train.epochs} done", flush=True)
        if rank.is_first:
            loss = TokenLoss(history[-1]["val_loss"], 1)
            result = result_record(trainer, Scores(test=loss, train_slice=loss, by_frequency=()))
            run.write_result(result, guard=made.guard)
            files.finish(keep_last=KEEP_LAST.read())

    made = Attempt(run=run, rank=rank, number=attempt, stop=stop)
    return made.make(work)


def happen(epochs: int, attempt: int) -> None:
    """Do what the test says."""
    what = json.loads(os.environ.get("SEQLM_TEST_STUB", "{}")).get(f"{attempt}/{epochs}")
    if what in ERRORS:
        raise ERRORS[what]
    if what is not None:
        os.kill(os.getpid(), getattr(signal, what))


def is_left(is_first: bool) -> bool | None:
    """Return whether the other ranks leave the attempt. ``None``: the epoch is over for this rank, as for the first."""
    return False


def meet() -> None:
    """Wait until all ranks of the attempt have begun."""


def wait(run: RunDirectory, attempt: int, epochs: int, stop: StopSignal, seconds: float, *, tells: bool) -> bool:
    """Wait for the end of an epoch; return whether it comes before a request to stop. ``tells``: with signs of life."""
    slow, _, ended = os.environ.get("SEQLM_TEST_CRAWL", f"{sys.maxsize}::").split(":", 2)
    held = epochs >= int(slow)
    due, alive = time.monotonic() + seconds, -PROGRESS_SECONDS
    if FOLLOWS and not tells:
        due = math.inf
    while time.monotonic() < due or (held and not os.path.exists(ended)):  # noqa: PTH110 -- as little as possible
        left = is_left(tells)
        if stop.received or left:
            return False
        if left is None:
            break
        if tells and time.monotonic() - alive > PROGRESS_SECONDS:
            alive = time.monotonic()
            progress = {"epoch": epochs, "step": 1, "steps": 2, "phase": "train", "updated_at": timestamp()}
            write_json(run.progress_file(attempt), progress, sync=False)
        time.sleep(LOOK_SECONDS)
    return not stop.received


def main() -> int:
    run, stop = RunDirectory(Path(sys.argv[1]).absolute()), StopSignal()
    confine(run.study_dir)
    stop.install()
    try:
        config, search = run.read_config(), search_of(run, SEARCH.read())
        attempt = attempt_number(run, os.environ)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_STORAGE if isinstance(error.__context__, OSError) else EXIT_USAGE
    return attend(run, config, search, attempt, stop)


if __name__ == "__main__":
    sys.exit(main())
