"""The texts of a study. Perplexities of different texts, or of different tokens of one text, do not compare."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.study import units
from analysis.study.columns import HYPERPARAMETERS
from analysis.study.settings import finished
from analysis.study.study import Study

TEXT_KEYS = [key for key in HYPERPARAMETERS if key.startswith("data.")]
"""Columns of the runs table that say what a run predicts: corpus, kind of token, vocabulary, digest of the text."""


def text_of(run: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return what a run predicts, one printed value for each of ``TEXT_KEYS``; equal for runs that compare."""
    return tuple(units.plain_value(run[key]) for key in TEXT_KEYS)


def on_one_text(study: Study) -> Study:
    """Return the study with the runs alone that predict the text of the most finished runs."""
    counts = _finished_by_text(study.runs)
    if len(counts) < 2:
        return study
    commonest = max(counts, key=lambda text: counts[text])
    of_it = [text_of(run) == commonest for run in study.runs.to_dict("records")]
    return dataclasses.replace(study, runs=study.runs[of_it])


def text_sentences(study: Study) -> list[str]:
    """Return a warning if the finished runs predict different texts; nothing else."""
    counts = _finished_by_text(study.runs)
    if len(counts) < 2:
        return []
    ranked = sorted(counts, key=lambda text: -counts[text])
    named = [f"{_name(text, ranked)} ({units.count(counts[text], 'run')})" for text in ranked[:4]]
    more = f" and {len(ranked) - 4} more" if len(ranked) > 4 else ""
    return [
        f"The finished runs predict {len(ranked)} different texts: {units.listing(named)}{more}. Perplexities of "
        "different texts do not compare, and runs on different texts are not seeds of one setting. This section is "
        "about the first text alone."
    ]


def _finished_by_text(runs: pd.DataFrame) -> Counter[tuple[str, ...]]:
    return Counter(text_of(run) for run in finished(runs).sort_values("number").to_dict("records"))


def _name(text: tuple[str, ...], texts: Sequence[tuple[str, ...]]) -> str:
    """Return the corpus, and of the other values those in which the texts differ; a digest by its first digits."""
    corpus, *others = (value if len(value) < 64 else f"sha256 {value[:8]}" for value in text)
    differ = [len(set(values)) > 1 for values in zip(*texts, strict=True)][1:]
    keys = [key.removeprefix("data.") for key in TEXT_KEYS[1:]]
    parts = [
        value if value.startswith("sha256") else f"{key} {value}"
        for key, value, is_told in zip(keys, others, differ, strict=True)
        if is_told
    ]
    return " ".join([corpus, *parts])
