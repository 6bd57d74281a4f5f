"""The tables of a study: what their columns mean, and the type of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from seqlm.config import valid_keys

HYPERPARAMETERS = valid_keys()
"""Columns of the runs table that hold the configuration, such as ``optim.lr``; NaN where a key does not apply."""

TEXT_KEYS = [key for key in HYPERPARAMETERS if key.startswith("data.")]
"""Of these, what a run predicts: corpus, kind of token, vocabulary, digest of the text."""


SAME_TEXT = ["data.corpus", "data.sha256"]
"""Keys in which runs on one text agree, whatever their tokens are."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a column holds."""

    unit: str
    """Empty for texts, counts and other pure numbers."""
    text: str


def _meanings(*rows: tuple[str, str, str]) -> Mapping[str, Meaning]:
    return MappingProxyType({name: Meaning(unit=unit, text=text) for name, unit, text in rows})


_NUMBER = ("number", "", "number of the run: its place in the manifest, from 1; 3b is a variant of 3")
_ID = ("id", "", "folder of the run; of several studies with the study's name in front")
_KEYS = tuple((key, "", "key of the configuration; missing if it does not apply") for key in HYPERPARAMETERS)

RUNS = _meanings(
    _NUMBER,
    ("name", "", "name in the manifest"),
    ("variant", "", "what a further run of an entry varies; missing for the first"),
    _ID,
    ("study", "", "study that the run belongs to"),
    ("arch", "", "architecture: rnn, gru or transformer"),
    ("optimizer", "", "optimizer: adam, sgd or sgd_schedule"),
    ("setting", "", "number of the first run that differs in nothing but the seed"),
    ("state", "", "done, running, queued, pending, cancelled or failed"),
    ("reason", "", "why the run is in that state"),
    ("failure_kind", "", "kind of a failure, such as oom or diverged"),
    ("failure_message", "", "message of a failure"),
    ("failure_where", "", "place in the code of a failure"),
    ("epochs_done", "epochs", "finished epochs"),
    ("best_epoch", "", "epoch with the lowest validation perplexity, from 0"),
    ("train_ppl", "", "training perplexity of the best epoch"),
    ("val_ppl", "", "validation perplexity of the best epoch"),
    ("final_train_ppl", "", "training perplexity of the last epoch"),
    ("final_val_ppl", "", "validation perplexity of the last epoch"),
    ("test_ppl", "", "test perplexity with the parameters of the best epoch; of finished runs"),
    ("val_bits_per_byte", "bits/byte", "validation loss of the best epoch per byte of the text; missing for old runs"),
    ("test_bits_per_byte", "bits/byte", "test loss per byte of the text; of finished runs"),
    ("lossless", "", "whether tokens determine the text but for white space: none became <unk>; of finished runs"),
    ("gap", "", "val_ppl less train_ppl"),
    ("parameters", "", "trainable parameters of the model"),
    ("wall_seconds", "s", "time of all finished epochs, validation included"),
    ("epoch_seconds", "s", "median time of an epoch"),
    ("seconds_to_5pct", "s", "elapsed_seconds of the first epoch with at most 1.05 times the run's best perplexity"),
    ("estimated_seconds", "s", "time that the launch estimated"),
    ("published_train_ppl", "", "published training perplexity"),
    ("published_val_ppl", "", "published validation perplexity"),
    ("published_epochs", "epochs", "epochs after which published_train_ppl was measured"),
    ("replications_low", "", "lowest validation perplexity of independent replications"),
    ("replications_high", "", "highest validation perplexity of independent replications"),
    *_KEYS,
    ("command", "", "command that launches the run again"),
)

EPOCHS = _meanings(
    _ID,
    _NUMBER,
    ("epoch", "", "epoch, from 0"),
    ("train_loss", "nats/token", "mean training loss over the epoch"),
    ("val_loss", "nats/token", "validation loss after the epoch"),
    ("train_ppl", "", "exp(train_loss)"),
    ("val_ppl", "", "exp(val_loss)"),
    ("val_bits_per_byte", "bits/byte", "val_loss in bits, per byte of the validation text in place of tokens"),
    ("lr", "", "learning rate"),
    ("epoch_seconds", "s", "time of the epoch, validation included"),
    ("elapsed_seconds", "s", "time of the epochs so far"),
    ("train_tokens_per_second", "tokens/s", "training speed"),
    ("peak_memory_bytes", "bytes", "peak memory of the first rank so far: on its GPU, or of its process"),
    ("attempt", "", "attempt that finished the epoch, from 1"),
)
"""Whatever else a run recorded follows these columns."""

ATTEMPTS = _meanings(
    _NUMBER,
    _ID,
    ("attempt", "", "attempt, from 1"),
    ("backend", "", "local, ray or slurm"),
    ("job_id", "", "job on the cluster"),
    ("host", "", "host of the first rank"),
    ("node", "", "node of the first rank, as the cluster names it"),
    ("device", "", "device of the first rank"),
    ("ranks", "", "processes that trained together"),
    ("gpus", "", "GPUs of all ranks; 0 on processors"),
    ("cores", "", "cores of all ranks"),
    ("places", "", "hosts and GPUs of all ranks, joined by ' + '"),
    ("micro_batches", "", "parts of each rank's batch; more than 1 if memory was short"),
    ("started_at", "", "start, ISO 8601"),
    ("ended_at", "", "end, ISO 8601; of an attempt that was cut off, its last heartbeat"),
    ("seconds", "s", "from started_at to ended_at"),
    ("outcome", "", "done, failed, cancelled, interrupted, running or not started"),
    ("failure_kind", "", "kind of a failure"),
    ("epochs", "epochs", "epochs that the attempt finished and kept"),
    ("epoch_seconds", "s", "time of those epochs"),
    ("lost_seconds", "s", "rest of seconds: start-up, checkpoints, test, and an epoch that was cut off"),
)

