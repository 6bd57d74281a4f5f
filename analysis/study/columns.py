"""The tables of a study: what their columns mean, and the type of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from analysis.study import units
from seqlm.architectures import CustomConfig
from seqlm.config import OPEN_TABLES, base_key, valid_keys

HYPERPARAMETERS = [key for key in valid_keys() if key not in ("model.source", "model.files")]
"""Columns of the runs table that hold the configuration, such as ``optim.lr``; NaN where a key does not apply.

``model.arch`` of a user's own model is its source, such as ``lstm.py:LSTM``.
"""

_OF_OWN_MODELS = {f"model.{name}" for name in CustomConfig.__dataclass_fields__}

FREE_KEYS = ("seed", "train.epochs")
"""Of these, the ones in which runs of one setting may differ: its seeds, and how far each run is to go."""

SETTING_KEYS = [key for key in HYPERPARAMETERS if key not in FREE_KEYS]
"""The others."""

TEXT_KEYS = [key for key in HYPERPARAMETERS if key.startswith("data.")]
"""Of the hyperparameters, what a run predicts: corpus, kind of token, vocabulary, digest of the text."""


SAME_TEXT = ["data.corpus", "data.sha256"]
"""Keys in which runs on one text agree, whatever their tokens are."""


@dataclass(frozen=True)
class Meaning:
    """What a column holds."""

    unit: str
    """Empty for texts, counts and other pure numbers."""
    text: str
    type: "type[float | int] | None" = None
    """``int``: whole numbers below 2^53, any of which may be missing. ``None``: whatever a run has recorded."""


def _meanings(*rows: tuple[Any, ...]) -> Mapping[str, Meaning]:
    return MappingProxyType({name: Meaning(*row) for name, *row in rows})


_NUMBER = ("number", "", "run's place in the manifest, from 1; 3b: a variant of 3")
_ID = ("id", "", "run's folder; of several studies, after the study's name")
_KEYS = tuple((key, "", "key of the configuration; missing if it does not apply") for key in HYPERPARAMETERS)

RUNS = _meanings(
    _NUMBER,
    ("name", "", "name in the manifest"),
    ("variant", "", "what an entry's further run varies; missing for the first"),
    _ID,
    ("study", "", "study that the run belongs to"),
    ("arch", "", "architecture: rnn, gru, transformer, or file and class of a user's own model, such as lstm.py:LSTM"),
    ("optimizer", "", "optimizer, such as adam; with momentum sgd_momentum or sgd_nesterov"),
    ("text", "", "what the run predicts: corpus, and other values in which the study's texts differ"),
    ("setting", "", "number of the first run that differs only in seed and epochs"),
    ("state", "", "done, running, queued, pending, stopped, cancelled or failed"),
    ("reason", "", "why the run is in that state"),
    ("tags", "", "tags of `note`, with spaces between"),
    ("note", "", "text of `note`"),
    ("rung", "epochs", "epochs after which a search stopped the run; missing for other runs", int),
    ("rung_value", "", "validation perplexity, training perplexity or validation loss by which it was stopped", float),
    ("rung_rank", "", "place of the run in that comparison, from 1 for the lowest value", int),
    ("rung_of", "", "runs that had reached the rung by then", int),
    ("rung_goes_on", "", "how many of them went on", int),
    ("rung_cut", "", "highest value that went on", float),
    ("failure_kind", "", "kind of failure, such as oom or diverged"),
    ("failure_message", "", "message of the failure"),
    ("failure_where", "", "place of the failure in the code"),
    ("epochs_done", "epochs", "finished epochs", int),
    ("epochs_asked", "epochs", "epochs that the run is to go; a run with fewer is not done", int),
    ("finished_epochs", "epochs", "epochs of the result: fewer than epochs_asked if more were asked for since", int),
    ("compared_epochs", "epochs", "epochs by which the run is compared: the median of done runs; missing if not", int),
    ("compared_val_ppl", "", "lowest validation perplexity in the first compared_epochs", float),
    ("compared_best_epoch", "", "epoch of compared_val_ppl, from 0", int),
    ("best_epoch", "", "epoch with the lowest validation perplexity, from 0", int),
    ("train_ppl", "", "training perplexity of the best epoch", float),
    ("val_ppl", "", "validation perplexity of the best epoch", float),
    ("final_train_ppl", "", "training perplexity of the last epoch", float),
    ("final_val_ppl", "", "validation perplexity of the last epoch", float),
    ("test_ppl", "", "test perplexity of the best epoch; of finished runs", float),
    ("val_bits_per_byte", "bits/byte", "validation loss of the best epoch per byte; missing for old runs", float),
    ("test_bits_per_byte", "bits/byte", "test loss per byte of the text; of finished runs", float),
    ("lossless", "", "whether tokens determine the text, white space aside: no <unk>; of finished runs"),
    ("val_tokens", "tokens", "validation tokens scored; missing for old runs", int),
    ("test_tokens", "tokens", "test tokens scored; missing for old runs", int),
    ("gap", "nats/token", "validation less training loss of the best epoch", float),
    ("final_gap", "nats/token", "validation less training loss of the last epoch, which shows overfitting", float),
    (
        "train_slice_loss",
        "nats/token",
        "loss on the start of the training text, best epoch, no dropout",
        float,
    ),
    (
        "loss_of_10_most_frequent",
        "nats/token",
        "validation loss of the 10 most frequent training tokens",
        float,
    ),
    ("loss_of_90_next", "nats/token", "validation loss of the 90 next tokens by frequency", float),
    ("loss_of_others", "nats/token", "validation loss of all other tokens", float),
    ("parameters", "", "trainable parameters", int),
    ("wall_seconds", "s", "time of all finished epochs with validation", float),
    ("machine", "", "device, ranks, and cores or share of a GPU"),
    ("epoch_seconds", "s", "median time of an epoch", float),
    ("epoch_scatter", "", "standard deviation of the times of epochs, divided by their mean", float),
    ("estimated_seconds", "s", "time that the launch estimated", float),
    ("published_train_ppl", "", "published training perplexity", float),
    ("published_val_ppl", "", "published validation perplexity", float),
    ("published_epochs", "epochs", "epochs after which published_train_ppl was measured", int),
    ("replications_low", "", "lowest validation perplexity of replications", float),
    ("replications_high", "", "highest validation perplexity of replications", float),
    *_KEYS,
    ("command", "", "command that launches the run again"),
)

EPOCHS = _meanings(
    _ID,
    _NUMBER,
    ("epoch", "", "epoch, from 0", int),
    ("steps", "", "training steps of an epoch; missing for old runs", int),
    ("train_loss", "nats/token", "mean training loss over the epoch", float),
    ("val_loss", "nats/token", "validation loss after the epoch", float),
    ("train_ppl", "", "exp(train_loss)", float),
    ("val_ppl", "", "exp(val_loss)", float),
    ("val_bits_per_byte", "bits/byte", "val_loss in bits per byte of the validation text", float),
    ("val_tokens", "tokens", "validation tokens scored; missing for old runs", int),
    ("lr", "", "learning rate of the epoch's last step", float),
    ("epoch_seconds", "s", "time of the epoch, validation included", float),
    ("elapsed_seconds", "s", "time of the epochs so far", float),
    ("train_tokens_per_second", "tokens/s", "training speed", float),
    ("peak_memory_bytes", "bytes", "first rank's peak memory so far: on its GPU, or of its process", int),
    ("attempt", "", "attempt that finished the epoch, from 1", int),
    ("weights", "", "SHA-256 of the weights after the epoch; missing for old runs"),
)
"""Whatever else a run recorded follows these columns."""

STEPS = _meanings(
    ("epoch", "", "epoch, from 0", int),
    ("step", "", "step of the epoch, from 0", int),
    ("loss", "nats/token", "training loss of the step", float),
    ("grad_norm", "", "norm of the gradient over all parameters before clipping", float),
    ("seconds", "s", "time of the step; on a GPU the mean of those that were read at once", float),
    ("lr", "", "learning rate", float),
)

ATTEMPTS = _meanings(
    _NUMBER,
    _ID,
    ("attempt", "", "attempt, from 1", int),
    ("backend", "", "local, ray or slurm"),
    ("job_id", "", "job on the cluster"),
    ("host", "", "host of the first rank"),
    ("node", "", "first rank's node, as the cluster names it"),
    ("device", "", "device of the first rank"),
    ("ranks", "", "processes that trained together", int),
    ("gpus", "", "GPUs of all ranks; 0 on processors", float),
    ("cores", "", "cores of all ranks", float),
    ("machine", "", "device, ranks, and cores or share of a GPU; times compare only between equal ones"),
    ("places", "", "hosts and GPUs of all ranks, joined by ' + '"),
    ("micro_batches", "", "parts of each rank's batch; more than 1 if memory was short", int),
    ("code", "", "folder of the attempt's code; a copy's name: commit and digest of the files"),
    ("versions", "", "versions of seqlm, Python, PyTorch, tokenizers and driver on the first rank"),
    ("started_at", "", "start, ISO 8601"),
    ("ended_at", "", "end, ISO 8601; of an attempt that was cut off, its last heartbeat"),
    ("seconds", "s", "from started_at to ended_at", float),
    ("cpu_seconds", "s", "time of processors of all ranks", float),
    ("resident_bytes", "bytes", "most memory of the machine, of all ranks", float),
    ("gpu_busy", "", "share of time in which a kernel ran, mean of GPUs", float),
    ("joules", "J", "energy of the GPUs", float),
    ("changes", "", "changes since the attempt before that affect rounding or masks, such as threads"),
    ("outcome", "", "done, rung (left at a rung of a search), failed, cancelled, interrupted, running or not started"),
    ("failure_kind", "", "kind of failure"),
    ("epochs", "epochs", "epochs that the attempt finished and kept", int),
    ("epoch_seconds", "s", "time of those epochs", float),
    ("lost_seconds", "s", "rest of seconds: start-up, checkpoints, test, an epoch that no attempt went on with", float),
)

RESULTS = _meanings(
    ("number", "", "number of the setting's first run"),
    ("name", "", "name of the setting's first finished run, without the seed if it has several"),
    ("arch", "", "architecture"),
    ("optimizer", "", "optimizer"),
    ("runs", "", "numbers of its finished runs, a tuple"),
    ("seeds", "", "finished runs"),
    ("epochs", "epochs", "epochs that the row is about: compared_epochs of its runs"),
    ("val_ppl", "", "best validation perplexity in these epochs; all perplexities here: geometric mean over seeds"),
    ("val_ppl_low", "", "lower end of the 95 % interval of val_ppl (Student's t of the losses); needs two seeds"),
    ("val_ppl_high", "", "upper end of it"),
    ("train_ppl", "", "training perplexity of the best epoch"),
    ("test_ppl", "", "test perplexity of the best epoch; missing if a later epoch is better"),
    ("all_val_ppl", "", "best validation perplexity of all epochs that the runs have gone"),
    ("all_test_ppl", "", "test perplexity of the epoch of all_val_ppl"),
    ("val_bits_per_byte", "bits/byte", "validation loss of the best epoch per byte of the text, mean over seeds"),
    ("test_bits_per_byte", "bits/byte", "test loss per byte of the text, mean over seeds"),
    ("final_train_ppl", "", "training perplexity of the last epoch"),
    ("final_val_ppl", "", "validation perplexity of the last epoch"),
    ("gap", "nats/token", "validation less training loss of the best epoch, mean over seeds"),
    ("seconds_to_best", "s", "elapsed_seconds of the best epoch, mean over seeds"),
    ("seconds_to_study_best", "s", "time to the first epoch within 5 % of the study's best on the same text"),
    *(row for row in _KEYS if row[0] in SETTING_KEYS),
)

BEHAVIOUR = _meanings(
    _NUMBER,
    _ID,
    ("curve", "", "which curve: loss_zero_state, loss_carried_state, gradient_overall, gradient_layer_1, ..."),
    ("t", "tokens", "time step in the window, from 1"),
    ("value", "nats/token; gradients: 1", "mean validation loss at step t, or norm of the last step's gradient there"),
)

_MEASURES = (
    ("rating", "nats/token", "mean loss under the panel, without <unk>; missing without a panel"),
    ("known_pairs", "", "share of pairs of successive tokens in the training text"),
    ("known_triples", "", "share of triples of successive tokens in the training text"),
    ("repetition", "", "share of tokens that are among the 16 before"),
    ("distinct_1", "", "distinct tokens divided by tokens"),
    ("distinct_2", "", "distinct pairs of successive tokens divided by pairs"),
    ("distinct_3", "", "distinct triples of successive tokens divided by triples"),
    ("unk_share", "", "share of <unk>"),
    ("longest_copy", "tokens", "longest passage without <unk> that is in the training text"),
)

SAMPLES = _meanings(
    _NUMBER,
    _ID,
    ("index", "", "place in samples.jsonl, from 0"),
    ("length", "tokens", "length of the text, a random first token included"),
    ("prompt", "", "what the model was given"),
    ("text", "", "what it wrote"),
    ("entropy", "nats", "mean entropy of the distributions that the tokens were drawn from"),
    ("perplexity_own", "", "perplexity of the text under the model itself"),
    *_MEASURES,
    ("copied", "", "passage that longest_copy measures"),
)

HELD_OUT = _meanings(
    _NUMBER,
    _ID,
    ("index", "", "place, from 0, of the sample that the piece of validation text is as long as"),
    ("perplexity_own", "", "perplexity of the piece under the model itself"),
    *_MEASURES,
)

RESOURCES = _meanings(
    _NUMBER,
    _ID,
    ("cores", "", "cores of all ranks that the last attempt asked for", float),
    ("used_cores", "", "mean number of cores in use: processor time over time, mean of attempts", float),
    ("enough_cores", "", "cores of all ranks that would have been enough", float),
    ("peak_memory_bytes", "bytes", "peak memory of one rank: on its GPU, or of its process", int),
    ("resident_bytes", "bytes", "most memory of the machine in an attempt, of all ranks", int),
    ("core_hours", "h", "cores times hours, of attempts without a GPU", float),
    ("gpu_hours", "h", "GPUs times hours", float),
    ("idle_gpu_hours", "h", "those in which no kernel ran", float),
    ("kwh", "kWh", "energy of the GPUs", float),
)
"""A row for each run that has been started."""

TABLES: Mapping[str, Mapping[str, Meaning]] = MappingProxyType(
    {
        "runs": RUNS,
        "epochs": EPOCHS,
        "attempts": ATTEMPTS,
        "results": RESULTS,
        "steps": STEPS,
        "resources": RESOURCES,
        "behaviour": BEHAVIOUR,
        "samples": SAMPLES,
        "held_out": HELD_OUT,
    }
)
"""Table -> column -> meaning, in the order of the columns."""


def as_columns(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, by dotted key, as the columns of the runs table.

    Of a user's own model, the architecture is its file and class. An argument with the name of a key of seqlm's
    architectures, such as ``hidden_size``, is in the column of that key. The others are in ``model.arguments``.

    >>> as_columns({"model.arch": "custom", "model.source": "a.py:A", "model.arguments.hidden_size": 8})
    {'model.arch': 'a.py:A', 'model.hidden_size': 8}
    """
    if "model.source" not in config:
        return dict(config)
    columns = {key: value for key, value in config.items() if base_key(key) not in (*OPEN_TABLES, *_OF_OWN_MODELS)}
    known, others = valid_keys(), []
    found: dict[str, Any] = {"model.arch": config["model.source"]}
    for key, value in config.items():
        name = key.removeprefix(f"{base_key(key)}.")
        if base_key(key) not in OPEN_TABLES or name == key:
            continue
        if f"model.{name}" in known and f"model.{name}" not in _OF_OWN_MODELS:
            found[f"model.{name}"] = value
        else:
            others.append(f"{name} = {units.plain_value(value)}")
    if others:
        found["model.arguments"] = ", ".join(sorted(others))
    if config.get("model.sha256") is not None:
        found["model.sha256"] = config["model.sha256"]
    return {**found, **columns}


