"""Which runs compare: those on the same text, at equal epochs.

Perplexities of different texts, or of different tokens of one text, do not compare. A longer run has a head start, so
each run is compared by what it had reached after its first N epochs: the median of the done runs on its text, of two
the lower one. A done run with fewer epochs does not compare, and neither does one whose learning rate falls to 0 over
another number of epochs: after N epochs its rate would still be high.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.study import units
from analysis.study.columns import TEXT_KEYS

WITHIN = 1.05
"""Near a best perplexity: at most this many times it."""

APART = "apart"
"""State, in comparisons, of a done run that does not compare with the others."""

OF_FREQUENCIES = ("loss_of_10_most_frequent", "loss_of_90_next", "loss_of_others")
"""Columns of the runs table for the ``frequency_losses`` of a result, in their order."""

OF_CHECKPOINT = ("test_ppl", "test_bits_per_byte", "train_slice_loss", *OF_FREQUENCIES)
"""Columns of the runs table that are measured with the parameters of the run's best epoch alone."""

AT_BEST = {key: key for key in ("train_ppl", "val_ppl", "val_bits_per_byte")} | {"best_epoch": "epoch"}
AT_END = {"final_train_ppl": "train_ppl", "final_val_ppl": "val_ppl", "wall_seconds": "elapsed_seconds"}
"""Columns of the runs table, and of the epochs table from whose row of the best or the last epoch they come."""


def text_names(runs: pd.DataFrame) -> pd.Series[str]:
    """Return a name for what each run predicts; runs with equal names compare.

    The name is the corpus, followed by the other values in which the texts of the study differ.
    """
    texts = runs[TEXT_KEYS].map(units.plain_value)
    known = texts[texts["data.corpus"] != units.MISSING]
    names = texts["data.corpus"]
    keys = [key for key in TEXT_KEYS[1:] if known[key].nunique() > 1]
    if known["data.tokenizer_sha256"].nunique() == known["data.tokenizer"].nunique():
        keys = [key for key in keys if key != "data.tokenizer_sha256"]  # the name of the file says as much
    for key in keys:
        value = texts[key].str.slice(stop=8) if key.endswith("sha256") else texts[key]
        part = f" {key.removeprefix('data.')} " + value
        of_tokens = key in ("data.level", "data.vocab_size")  # which a tokenizer decides
        names = names + part.mask(texts["data.tokenizer"] != "none" if of_tokens else texts[key] == "none", "")
    return names


def compared_epochs(runs: pd.DataFrame) -> pd.Series[Any]:
    """Return N for each run; missing for a done run that does not compare, and if no run on the text has a result.

    While no run on a text is done, N is that of the results there are.
    """
    results = runs["finished_epochs"].where(_is_perplexity(runs["val_ppl"])).astype(float)
    done, texts = results.where(runs["state"] == "done"), runs["text"]
    middle, of_any = (found.groupby(texts).transform("quantile", 0.5, "lower") for found in (done, results))
    n = middle.fillna(of_any)
    length = runs["optim.decay_epochs"].astype(float)
    compares = ~(done < n)
    schedules = length.fillna(0.0).where(compares & done.notna()).groupby(texts).transform("nunique")
    return n.where(compares & (length.isna() | (length == n) | (schedules <= 1))).astype("Int64")


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that are done and have a validation perplexity: all that conclusions may rest on."""
    done: pd.DataFrame = runs[(runs["state"] == "done") & _is_perplexity(runs["val_ppl"])]
    return done


def went_further(runs: pd.DataFrame) -> bool:
    """Whether a finished run has gone more epochs than those by which it is compared."""
    done = finished(runs)
    return bool((done["epochs_done"] > done["compared_epochs"]).any())


def _is_perplexity(values: pd.Series[Any]) -> Any:
    """Whether each value can be a perplexity: finite and above 0. A file of another program may hold anything."""
    return np.isfinite(values) & (values > 0)


def cut(runs: pd.DataFrame, epochs: pd.DataFrame, limits: pd.Series[Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of runs and epochs as they were after ``limits`` epochs: one limit for each run, or missing.

    A run that has a result and has reached its limit is "done": it had finished before it was asked for more. The best
    and the final figures of one that went further are those of its first epochs. Its test perplexity is missing unless
    its best epoch is one of them, since the tested checkpoint is of that epoch. ``epochs_done`` keeps the epochs gone.
    """
    gone, limit = runs["epochs_done"].astype(float), limits.astype(float)
    reached, longer = (gone >= limit) & runs["finished_epochs"].notna(), gone > limit
    if not longer.any() and (runs.loc[reached, "state"] == "done").all():
        return runs, epochs
    left = epochs["id"].map(dict(zip(runs["id"], limit, strict=True))) - epochs["epoch"].astype(float)
    first, last = epochs[~(left <= 0)], epochs[left == 1]
    finite = first[np.isfinite(first["val_ppl"])]
    runs, best_before = runs.copy(), runs["best_epoch"]
    for rows, columns in ((finite.sort_values("val_ppl", kind="stable"), AT_BEST), (last, AT_END)):
        found = rows.drop_duplicates("id").set_index("id")
        for name, of in columns.items():
            runs.loc[longer, name] = runs.loc[longer, "id"].map(found[of])
    is_of_checkpoint = (runs["best_epoch"] == best_before).fillna(value=False).astype(bool)
    for name in OF_CHECKPOINT:
        runs[name] = runs[name].where(~longer | is_of_checkpoint)
    runs.loc[reached, ["reason", "failure_kind", "failure_message", "failure_where"]] = None
    runs.loc[reached, "state"] = "done"
    return with_times(runs, first), first


def nats_between(perplexities: pd.Series[Any], others: pd.Series[Any]) -> pd.Series[float]:
    """Return the losses of perplexities less those of others; NaN if one of the two is no perplexity."""
    ratio = (perplexities / others).astype(float)
    return ratio.where(_is_perplexity(perplexities) & _is_perplexity(others)).map(math.log)


def with_times(runs: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs table with the columns that follow from others and from the epochs of each run."""
    seconds = epochs.groupby("id")["epoch_seconds"]
    return runs.assign(
        gap=nats_between(runs["val_ppl"], runs["train_ppl"]),
        final_gap=nats_between(runs["final_val_ppl"], runs["final_train_ppl"]),
        epoch_seconds=runs["id"].map(seconds.median()).astype(float),
        epoch_scatter=runs["id"].map(seconds.std() / seconds.mean()).astype(float),
    )
