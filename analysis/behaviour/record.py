"""Load one run's trained model, compute its behaviour, and write the files."""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from analysis.behaviour.gradient_norms import gradient_norms
from analysis.behaviour.measures import distinct, longest_copies, repetition
from analysis.behaviour.sampling import Drawn, draw_samples, prompt_ids
from analysis.behaviour.step_losses import step_losses
from analysis.behaviour.task import Task
from analysis.study.behaviour import Behaviour, GradientNorms, Measures, Sample
from seqlm.config import RunConfig
from seqlm.data.batches import columns, windows
from seqlm.data.corpus import Corpus
from seqlm.data.tokenizer import Tokenizer
from seqlm.data.tokens import UNK
from seqlm.errors import CheckpointError, SeqlmError
from seqlm.files import file_sha256, write_json_lines
from seqlm.models import LanguageModel, build_reference
from seqlm.models.language_model import hidden_states_of
from seqlm.models.products import set_switches
from seqlm.reading import is_folder, timestamp
from seqlm.records.behaviour import Judge
from seqlm.records.runs import BehaviourResult
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory
from seqlm.training.attempt import Attempt
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, require_text, trained_model
from seqlm.training.records import perplexity
from seqlm.trust import require_launched


def record_behaviour(attempt: Attempt, task: Task, corpus: Corpus) -> BehaviourResult:
    """Compute the behaviour of the run that a job belongs to; returns what the job's ``result.json`` holds.

    ``samples.jsonl`` is written before ``behaviour.json``, and the job's result last, so a reader
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
    judge_run = None if task.judge is None else RunDirectory(study_dir / task.judge)
    judge = load_judge(judge_run, trained) if judge_run else None
    config, settings, data = trained.config, task.settings, trained.config.data
    tokenizer = Tokenizer(job.tokenizer_file, data.tokenizer_sha256) if data.tokenizer is not None else None
    assert data.level is not None, "DataConfig fills it in"
    prompt, unknown = None, list[str]()
    if settings.prompt is not None:
        prompt, unknown = prompt_ids(settings.prompt, corpus.vocabulary, data.level, tokenizer)

    model = trained.model(device)
    valid = columns(corpus.splits["valid"], config.eval.batch_size or config.train.batch_size, device=device)
    losses = step_losses(model, valid, settings.window, between)
    between()
    drawn = draw_samples(model, settings, prompt, between, judge.model(device) if judge else None)
    between()
    samples = sample_records(drawn, corpus, tokenizer, random_start=prompt is None)
    between()
    norms = _gradient_norms(build_reference(model, config.model), config, corpus, settings.gradient_columns)
    between()
    write_json_lines(trained.run.samples_file, [sample.to_line().to_plain() for sample in samples], guard=guard)
    behaviour = Behaviour(
        checkpoint_sha256=trained.sha256,
        best_epoch=int(trained.checkpoint.history[-1]["epoch"]),
        judge=None
        if judge is None
        else Judge(
            id=judge.run.id,
            name=(judge.run.read_provenance().name or judge.run.id),
            checkpoint_sha256=judge.sha256,
        ),
        settings=settings,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        seconds=time.perf_counter() - started,
        seq_len=config.train.seq_len,
        level=data.level,
        corpus=data.corpus,
        loss_per_step=losses,
        gradient_norms=norms,
    )
    behaviour.to_file().write_file(trained.run.behaviour_file, guard=guard)
    judge_sha256 = None if judge is None else judge.sha256
    if judge is None and judge_run is not None:  # it cannot be used, and with the same file it will be of no more use
        judge_sha256 = file_sha256(judge_run.best_checkpoint)
    result = BehaviourResult(
        version=BEHAVIOUR_VERSION,
        checkpoint_sha256=trained.sha256,
        judge_sha256=judge_sha256,
        settings=settings.to_plain(),
        unknown=tuple(unknown),
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


def sample_records(
    drawn: Sequence[Drawn], corpus: Corpus, tokenizer: Tokenizer | None, *, random_start: bool
) -> list[Sample]:
    """The texts in words, with their measures.

    The tokens of a ``tokenizer`` are recorded as the pieces of text that they stand for. With ``random_start`` the
    prompt is one random token, which counts in the length.
    """
    unknown = tokenizer.unknown_id if tokenizer else {word: i for i, word in enumerate(corpus.vocabulary)}.get(UNK)
    copies = longest_copies([text.tokens for text in drawn], corpus.splits["train"], unknown)
    samples = []
    for index, (text, (first, length)) in enumerate(zip(drawn, copies, strict=True)):
        ids, given = [*text.prompt, *text.tokens], len(text.prompt)
        words = tokenizer.pieces(ids) if tokenizer else [corpus.vocabulary[number] for number in ids]
        sample = Sample(
            index=index,
            length=len(text.tokens) + random_start,
            prompt=words[:given],
            tokens=words[given:],
            entropy=text.entropy,
            log_prob=text.log_prob,
            measures=Measures(
                perplexity_own=perplexity(-text.log_prob.mean()),
                perplexity_other=math.nan if text.rating is None else perplexity(-text.rating.mean()),
                repetition=repetition(text.tokens),
                distinct_1=distinct(text.tokens, 1),
                distinct_2=distinct(text.tokens, 2),
                distinct_3=distinct(text.tokens, 3),
                unk_share=sum(token == unknown for token in text.tokens) / len(text.tokens),
                longest_copy=length,
                copied=words[given + first : given + first + length],
            ),
        )
        samples.append(sample)
    return samples


# -- the trained model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ``best.pt`` of a run holds, without the state of the optimizer."""

    run: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    sha256: str
    """Digest of the file."""

    @classmethod
    def load(cls, run: RunDirectory) -> Self:
        """Read the files of a finished run.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another run.
            FileError: a file of the run cannot be read.
        """
        if not is_folder(run.path):
            raise CheckpointError(f"{run.path} does not exist; expected a finished run of this study")
        config = run.read_config()
        require_launched(config)
        checkpoint = dataclasses.replace(load_checkpoint(run.best_checkpoint, config.fingerprint()), optimizer=None)
        sha256 = file_sha256(run.best_checkpoint)
        if sha256 is None:
            raise CheckpointError(f"{run.best_checkpoint} has vanished while it was read")
        return cls(run=run, config=config, checkpoint=checkpoint, sha256=sha256)

    def model(self, device: torch.device) -> LanguageModel:
        """The model, dropout off and products in float32, whatever precision it was trained in.

        Raises:
            CheckpointError: the checkpoint's parameters are not those of this model.
        """
        path, config = self.run.best_checkpoint, self.config
        return trained_model(path, self.checkpoint, config.model, config.train.seq_len, self.run.model_dir).to(device)


def load_judge(run: RunDirectory, trained: Trained) -> Trained | None:
    """The run that rates the texts; none, with a line on stderr, where it cannot."""
    try:
        judge = Trained.load(run)
        if judge.checkpoint.vocabulary == trained.checkpoint.vocabulary:
            return judge
        problem = f"{run.id} has another vocabulary than {trained.run.id}"
    except SeqlmError as error:
        problem = str(error)
    print(f"warning: the samples have no judge: {problem}", file=sys.stderr, flush=True)
    return None
