"""Phrases and sentences that sections and figures share, and what the numbers of a section are about."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from analysis.study import units
from analysis.study.columns import SAME_TEXT
from analysis.study.comparison import finished, went_further
from analysis.study.settings import Setting
from analysis.study.study import Study


def described(setting: Setting) -> str:
    """``103.41 (6 gru-sgd)``; with several seeds also the interval over them."""
    return f"{units.perplexity(setting.val_ppl)} ({setting.reference}{interval_phrase(setting)})"


def interval_phrase(setting: Setting) -> str:
    """``, mean of 3 seeds, 97.53 to 102.10``; nothing for a single one."""
    found = setting.interval
    if found.n == 1:
        return ""
    low, high = map(units.perplexity, (found.low, found.high))
    return f", mean of {found.n} seeds, 95 % interval {low} to {high}"


def times(factor: float) -> str:
    """A ratio: ``1.03 times``, ``12 times``."""
    return f"{factor:.2f} times" if factor < 10 else f"{factor:,.0f} times"


def median(values: Iterable[float]) -> float:
    """Of the numbers there are; NaN of none."""
    numbers = [float(value) for value in values if units.is_number(value)]
    return statistics.median(numbers) if numbers else math.nan


def first_few(items: Sequence[str], most: int) -> str:
    """A listing that ends in ``and 12 more`` where it would be long."""
    if len(items) <= most:
        return units.listing(list(items))
    return f"{', '.join(items[:most])} and {len(items) - most} more"


# -- one text or several, how many runs, and how many epochs of each -----------------------------------------------


def text_sentences(study: Study, closing: str = "This section is about the first text alone.") -> list[str]:
    """Return a warning, which ends with ``closing``, if the runs predict different texts; nothing else."""
    if len(study.texts) < 2:
        others = len(study.runs) - len(study.on_one_text.runs)
        if not others:
            return []
        return [
            f"{units.count(others, 'run')} that {'has' if others == 1 else 'have'} not finished "
            f"{'predicts' if others == 1 else 'predict'} another text than the finished ones "
            f"({study.texts.index[0]}). {closing}"
        ]
    if len(finished(study.runs)[SAME_TEXT].drop_duplicates()) == 1:
        several, what = f"one text with {len(study.texts)} vocabularies", "vocabularies"
    else:
        several, what = f"{len(study.texts)} different texts", "texts"
    named = first_few([f"{name} ({units.count(number, 'run')})" for name, number in study.texts.items()], 4)
    return [
        f"The finished runs predict {several}: {named}. Perplexities of different {what} do not "
        f"compare, and runs on different {what} are not seeds of one setting. {closing}"
    ]


def scoring_sentences(study: Study) -> list[str]:
    """Say how validation text is scored, and over how many tokens, if finished runs on one text differ in that."""
    done = finished(study.runs)
    ways = {key: done[f"eval.{key}"].fillna(done[f"train.{key}"]) for key in ("batch_size", "seq_len")}
    done = done.assign(**ways, whole=done["eval.batch_size"].notna())
    sentences = []
    for text, runs in done.groupby("text", sort=False):
        parts = [
            f"{f'{tokens:,.0f} tokens in ' if units.is_number(tokens := alike['val_tokens'].max()) else ''}"
            f"{columns:,} columns and windows of {window:,} ({units.count(len(alike), 'run')})"
            for (columns, window, _), alike in runs.astype(dict.fromkeys(ways, int)).groupby([*ways, "whole"])
        ]
        if len(parts) > 1:
            on = f" on {text}" if len(study.texts) > 1 else ""
            sentences.append(
                f"Validation{on} is not scored alike: {first_few(parts, 4)}. Differences between these runs, and "
                "effects of train.batch_size and train.seq_len, include that of the scoring. With eval.batch_size and "
                "eval.seq_len in [defaults], all runs are scored on the same tokens."
            )
    return sentences


def scope(study: Study) -> str:
    """Return what the numbers of a table or figure are of, with a space in front: epochs, and runs of how many.

    Empty if every run has finished, all with the same epochs. ``study`` is one at equal epochs.
    """
    return scope_of(study.runs, len(study.absent))


def scope_of(runs: pd.DataFrame, absent: int = 0) -> str:
    """Return the same of some runs and of ``absent`` ones, which have no directory."""
    done = finished(runs)
    parts = []
    if went_further(runs):
        limits = sorted(set(done["compared_epochs"].dropna().astype(int)))
        parts.append(f"first {units.listing([str(limit) for limit in limits])} epoch{'' if limits == [1] else 's'}")
    of = len(runs) + absent
    if len(done) < of:
        stopped = int((runs["state"] == "stopped").sum())
        parts.append(f"{len(done)} of {units.count(of, 'run')}{f' ({stopped} stopped)' if stopped else ''}")
    text = "; ".join(parts)
    return f" {text[0].upper()}{text[1:]}." if text else ""
