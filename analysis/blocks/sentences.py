"""Sentences of the report: the words are in templates/sentences, the numbers come from Python."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.study import units
from analysis.study.columns import SAME_TEXT
from analysis.study.comparison import APART, finished, went_further
from analysis.study.study import StudyFiles


def sentences(template: str, **values: Any) -> list[str]:
    """Return the paragraphs of a template, which blank lines separate, each as one line."""
    text = _environment().get_template(f"{template}.j2").render(values)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def caption(template: str, **values: Any) -> str:
    """Return a template as one paragraph."""
    return " ".join(sentences(f"caption_{template}", **values))


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("analysis", "templates/sentences"),
        optimized=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # plain text, which the templates of the page escape
    )
    found.filters |= {
        "ppl": units.perplexity,
        "time": units.duration,
        "hours": units.hours,
        "percent": units.percent,
        "few": first_few,
        "all": lambda items: units.listing(list(items)),
        "n": units.count,
    }
    return found


# -- phrases -------------------------------------------------------------------------------------------------------


def first_few(items: Sequence[str], most: int) -> str:
    """A listing that ends in ``and 12 more`` where it would be long."""
    if len(items) <= most:
        return units.listing(list(items))
    return f"{', '.join(items[:most])} and {len(items) - most} more"


# -- one text or several, how many runs, and how many epochs of each -----------------------------------------------


def text_sentences(study: StudyFiles, closing: str = "This section is about the first text alone.") -> list[str]:
    """Return a warning, which ends with ``closing``, if the runs predict different texts; nothing else."""
    return sentences(
        "texts",
        texts=study.texts.to_dict(),
        corpora=len(finished(study.runs)[SAME_TEXT].drop_duplicates()),
        others=len(study.runs) - len(study.on_one_text.runs),
        closing=closing,
    )


def scoring_sentences(study: StudyFiles) -> list[str]:
    """Say how validation text is scored, and over how many tokens, if finished runs on one text differ in that."""
    done = finished(study.runs)
    ways = {key: done[f"eval.{key}"].fillna(done[f"train.{key}"]) for key in ("batch_size", "seq_len")}
    done = done.assign(**ways, whole=done["eval.batch_size"].notna())
    found = []
    for text, runs in done.groupby("text", sort=False):
        alike = runs.astype(dict.fromkeys(ways, int)).groupby([*ways, "whole"])["val_tokens"].agg(["max", "size"])
        if len(alike) > 1:
            kinds = [(*kind, *counts) for kind, counts in zip(alike.index, alike.to_numpy(object), strict=True)]
            found += sentences("scoring", text=text if len(study.texts) > 1 else None, kinds=kinds)
    return found


def scope_sentences(study: StudyFiles) -> list[str]:
    """Say by which epochs the runs of a study at equal epochs are compared, and which runs are not, if they differ."""
    apart = study.runs[study.runs["state"] == APART].sort_values("number")
    return sentences(
        "scope",
        limits=[
            {
                "text": text if len(study.texts) > 1 else None,
                "epochs": int(runs["compared_epochs"].iloc[0]),
                "longer": int((runs["epochs_done"] > runs["compared_epochs"]).sum()),
                "most": int(runs["epochs_done"].max()),
            }
            for text, runs in finished(study.runs).groupby("text", sort=False)
        ],
        short=apart[apart["optim.decay_epochs"].isna()].to_dict("records"),
        annealed=apart[apart["optim.decay_epochs"].notna()].to_dict("records"),
    )


def scope(study: StudyFiles) -> str:
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
