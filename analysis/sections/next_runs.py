"""What to run next: a question worth asking, longer runs, and runs to try again.

The best epoch of a run that improved up to its end is its last, and its perplexity fell by more than 0.1 % an epoch.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.blocks.section import Points, Section
from analysis.blocks.sentences import sentences
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of
from seqlm.optimizers import ANNEALED, PUBLISHED
from seqlm.state import KINDS, is_retried

LAST_SHARE, LEAST_EPOCHS = 0.1, 2
"""The end of a run: this share of its epochs, and at least this many."""

FALL_PER_EPOCH = 0.001
"""Still falling: by more than this share of the perplexity in each epoch of the end, as the geometric mean."""

NO_RATE = 0.01
"""A published schedule has ended once the learning rate is below this share of the given one."""

LONGER, SCHEDULE = "more epochs", "longer schedule"


def next_section(study: StudyFiles, rival: str | None) -> Section:
    """Proposals that the data support.

    ``rival``: the setting with the lowest perplexity that is not told apart from the best. ``None``: there is none.
    """
    settings = study.compared.on_one_text.settings
    runs = study.runs.sort_values("number")
    runs = runs.assign(reference=runs["number"].astype(str) + " " + runs["name"])
    falling = falling_runs(study)
    # These failures say nothing of the setting, only of the machine or of what it was given.
    again = runs[(runs["state"] == "failed") & runs["failure_kind"].isin([kind for kind in KINDS if is_retried(kind)])]
    open_runs = runs.loc[runs["state"].isin(["pending", "queued", "running", "cancelled"]), "reference"].to_list()
    told = sentences(
        "next",
        question=_question(settings, rival) if settings else None,
        done=len(finished(runs)),
        falling={kind: rows_of(falling[falling["proposal"] == kind]) for kind in dict.fromkeys(falling["proposal"])},
        again={kind: found["reference"].to_list() for kind, found in again.groupby("failure_kind")},
        unfinished=[*open_runs, *(f"{run.number} {run.name}".strip() for run in study.absent)],
        stopped=runs.loc[runs["state"] == "stopped", "reference"].to_list(),
        study=next(iter(study.directories)),
    )
    return Section(name="next", title="What to run next", blocks=[Points(items=told)])


# -- one question --------------------------------------------------------------------------------------------------


def _question(settings: Sequence[Setting], rival: str | None) -> dict[str, Any]:
    """Return what is least certain about the best setting: its learning rate, or whether it is the best.

    ``rates`` are the learning rates tried with its architecture and optimizer, ascending, and ``untried`` those that
    would show whether its own is the best: 1, 3, 10, ... on each side that has none.
    """
    best, *others = by_perplexity(settings)
    alike = [one for one in settings if (one.arch, one.optimizer) == (best.arch, best.optimizer)]
    rates = sorted({one.config["optim.lr"] for one in alike})
    own = best.config["optim.lr"]
    place = round(2 * math.log10(own))
    untried = [*([place - 1] if own == rates[0] else []), *([place + 1] if own == rates[-1] else [])]
    return {
        "best": best,
        "rates": rates,
        "untried": [units.plain_value(float(f"{10 ** (half / 2):.1g}")) for half in untried],
        "rivals": [one for one in others if one.reference == rival],
    }


# -- longer --------------------------------------------------------------------------------------------------------


def falling_runs(study: StudyFiles) -> pd.DataFrame:
    """Return the finished runs that fell by more than 0.1 % an epoch at their end (``fall``), the lowest first.

    ``proposal`` is more epochs, or for a run whose learning rate has come to its end a longer schedule in a new run.
    Whether more epochs would help shows at the end of all epochs, not of those by which the runs are compared.
    """
    curves = study.epochs.groupby("id")["val_ppl"].apply(list).to_dict()
    runs = finished(study.runs)
    runs = runs.assign(
        fall=[fall_per_epoch(curves.get(run, [])) for run in runs["id"]],
        epochs=[len(curves.get(run, [])) for run in runs["id"]],
    )
    found: pd.DataFrame = runs[runs["fall"] > FALL_PER_EPOCH].sort_values(["val_ppl", "number"])
    return found.assign(proposal=[SCHEDULE if _has_ended(run) else LONGER for run in found.to_dict("records")])


def fall_per_epoch(perplexities: Sequence[float]) -> float:
    """The share by which the end of a curve fell per epoch; 0 where its best epoch is not its last.

    >>> round(fall_per_epoch([120.0, 110.0, 99.0]), 3)
    0.1
    """
    last = max(LEAST_EPOCHS, math.ceil(LAST_SHARE * len(perplexities)))
    end = perplexities[-last:]
    if len(end) < LEAST_EPOCHS or not all(math.isfinite(value) and value > 0 for value in end):
        return 0.0
    if end[-1] > min(value for value in perplexities if math.isfinite(value)):
        return 0.0
    return 1 - math.pow(end[-1] / end[0], 1 / (len(end) - 1))


def _has_ended(run: dict[Any, Any]) -> bool:
    """Whether the learning rate of a run's next epoch is 0, or all but 0."""
    gone, schedule = run["epochs_done"], run["optim.schedule"]
    if schedule in ANNEALED:
        return bool(gone >= run["optim.decay_epochs"])
    if schedule not in PUBLISHED:
        return False
    falls = max(0, gone - (run["optim.flat_epochs"] - 1))
    exponent = falls * (falls + 1) / 2 if schedule == "compounding" else falls
    return bool(run["optim.decay"] ** -exponent < NO_RATE)
