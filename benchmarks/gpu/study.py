"""The published study through ``launch.py``: several runs at a time, saved when the time is up, and its results."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import write_text
from benchmarks.gpu.folder import Budget, Results
from benchmarks.names import ours
from benchmarks.shapes import PUBLISHED_MANIFEST, Shape, built_in, tiny
from benchmarks.toml_text import toml_text
from jobs.attempt.supervisor import start_rank
from jobs.manifests.load import Manifest, load_manifest
from jobs.plan.estimate import flops_per_token, memory_bytes
from jobs.study.folder import observe_study
from seqlm.config import RunConfig
from seqlm.data.corpus import corpus_facts, downloaded_ptb, load_corpus
from seqlm.data.layout import number_of_windows
from seqlm.environment import DATA
from seqlm.errors import DataError
from seqlm.machine import CUDA_BYTES

ROOT = Path(__file__).resolve().parents[2]
MEMORY_MARGIN = 1.5
"""What a run may need of a card's memory, over what was measured or estimated: evaluation, and what is kept free."""
LEAST_SECONDS = 30.0
"""Time that has to be left to begin with the study, and in it for saving and the report."""
STOP_SECONDS = 90.0
"""How long the launcher may take to save the runs under way; it gives its workers a minute."""
CHECKPOINT_MINUTES = 1
"""Between two checkpoints within an epoch: the machine may be gone at once."""
NEEDS = "the Penn Treebank: --ptb FILE.zip or FOLDER, or SEQLM_DATA, with ptb.train.txt, ptb.valid.txt and ptb.test.txt"


def find_ptb(option: Path | None) -> Path | None:
    """Return where the corpus is: the option, ``SEQLM_DATA``, or what ``launch.py data ptb`` has fetched; or ``None``.

    Raises:
        DataError: what the option or the variable names is not the Penn Treebank.
    """
    named = option or DATA.read()
    path = named or downloaded_ptb()
    if path is not None:
        config = load_manifest(PUBLISHED_MANIFEST).runs[0].config.data
        try:
            load_corpus(config, path)
        except DataError:
            if option is not None:
                raise
            return None  # SEQLM_DATA may be there for another study
    return path


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What earlier parts say about the runs: seconds of a step, memory, and how many at once are fastest."""

    steps: Mapping[str, Any]
    at_once: int
    card_bytes: int | None
    """``None`` on a CPU."""
    precision: str

    @classmethod
    def read(cls, results: Results, precision: str) -> Pace:
        found = results.read("steps")
        modes = results.read("sharing").get("modes", {})
        runs = modes.get("without MPS", {}).get("runs", {})
        speed = {int(count): figures["train_tokens_per_second"] for count, figures in runs.items()}
        return cls(
            steps=found.get("cases", {}),
            at_once=max(speed, key=lambda count: speed[count]) if speed else 1,
            card_bytes=found.get("device", {}).get("memory_bytes"),
            precision=precision,
        )

    def seconds(self, config: RunConfig, tokens: int, vocab_size: int) -> float:
        """Return the expected seconds of training; without a measured step a number that only orders runs."""
        train = config.train
        windows = number_of_windows(tokens, train.batch_size, train.seq_len)
        record = self.steps.get(Shape(config=config).name, {}).get("step_ms", {}).get(ours(self.precision))
        if record is not None:
            return float(train.epochs * windows * record["median"] / 1e3)
        flops = flops_per_token(config, vocab_size) or 0
        return train.epochs * windows * flops * train.seq_len * train.batch_size / 1e13

    def share(self, config: RunConfig, vocab_size: int) -> float:
        """Return the share of the card that a run gets."""
        if self.card_bytes is None:
            return 0
        measured = self.steps.get(Shape(config=config).name, {}).get("peak_memory_mb", {}).get(ours(self.precision))
        needed = 1e6 * measured if measured is not None else memory_bytes(config, vocab_size) or 0
        least = (MEMORY_MARGIN * needed + CUDA_BYTES) / self.card_bytes
        return min(1.0, max(1 / self.at_once, math.ceil(100 * least) / 100))


def study(
    document: dict[str, Any],
    save: Callable[[], None],
    budget: Budget,
    results: Results,
    *,
    data: Path | None,
    precision: str,
    say: Callable[[str], None],
) -> None:
    """Launch what is not done of the published runs until the time is up, and collect what has come out.

    Raises:
        KeyboardInterrupt: the runs under way are saved.
    """
    document |= {"complete": False, "precision": precision}
    if data is None:
        document["needs"] = NEEDS
        say(f"study: needs {NEEDS}")
        return
    document["needs"] = None
    source = _tiny_study(results.folder) if document["rehearsal"] else PUBLISHED_MANIFEST
    manifest = _with_order(source, results, data, precision)
    runs_dir = results.folder / "runs"
    launch = [sys.executable, str(ROOT / "launch.py")]
    argv = [*launch, "run", str(manifest), "--backend", "local", "--no-canary", "--runs-dir", str(runs_dir)]
    try:
        if budget.seconds_left > LEAST_SECONDS:
            _until_the_end(
                [*argv, "--data", str(data)], results.folder / "launch.log", budget.seconds_left - LEAST_SECONDS
            )
    finally:
        loaded = load_manifest(manifest)
        document["runs"] = _outcomes(loaded, runs_dir)
        states = [run["state"] for run in document["runs"]]
        document["complete"] = all(state == "done" for state in states)
        document["failures"] = [f"{r['name']}: {r['reason']}" for r in document["runs"] if r["state"] == "failed"]
        save()
    say(f"study: {states.count('done')} of {len(states)} runs are done")
    report = [*launch, "report", loaded.study, "--runs-dir", str(runs_dir), "--no-behaviour"]
    written = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=False)
    problem = (written.stderr.strip().splitlines() or ["no output"])[-1]
    document["report"] = "written" if written.returncode == 0 else f"not written: {problem}"


def tiny_text(folder: Path) -> Path:
    """Return the folder of the text of :func:`_tiny_study`; written once, since it is part of a run's identity."""
    path = folder / "text"
    if not path.exists():
        write_text(folder / f"text-{os.getpid()}", tiny()[0], windows=40).rename(path)
    return path