def forget_single_digests(configs: Iterable[dict[str, Any]]) -> None:
    """Remove the digest of each model of which there is one version only: it says no more than the model's name."""
    configs = list(configs)
    versions: dict[Any, set[Any]] = {}
    for config in configs:
        versions.setdefault(config.get("model.arch"), set()).add(config.get("model.sha256"))
    for config in configs:
        if len(versions[config.get("model.arch")]) == 1:
            config.pop("model.sha256", None)


def table_of(
    name: str,
    rows: Iterable[Mapping[str, Any]] | dict[str, Any],
    more: Sequence[str] = (),
    dtype: type | None = None,
) -> pd.DataFrame:
    """Return rows, or columns by name, as one of ``TABLES``, followed by the columns ``more``.

    A value of another type is missing.
    """
    data = rows if isinstance(rows, dict) else list(rows)
    table = pd.DataFrame(data, columns=[*TABLES[name], *more], dtype=dtype)
    for column, meaning in TABLES[name].items():
        if meaning.type is not None:
            numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
            is_whole = (numbers % 1 == 0) & (numbers.abs() < 2**53)
            table[column] = numbers if meaning.type is float else numbers.where(is_whole).astype("Int64")
        elif column in ("number", "setting"):
            table[column] = table[column].infer_objects()
    return table
