"""Load one run's trained model, compute its behaviour, and write the files."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from analysis.behaviour.gradient_norms import gradient_norms
from analysis.behaviour.measures import distinct, known_sequences, longest_copies, repetition
from analysis.behaviour.sampling import Drawn, Text, draw_samples, drawn_tokens, log_probs, pieces_of, prompt_ids
from analysis.behaviour.step_losses import step_losses
from analysis.behaviour.task import Task
from analysis.behaviour.trained import Trained
from analysis.study.behaviour import Behaviour, GradientNorms, Measures, Sample
from analysis.study.values import Values
from seqlm.config import RunConfig
from seqlm.data.batches import columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.tokenizer import Tokenizer
from seqlm.data.tokens import UNK
from seqlm.errors import SeqlmError, UsageError
from seqlm.files import file_sha256, write_bytes, write_json_lines
from seqlm.models import LanguageModel, build_reference
from seqlm.models.language_model import hidden_states_of
from seqlm.models.products import set_switches
from seqlm.reading import timestamp
from seqlm.records.behaviour import PanelMember
from seqlm.records.runs import BehaviourResult
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory
from seqlm.training.attempt import Attempt
from seqlm.training.checkpoint import require_text
from seqlm.training.records import perplexity

DECIMALS = 4
"""Of entropies and log-probabilities in the files. All measures are computed from the numbers that the files have."""


def record_behaviour(attempt: Attempt, task: Task, corpus: Corpus) -> BehaviourResult:
    """Compute the behaviour of the run that a job belongs to; returns what the job's ``result.json`` holds.

    ``losses.f32`` and ``samples.jsonl`` are written before ``behaviour.json``, and the job's result last, so a reader
    that finds one of them also finds those before it.

    Raises:
        CheckpointError: ``best.pt`` is missing, damaged, of another run, or was trained on another text.
        DataError: a split is too short for a window, or the prompt cannot be used.
        DivergedError: the model's predictions are not finite numbers.
        FileError: a file cannot be read or written.
        StopRequested: the attempt was asked to stop.
    """
    job, device, between, guard = attempt.run, attempt.rank.device, attempt.stop.check, attempt.guard
    started = time.perf_counter()
    set_switches("fp32")  # a user's own model may use cuDNN, whose TF32 is on by default
    study_dir = job.path.parent.parent
    trained = Trained.load(RunDirectory(study_dir / job.id))
    require_text(trained.run.best_checkpoint, trained.checkpoint, corpus.sha256)
    config, settings, data = trained.config, task.settings, trained.config.data
    tokenizer = Tokenizer(job.tokenizer_file, data.tokenizer_sha256) if data.tokenizer is not None else None
    assert data.level is not None, "DataConfig fills it in"
    prompt, unknown_words = None, list[str]()
    if settings.prompt is not None:
        prompt, unknown_words = prompt_ids(settings.prompt, corpus.vocabulary, data.level, tokenizer)

    model = trained.model(device)
    valid = corpus.splits["valid"]
    of_steps = step_losses(
        model,
        columns(valid, 1, device=device)[:, 0],
        columns(valid, config.eval.batch_size or config.train.batch_size, device=device),
        settings.window,
        between,
    )
    drawn = draw_samples(model, settings, prompt, between)
    lengths = [drawn_tokens(length, prompt) for length in settings.lengths]
    pieces = pieces_of(valid, len(drawn[0].text.prompt), lengths, settings.samples)
    own = [*(sample.log_prob for sample in drawn), *log_probs(model, pieces, between)]
    norms = _gradient_norms(build_reference(model, config.model), config, corpus, settings.gradient_columns)
    del model
    texts = [*(sample.text for sample in drawn), *pieces]
    panel, ratings = rate(task.panel, trained, texts, device, between)
    samples, held_out = sample_records(drawn, pieces, own, ratings, corpus, tokenizer, random_start=prompt is None)
    between()

    behaviour = Behaviour(
        checkpoint_sha256=trained.sha256,
        best_epoch=int(trained.checkpoint.history[-1]["epoch"]),
        settings=settings,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seconds=time.perf_counter() - started,
        seq_len=config.train.seq_len,
        level=data.level,
        corpus=data.corpus,
        loss_per_step=of_steps,
        gradient_norms=norms,
        panel=panel,
        held_out=held_out,
    )
    write_bytes(trained.run.losses_file, behaviour.losses_content(), guard=guard)
    write_json_lines(trained.run.samples_file, [sample.to_line().to_plain() for sample in samples], guard=guard)
    behaviour.to_file().write_file(trained.run.behaviour_file, guard=guard)
    result = BehaviourResult(
        version=BEHAVIOUR_VERSION,
        checkpoint_sha256=trained.sha256,
        # Also of those that cannot be used: with the same file they will be of no more use.
        panel_sha256=tuple(file_sha256(RunDirectory(study_dir / member).best_checkpoint) for member in task.panel),
        settings=settings.to_plain(),
        unknown=tuple(unknown_words),
        attempt=attempt.number,
        finished_at=timestamp(),
    )
    result.write(job.path, guard=guard)
    print(f"{len(samples)} samples, losses and gradients in {behaviour.seconds:.1f} s", flush=True)
    return result


def _gradient_norms(model: LanguageModel, config: RunConfig, corpus: Corpus, sequences: int) -> GradientNorms | None:
    """The norms over the first windows of ``sequences`` columns of the training text; ``None`` without hidden states.

    A short text has fewer columns.
    """
    if hidden_states_of(model) is None:
        return None
    seq_len, text = config.train.seq_len, corpus.splits["train"]
    train = columns(text, min(sequences, len(text) // (seq_len + 1)), device=model.device)
    return gradient_norms(model, *next(windows(train, seq_len)))


def rate(
    panel: Sequence[str], trained: Trained, texts: Sequence[Text], device: torch.device, between: Callable[[], None]
) -> tuple[tuple[PanelMember, ...], list[list[Values]]]:
    """The runs of the panel that rate the texts, and under each one the log-probabilities of the tokens of each text.

    A run that cannot rate them is left out, with a line on stderr.
    """
    members, ratings = [], []
    for member in panel:
        between()
        try:
            other = (
                trained if member == trained.run.id else Trained.load(RunDirectory(trained.run.path.parent / member))
            )
            if other.checkpoint.vocabulary != trained.checkpoint.vocabulary:
                raise UsageError(f"{member} has another vocabulary than {trained.run.id}")
            model = other.model(device)
        except SeqlmError as error:
            print(f"warning: {member} is left out of the panel: {error}", file=sys.stderr, flush=True)
            continue
        name = other.run.read_provenance().name or other.run.id
        members.append(PanelMember(id=other.run.id, name=name, checkpoint_sha256=other.sha256))
        ratings.append(log_probs(model, texts, between))
    return tuple(members), ratings


def sample_records(
    drawn: Sequence[Drawn],
    pieces: Sequence[Text],
    own: Sequence[Values],
    ratings: Sequence[Sequence[Values]],
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    *,
    random_start: bool,
) -> tuple[list[Sample], tuple[Measures, ...]]:
    """The samples in words, with their measures, and the measures of the pieces of the validation text.

    ``own`` and, for each run of the panel, ``ratings`` have the log-probabilities of the tokens of each sample, then of
    each piece. The tokens of a ``tokenizer`` are recorded as the pieces of text that they stand for. With
    ``random_start`` the prompt of a sample is one random token, which counts in the length.
    """
    source = np.asarray(corpus.splits["train"])
    unknown = tokenizer.unknown_id if tokenizer else {word: i for i, word in enumerate(corpus.vocabulary)}.get(UNK)
    texts = [*(sample.text for sample in drawn), *pieces]
    only_tokens = [text.tokens for text in texts]
    copies = longest_copies(only_tokens, source.tolist(), unknown)
    known_pairs = known_sequences(only_tokens, source, 2)
    known_triples = known_sequences(only_tokens, source, 3)
    samples, held_out = [], []
    for index, (text, (first, length)) in enumerate(zip(texts, copies, strict=True)):
        log_prob = own[index].round(DECIMALS)
        panel = (
            np.array([of_member[index] for of_member in ratings])
            .reshape(len(ratings), len(text.tokens))
            .round(DECIMALS)
        )
        is_word = np.array(text.tokens) != unknown
        ids, given = [*text.prompt, *text.tokens], len(text.prompt)
        words = tokenizer.pieces(ids) if tokenizer else [corpus.vocabulary[number] for number in ids]
        is_sample = index < len(drawn)
        measures = Measures(
            perplexity_own=perplexity(-log_prob.mean()),
            rating=_mean(-panel[:, is_word]),
            known_pairs=_mean(known_pairs[index]),
            known_triples=_mean(known_triples[index]),
            repetition=repetition(text.tokens),
            distinct_1=distinct(text.tokens, 1),
            distinct_2=distinct(text.tokens, 2),
            distinct_3=distinct(text.tokens, 3),
            unk_share=float((~is_word).mean()),
            longest_copy=length,
            copied=words[given + first : given + first + length] if is_sample else [],  # no text of the corpus
        )
        if not is_sample:
            held_out.append(measures)
            continue
        before = min(2, len(text.tokens))  # tokens with which no triple ends
        sample = Sample(
            index=index,
            length=len(text.tokens) + random_start,
            prompt=words[:given],
            tokens=words[given:],
            entropy=drawn[index].entropy.round(DECIMALS),
            log_prob=log_prob,
            measures=measures,
            panel=panel,
            ends_known_triple=[False] * before + known_triples[index].tolist(),
        )
        samples.append(sample)
    return samples, tuple(held_out)


def _mean(values: npt.NDArray[Any]) -> float:
    """The mean of numbers; NaN for none."""
    return float(values.mean()) if values.size else math.nan