RESULTS = _meanings(
    ("number", "", "number of the setting's first run"),
    ("name", "", "name of its first finished run, without the seed if it has several"),
    ("arch", "", "architecture"),
    ("optimizer", "", "optimizer"),
    ("runs", "", "numbers of its finished runs, a tuple"),
    ("seeds", "", "finished runs"),
    ("val_ppl", "", "best validation perplexity; like all perplexities here the geometric mean over seeds"),
    ("val_ppl_low", "", "lower end of the 95 % interval of val_ppl (Student's t of the losses); needs two seeds"),
    ("val_ppl_high", "", "upper end of it"),
    ("train_ppl", "", "training perplexity of the best epoch"),
    ("test_ppl", "", "test perplexity with the parameters of the best epoch"),
    ("val_bits_per_byte", "bits/byte", "validation loss of the best epoch per byte of the text, mean over seeds"),
    ("test_bits_per_byte", "bits/byte", "test loss per byte of the text, mean over seeds"),
    ("final_train_ppl", "", "training perplexity of the last epoch"),
    ("final_val_ppl", "", "validation perplexity of the last epoch"),
    ("gap", "", "val_ppl less train_ppl, mean over seeds"),
    ("seconds_to_best", "s", "elapsed_seconds of the best epoch, mean over seeds"),
    (
        "seconds_to_study_best",
        "s",
        "the same of the first epoch within 5 % of the study's best on the same text",
    ),
    *(row for row in _KEYS if row[0] != "seed"),
)

BEHAVIOUR = _meanings(
    _NUMBER,
    _ID,
    ("curve", "", "which curve: loss_zero_state, loss_carried_state, gradient_overall, gradient_layer_1, ..."),
    ("t", "tokens", "time step in the window, from 1"),
    ("value", "nats/token; gradients: 1", "mean validation loss at step t, or norm of the last step's gradient there"),
)

SAMPLES = _meanings(
    _NUMBER,
    _ID,
    ("index", "", "place in samples.jsonl, from 0"),
    ("length", "tokens", "length of the text"),
    ("prompt", "", "what the model was given"),
    ("text", "", "what it wrote"),
    ("perplexity_own", "", "perplexity of the text under the model itself"),
    ("perplexity_other", "", "perplexity under the judge; missing without one"),
    ("entropy", "nats", "mean entropy of the distributions that the tokens were drawn from"),
    ("repetition", "", "share of the tokens that occur among the 16 before them"),
    ("distinct_1", "", "distinct tokens divided by tokens"),
    ("distinct_2", "", "distinct pairs of successive tokens divided by pairs"),
    ("distinct_3", "", "the same for three successive tokens"),
    ("unk_share", "", "share of <unk>"),
    ("longest_copy", "tokens", "longest passage that the training text contains"),
    ("copied", "", "that passage"),
)

TABLES: Mapping[str, Mapping[str, Meaning]] = MappingProxyType(
    {
        "runs": RUNS,
        "epochs": EPOCHS,
        "attempts": ATTEMPTS,
        "results": RESULTS,
        "behaviour": BEHAVIOUR,
        "samples": SAMPLES,
    }
)
"""Table -> column -> meaning, in the order of the columns."""

NUMBERS = {
    *("train_loss", "val_loss", "train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "gap", "lr"),
    *("published_train_ppl", "published_val_ppl", "replications_low", "replications_high", "wall_seconds"),
    *("epoch_seconds", "elapsed_seconds", "seconds_to_5pct", "estimated_seconds", "train_tokens_per_second"),
    *("gpus", "cores", "seconds", "lost_seconds", "val_bits_per_byte", "test_bits_per_byte"),
}
WHOLE_NUMBERS = {
    *("epoch", "epochs", "epochs_done", "best_epoch", "published_epochs", "parameters", "peak_memory_bytes"),
    *("attempt", "ranks", "micro_batches"),
}
"""Columns of whole numbers below 2^53, any of which may be missing."""


def table_of(
    name: str, rows: Iterable[Mapping[str, Any]], more: Sequence[str] = (), dtype: type | None = None
) -> pd.DataFrame:
    """Return rows as one of ``TABLES``, followed by the columns ``more``. A value of another type is missing."""
    table = pd.DataFrame(list(rows), columns=[*TABLES[name], *more], dtype=dtype)
    for column in TABLES[name]:
        if column in NUMBERS:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
        elif column in WHOLE_NUMBERS:
            numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
            table[column] = numbers.where((numbers % 1 == 0) & (numbers.abs() < 2**53)).astype("Int64")
        elif column in ("number", "setting"):
            table[column] = table[column].infer_objects()
    return table
