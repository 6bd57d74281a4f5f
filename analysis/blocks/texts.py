"""The texts of a study. Perplexities of different texts, or of different tokens of one text, do not compare."""

from __future__ import annotations

import dataclasses

import pandas as pd

from analysis.blocks.words import first_few
from analysis.study import units
from analysis.study.columns import SAME_TEXT, TEXT_KEYS
from analysis.study.settings import finished
from analysis.study.study import Study

ABOUT_FIRST = "This section is about the first text alone."


def text_names(study: Study) -> pd.Series[str]:
    """Return a name for what each run predicts, by the index of the runs table; runs with equal names compare.

    The name is the corpus, followed by the other values in which the texts of the study differ.
    """
    texts = study.runs[TEXT_KEYS].map(units.plain_value)
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


def finished_by_text(study: Study) -> pd.Series[int]:
    """Return the number of finished runs on each text by its name, the commonest text first."""
    names = text_names(study).loc[finished(study.runs).sort_values("number").index]
    return names.groupby(names, sort=False).size().sort_values(ascending=False, kind="stable")


def on_one_text(study: Study) -> Study:
    """Return the study with the runs alone that predict the text of the most finished runs."""
    counts = finished_by_text(study)
    if len(counts) < 2:
        return study
    return dataclasses.replace(study, runs=study.runs[text_names(study) == counts.index[0]])


def text_sentences(study: Study, closing: str = ABOUT_FIRST) -> list[str]:
    """Return a warning, which ends with ``closing``, if the finished runs predict different texts; nothing else."""
    counts = finished_by_text(study)
    if len(counts) < 2:
        return []
    if len(finished(study.runs)[SAME_TEXT].drop_duplicates()) == 1:
        several, what = f"one text with {len(counts)} vocabularies", "vocabularies"
    else:
        several, what = f"{len(counts)} different texts", "texts"
    named = first_few([f"{name} ({units.count(number, 'run')})" for name, number in counts.items()], 4)
    return [
        f"The finished runs predict {several}: {named}. Perplexities of different {what} do not "
        f"compare, and runs on different {what} are not seeds of one setting. {closing}"
    ]
