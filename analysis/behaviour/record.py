"""Load one run's trained model, compute its behaviour, and write the files."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import torch

from analysis.behaviour.gradient_norms import gradient_norms
from analysis.behaviour.measures import distinct, longest_copies, repetition, share
from analysis.behaviour.sampling import Sample, draw_samples, prompt_ids, rate_samples
from analysis.behaviour.step_losses import step_losses
from analysis.behaviour.task import Task
from seqlm.config import RunConfig
from seqlm.data.batches import columns, windows
from seqlm.data.corpus import UNK, Corpus
from seqlm.data.tokenizer import Tokenizer
from seqlm.errors import CheckpointError, SeqlmError
from seqlm.files import Guard, file_sha256, unguarded, write_json, write_json_lines
from seqlm.models import LanguageModel
from seqlm.models.language_model import hidden_states_of
from seqlm.reading import is_folder
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, require_text, trained_model
from seqlm.training.perplexity import perplexity

VERSION = 2
"""Of ``behaviour.json`` and ``samples.jsonl``; raise it when a key changes its meaning."""


def record_behaviour(
    job: RunDirectory,
    task: Task,
    corpus: Corpus,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    guard: Guard = unguarded,
) -> dict[str, Any]:
    """Compute the behaviour of the run that ``job`` belongs to; returns what the job's ``result.json`` holds.

    ``samples.jsonl`` is written before ``behaviour.json``, and the job's result last, so a reader
    that finds one of them also finds those before it. ``between`` is called between two pieces of work and may raise to
    stop. ``guard`` is called before each file is put in place.

    Raises:
        CheckpointError: ``best.pt`` is missing, damaged, of another run, or was trained on another text.
        DataError: a split is too short for a window, or the prompt cannot be used.
        DivergedError: the model's predictions are not finite numbers.
        FileError: a file cannot be read or written.
    """
    started = time.perf_counter()
    study_dir = job.path.parent.parent
    trained = load_trained(RunDirectory(study_dir / job.id))
    require_text(trained.run.best_checkpoint, trained.checkpoint, corpus.sha256)
    judge_run = None if task.judge is None else RunDirectory(study_dir / task.judge)
    judge = load_judge(judge_run, trained) if judge_run else None
    config, settings = trained.config, task.settings
    tokenizer = None
    if config.data.tokenizer is not None:
        tokenizer = Tokenizer(job.tokenizer_file, config.data.tokenizer_sha256)
    level = config.data.level
    assert level is not None, "DataConfig fills it in"
    prompt, unknown = None, list[str]()
    if settings.prompt is not None:
        prompt, unknown = prompt_ids(settings.prompt, corpus.vocabulary, level, tokenizer)

    model = trained.model("fused", device)
    valid = columns(corpus.splits["valid"], config.train.batch_size, device=device)
    losses = step_losses(model, valid, settings.window, between)
    _say(f"loss per step: {losses.windows} windows of {settings.window} tokens in {losses.columns} columns", started)

    between()
    samples = draw_samples(model, settings, prompt, between)
    _say(f"{len(samples)} samples", started)
    ratings: list[list[float]] | None = None
    if judge is not None:
        ratings = rate_samples(judge.model("fused", device), samples, between)
        _say(f"judged by {judge.name}", started)
    between()
    records = sample_records(samples, ratings, corpus, tokenizer)
    _say("compared with the training text", started)

    between()
    seq_len, text = config.train.seq_len, corpus.splits["train"]
    sequences = min(settings.gradient_columns, len(text) // (seq_len + 1))  # a short text has fewer
    train = columns(text, sequences, device=device)
    by_equations = trained.model("reference", device)
    norms = None
    if hidden_states_of(by_equations) is not None:
        norms = gradient_norms(by_equations, *next(windows(train, seq_len)))
        _say("gradient norms", started)

    between()
    write_json_lines(trained.run.samples_file, records, guard=guard)
    behaviour = {
        "version": VERSION,
        "checkpoint_sha256": trained.sha256,
        "best_epoch": trained.best_epoch,
        "judge": judge and {"id": judge.run.id, "name": judge.name, "checkpoint_sha256": judge.sha256},
        "settings": dataclasses.asdict(settings),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "seconds": time.perf_counter() - started,
        "seq_len": config.train.seq_len,
        "level": level,
        "corpus": corpus.name,
        "loss_per_step": {"split": "valid", "window": settings.window, **dataclasses.asdict(losses)},
        "gradient_norms": norms
        and {"split": "train", "window": seq_len, "columns": sequences, **dataclasses.asdict(norms)},
    }
    write_json(trained.run.behaviour_file, behaviour, guard=guard)
    result = {
        "checkpoint_sha256": trained.sha256,
        # Also of a judge that cannot be used: with the same file it will be of no more use.
        "judge_sha256": judge.sha256 if judge else judge_run and file_sha256(judge_run.best_checkpoint),
        "settings": dataclasses.asdict(settings),
        "unknown": unknown,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(job.result_file, result, guard=guard)
    return result


def load_judge(run: RunDirectory, trained: Trained) -> Trained | None:
    """The run that rates the texts; none, with a line on stderr, where it cannot."""
    try:
        judge = load_trained(run)
    except SeqlmError as error:
        problem = str(error)
    else:
        if judge.checkpoint.vocabulary == trained.checkpoint.vocabulary:
            return judge
        problem = f"{run.id} has another vocabulary than {trained.run.id}"
    print(f"warning: the samples have no judge: {problem}", file=sys.stderr, flush=True)
    return None


def sample_records(
    samples: list[Sample], ratings: list[list[float]] | None, corpus: Corpus, tokenizer: Tokenizer | None = None
) -> list[dict[str, Any]]:
    """One record of ``samples.jsonl`` for each sample.

    ``ratings`` are the judge's log-probabilities of the tokens of each. ``None``: there is no judge. The tokens of a
    ``tokenizer`` are recorded as the pieces of text that they stand for.
    """

    def words(ids: list[int]) -> list[str]:
        return tokenizer.pieces(ids) if tokenizer else [corpus.vocabulary[number] for number in ids]

    unknown = tokenizer.unknown_id if tokenizer else UNK
    copies = longest_copies([sample.tokens for sample in samples], corpus.splits["train"])
    records = []
    for index, (sample, (first, length)) in enumerate(zip(samples, copies, strict=True)):
        text = words([*sample.prompt, *sample.tokens])
        prompt, tokens = text[: len(sample.prompt)], text[len(sample.prompt) :]
        counted = sample.tokens if tokenizer else tokens
        measures = {
            "perplexity_own": _perplexity(sample.log_prob),
            "perplexity_other": None if ratings is None else _perplexity(ratings[index]),
            "repetition": repetition(counted),
            "distinct_1": distinct(counted, 1),
            "distinct_2": distinct(counted, 2),
            "distinct_3": distinct(counted, 3),
            "unk_share": share(counted, unknown),
            "longest_copy": length,
            "copied": tokens[first : first + length],
        }
        records.append(
            {
                "index": index,
                "length": len(tokens),
                "prompt": prompt,
                "tokens": tokens,
                "entropy": sample.entropy,
                "log_prob": sample.log_prob,
                "measures": measures,
            }
        )
    return records


def _perplexity(log_probs: list[float]) -> float:
    return perplexity(-sum(log_probs) / len(log_probs))


def _say(text: str, started: float) -> None:
    print(f"{text}  ({time.perf_counter() - started:.1f} s)", flush=True)


# -- the trained model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ``best.pt`` of a run holds, without the state of the optimizer."""

    run: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    sha256: str
    """Digest of the file."""

    @property
    def name(self) -> str:
        """What the manifest calls the run."""
        return str(self.run.read_provenance().get("name") or self.run.id)

    @property
    def best_epoch(self) -> int:
        """The epoch of these parameters, from 0."""
        return int(self.checkpoint.history[-1]["epoch"])

    def model(self, implementation: Literal["fused", "reference"], device: torch.device) -> LanguageModel:
        """The model, dropout off and products in float32, whatever precision it was trained in.

        Raises:
            CheckpointError: the checkpoint's parameters are not those of this model.
        """
        config = self.config.model if implementation == "fused" else self.config.model.reference()
        path, seq_len = self.run.best_checkpoint, self.config.train.seq_len
        return trained_model(path, self.checkpoint, config, seq_len, self.run.model_dir).to(device)


def load_trained(run: RunDirectory) -> Trained:
    """Read ``best.pt`` of a finished run.

    Raises:
        CheckpointError: it is missing, damaged, or of another run.
        FileError: a file of the run cannot be read.
    """
    if not is_folder(run.path):
        raise CheckpointError(f"{run.path} does not exist; expected a finished run of this study")
    config = run.read_config()
    checkpoint = load_checkpoint(run.best_checkpoint, config.fingerprint())
    sha256 = file_sha256(run.best_checkpoint)
    if sha256 is None:
        raise CheckpointError(f"{run.best_checkpoint} has vanished while it was read")
    return Trained(run=run, config=config, checkpoint=dataclasses.replace(checkpoint, optimizer=None), sha256=sha256)
