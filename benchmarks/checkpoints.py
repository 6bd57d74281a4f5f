"""What a checkpoint costs: from a signal to the saved state, and the pause that one in the background causes.

    python -m benchmarks.checkpoints --repeats 5 --steps 24

For each shape a real worker trains on random words; a signal comes at a random moment of a step, again and again, and
each time the worker is started again from its checkpoint. The same number of bytes is then written and flushed alone,
which is the time of the disk. Last, one process takes steps with and without a checkpoint being written, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape, select
from seqlm.config import DataConfig, RunConfig
from seqlm.environment import DATA
from seqlm.errors import SeqlmError
from seqlm.files import read_json, write_json
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_SHAPES = (
    "gru-2x1500-b20",
    "gru-2x2000-b20",
    "gru-3x1500-b20",
    "transformer-2x512-b128",
    "transformer-6x1024-b128",
)
WINDOWS = 200
"""Windows of the text: an epoch lasts longer than the measurement."""
EVERY = 6
"""Steps between two checkpoints in the background."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=DEFAULT_SHAPES, help="see benchmarks.models --help")
    parser.add_argument("--repeats", type=int, default=5, help="signals for each shape; %(default)s")
    parser.add_argument("--steps", type=int, default=24, help="steps with checkpoints in the background; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which signals come; %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE too")
    parser.add_argument("--pauses", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.pauses is not None:
        print(json.dumps(pauses(options.pauses, options.steps)))
        return 0
    try:
        shapes = select(options.shapes)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    from benchmarks.results import circumstances

    words = f"--shapes {' '.join(shape.name for shape in shapes)} --repeats {options.repeats} --steps {options.steps}"
    document: dict[str, Any] = {
        "benchmark": "checkpoints",
        "command": f"python -m benchmarks.checkpoints {words} --seed {options.seed}",
        **circumstances(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "shapes": {},
    }
    draw = random.Random(options.seed)
    for shape in shapes:
        with tempfile.TemporaryDirectory(
            dir=options.out.parent if options.out else None, prefix=".measured-"
        ) as folder:
            document["shapes"][shape.name] = measured = measure(
                shape, Path(folder), options.repeats, options.steps, draw
            )
        print(f"{shape.name}: {json.dumps(measured)}", file=sys.stderr, flush=True)
    document["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    if options.out is not None:
        write_json(options.out, document)
    print(json.dumps(document, indent=1))
    return 0


def measure(shape: Shape, folder: Path, repeats: int, steps: int, draw: random.Random) -> dict[str, Any]:
    """All figures of one shape."""
    text = write_text(folder / "text", shape)
    config = replace(shape.config, data=DataConfig(corpus="files"))
    run = RunDirectory(folder / "run")
    run.create(config, Provenance())
    signals = [one_signal(run, text, draw) for _ in range(repeats)]
    size = run.last_checkpoint.stat().st_size
    disk = [seconds_to_write(folder / "bytes", size) for _ in range(repeats)]
    quiet = RunDirectory(folder / "pauses")
    quiet.create(config, Provenance())
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.checkpoints", "--pauses", str(quiet.path), "--steps", str(steps)],
        cwd=ROOT,
        env={**os.environ, "SEQLM_DATA": str(text), "SEQLM_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    saved = [found["saved_seconds"] for found in signals]
    return {
        "checkpoint_mb": round(size / 1e6, 1),
        "signal_to_saved_seconds": spread(saved),
        "signal_to_exit_seconds": spread([found["exit_seconds"] for found in signals]),
        "disk_seconds": spread(disk),
        "signal_to_saved_over_disk": round(statistics.median(saved) / statistics.median(disk), 2),
        **json.loads(child.stdout.splitlines()[-1]),
    }


def write_text(folder: Path, shape: Shape, windows: int = WINDOWS) -> Path:
    """Random words for an epoch of ``windows`` steps, as many different ones as the shape's vocabulary has."""
    folder.mkdir()
    draw = random.Random(0)
    words = [f"w{number}" for number in range(shape.vocab_size - 1)]  # and the end of a line
    train = shape.config.train
    tokens = train.batch_size * (train.seq_len * windows + 1)
    for split, count in (("train", tokens), ("valid", tokens // 10), ("test", tokens // 10)):
        drawn = [*words, *draw.choices(words, k=count)] if split == "train" else draw.choices(words, k=count)
        lines = [" ".join(drawn[start : start + 20]) for start in range(0, len(drawn), 20)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def one_signal(run: RunDirectory, text: Path, draw: random.Random) -> dict[str, float]:
    """Let a worker take some steps, stop it at a random moment, and see when the checkpoint is there."""
    attempt = run.last_attempt() + 1
    before = run.last_checkpoint.stat().st_ino if run.last_checkpoint.exists() else None
    env = {**os.environ, "SEQLM_DATA": str(text), "SEQLM_DEVICE": "cpu", "SEQLM_ATTEMPT": str(attempt)}
    command = [sys.executable, "-m", "seqlm.training.worker", str(run.path)]
    run.attempt_dir(attempt).mkdir(parents=True)
    with run.stdout_log(attempt).open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        progress = run.progress_file(attempt)
        first = wait_for_step(progress, worker, 0)
        second = wait_for_step(progress, worker, first["step"] + 1)
        tokens = run.read_config().train.batch_size * run.read_config().train.seq_len
        time.sleep(draw.random() * tokens / second["train_tokens_per_second"])
        started = time.perf_counter()
        worker.send_signal(signal.SIGTERM)
        while not run.last_checkpoint.exists() or run.last_checkpoint.stat().st_ino == before:
            assert worker.poll() is None, f"the worker has saved nothing: {run.stdout_log(attempt).read_text()}"
            time.sleep(0.002)
        saved = time.perf_counter() - started
        code = worker.wait()
    assert code == 143, f"exit code {code}"
    return {"saved_seconds": saved, "exit_seconds": time.perf_counter() - started}


def wait_for_step(progress: Path, worker: subprocess.Popen[bytes], step: int) -> dict[str, Any]:
    """The worker's own record once it has done more than ``step`` steps."""
    while True:
        assert worker.poll() is None, "the worker has ended"
        found = read_json(progress)
        if found is not None and found["step"] > step and found["train_tokens_per_second"]:
            return found
        time.sleep(0.05)


def seconds_to_write(path: Path, size: int) -> float:
    """Seconds that the disk takes to write and flush a number of bytes."""
    piece = os.urandom(1 << 20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    path.unlink()
    return took


def pauses(folder: Path, steps: int) -> dict[str, Any]:
    """In this process: steps with and without a checkpoint under way, and what the training itself waits for."""
    from seqlm.data.corpus import load_corpus
    from seqlm.training.attempt import Attempt
    from seqlm.training.checkpoint_files import CheckpointFiles
    from seqlm.training.distributed import Rank
    from seqlm.training.saving import Saving
    from seqlm.training.trainer import StepsDone, Trainer

    run = RunDirectory(folder)
    config: RunConfig = run.read_config()
    corpus = load_corpus(config.data, DATA.read())
    trainer = Trainer(config, corpus, rank=Rank(), model_dir=run.model_dir)
    attempt = Attempt(run=run, rank=trainer.rank, number=1)
    files = CheckpointFiles(attempt=attempt, fingerprint=config.fingerprint(), corpus_sha256=corpus.sha256)
    saving, write = Saving(trainer, files), CheckpointFiles.save
    pause, written = [], []
    took: dict[bool, list[float]] = {True: [], False: []}

    def timed_write(self: CheckpointFiles, checkpoint: Any) -> None:
        started = time.perf_counter()
        write(self, checkpoint)
        written.append(time.perf_counter() - started)

    CheckpointFiles.save = timed_write  # type: ignore[method-assign]
    before, started = False, time.perf_counter()
    for event in trainer.events(config.train.epochs):
        if isinstance(event, StepsDone):
            if before == saving.is_writing and trainer.step > 1:  # all of the step with, or all of it without
                took[before].append(time.perf_counter() - started)
            if trainer.step == steps:
                break
            if trainer.step % EVERY == 0 and not saving.is_writing:
                asked = time.perf_counter()
                saving.save()
                pause.append(time.perf_counter() - asked)
        before, started = saving.is_writing, time.perf_counter()
    saving.close()
    return {
        "pause_seconds": spread(pause[1:] or pause),  # the first one waits for memory
        "first_pause_seconds": round(pause[0], 3),
        "write_seconds": spread(written),
        "step_seconds": spread(took[False]),
        "step_seconds_while_writing": spread(took[True]) if took[True] else None,
        "step_while_writing_over_quiet": (
            round(statistics.median(took[True]) / statistics.median(took[False]), 2) if took[True] else None
        ),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and most, in seconds."""
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
