"""Sentences of the report: the words are in templates/sentences, the numbers come from Python."""

from __future__ import annotations

import functools
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.blocks.texts import described, first_few, interval_phrase, times
from analysis.study import units
from analysis.study.comparison import APART, finished
from analysis.study.study import Study


def sentences(template: str, **values: Any) -> list[str]:
    """Return the paragraphs of a template, which blank lines separate, each as one line."""
    text = _environment().get_template(f"{template}.j2").render(values)
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def scope_sentences(study: Study) -> list[str]:
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


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("analysis", "templates/sentences"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # plain text, which the templates of the page escape
    )
    found.filters |= {
        "ppl": units.perplexity,
        "time": units.duration,
        "hours": units.hours,
        "nats": units.decimals(".3f"),
        "signed": units.signed,
        "percent": units.percent,
        "few": first_few,
        "all": lambda items: units.listing(list(items)),
        "n": units.count,
        "times": times,
        "described": described,
        "seeds": interval_phrase,
    }
    return found