def _tiny_study(folder: Path) -> Path:
    """Write a manifest of two runs for a rehearsal, with numbers as if they had been published."""
    shape = tiny()[0].config
    path = folder / "rehearsal-source.toml"
    run = {"name": "rnn", "model": {"arch": "rnn"}, "published": {"val_ppl": 50, "train_ppl": 50}}
    document = {
        "study": {"name": "rehearsal"},
        "defaults": {
            "data": {"corpus": "files"},
            "model": {"hidden_size": built_in(shape).hidden_size, "embedding_size": 8},
            "optim": {"optimizer": "adam", "lr": 0.01},
            "train": {"epochs": 2, "batch_size": shape.train.batch_size, "seq_len": shape.train.seq_len},
        },
        "resources": {"cpus": 1},
        "run": [run, {**run, "name": "gru", "model": {"arch": "gru"}}],
    }
    path.write_text(toml_text(document), "utf-8")
    return path


def _with_order(source: Path, results: Results, data: Path, precision: str) -> Path:
    """Write the manifest with each run's place in the queue, shortest first, and its share of the card."""
    raw = tomllib.loads(source.read_text("utf-8"))
    raw.setdefault("defaults", {}).setdefault("train", {})["precision"] = precision
    raw.setdefault("policy", {}).setdefault("checkpoint_min", CHECKPOINT_MINUTES)
    unordered = results.folder / f"{source.stem}-unordered.toml"
    unordered.write_text(toml_text(raw), "utf-8")
    pace = Pace.read(results, precision)
    specs = load_manifest(unordered).runs
    unordered.unlink()
    facts = corpus_facts(specs[0].config.data, data)
    expected = {spec.name: pace.seconds(spec.config, facts.tokens["train"], facts.vocab_size) for spec in specs}
    order = sorted(expected, key=lambda name: expected[name])
    for entry, spec in zip(raw["run"], specs, strict=True):
        entry["resources"] = {
            **entry.get("resources", {}),
            "priority": len(order) - order.index(spec.name),
            "gpus": pace.share(spec.config, facts.vocab_size),
        }
    path = results.folder / "manifest.toml"
    path.write_text(toml_text(raw), "utf-8")
    return path


def _until_the_end(argv: list[str], log: Path, seconds: float) -> None:
    """Run the launcher; after ``seconds``, or at Ctrl-C, have it save what is under way."""
    with log.open("ab") as output:
        launcher = start_rank(argv, {}, str(ROOT), output, output)
        try:
            launcher.wait(None if math.isinf(seconds) else seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as end:
            launcher.send_signal(signal.SIGINT)
            try:
                launcher.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                launcher.send_signal(signal.SIGINT)  # a second one ends the workers at once
                launcher.wait()
            if isinstance(end, KeyboardInterrupt):
                raise


def _outcomes(manifest: Manifest, runs_dir: Path) -> list[dict[str, Any]]:
    """Return every run of the manifest: what was published, what has come out, and its curves."""
    observed = {run.name: run for run in observe_study(runs_dir / manifest.study)}
    found = []
    for number, spec in enumerate(manifest.runs, start=1):
        published, run = manifest.published.get(spec.name), observed.get(spec.name)
        epochs = run.run.read_metrics()[0] if run else []
        found.append(
            {
                "number": number,
                "name": spec.name,
                "state": run.observation.state if run else "pending",
                "reason": run.observation.reason if run else None,
                "epochs": spec.config.train.epochs,
                "epochs_done": len(epochs),
                "published": vars(published) if published else None,
                "best_val_ppl": run.observation.best_val_ppl if run else None,
                "curves": {
                    key: [epoch[key] for epoch in epochs]
                    for key in ("train_ppl", "val_ppl", "epoch_seconds", "train_tokens_per_second")
                },
            }
        )
    return found
