"""What to run next: a question worth asking, longer runs, and runs to try again.

The best epoch of a run that improved up to its end is its last, and its perplexity fell by more than 0.1 % an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.blocks.sentences import first_few
from analysis.claims.answer import Answer
from analysis.claims.claim import MEASURES, Claim, Kind
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import StudyFiles
from seqlm.optimizers import ANNEALED, PUBLISHED
from seqlm.state import KINDS, is_retried

LAST_SHARE, LEAST_EPOCHS = 0.1, 2
"""The end of a run: this share of its epochs, and at least this many."""

FALL_PER_EPOCH = 0.001
"""Still falling: by more than this share of the perplexity in each epoch of the end, as the geometric mean."""

NO_RATE = 0.01
"""A published schedule has ended once the learning rate is below this share of the given one."""

LONGER, SCHEDULE = "more epochs", "longer schedule"
MOST_NAMED = 3
"""A sentence names at most this many runs."""
OPEN = ("pending", "queued", "running", "cancelled")
"""States of runs that are to be finished."""
NAME = "next"


def next_runs(study: StudyFiles, settings: Sequence[Setting], rival: str | None) -> Answer:
    """Return proposals that the data support.

    ``settings``: those that are compared. ``rival``: the one with the lowest perplexity that is not told apart from the
    best; ``None``: there is none.
    """
    points: list[str] = []
    claims: list[Claim] = []
    if settings:
        best = by_perplexity(settings)[0]
        tried = rates_tried(best, settings)
        claims.append(tried)
        if tried.given["untried"]:
            rates = units.listing(tried.given["untried"])
            points.append(
                f"Is the learning rate of {best.reference}, with the lowest perplexity, the right one? It is at an end "
                f"of the {units.count(len(tried.values), 'rate')} tried: runs with optim.lr = {rates} would say."
            )
        elif rival is not None:
            points.append(f"Do {best.reference} and {rival} differ? Further seeds of both would say.")
    done = len(finished(study.runs))
    still = falling(study, done)
    claims += still
    points += [_longer(claim) for claim in still]
    if not still:
        nothing = "no finished run was still improving at its last epoch" if done else "no run has finished"
        points.append(f"More epochs: {nothing}.")
    left = left_over(study)
    claims += [left] if left.members else []
    command = f"seqlm retry {next(iter(study.directories))}"
    points += [_left(what, names, command) for what, names in zip(left.members, left.given["runs"], strict=True)]
    return Answer(name=NAME, title="What to run next?", points=points, claims=claims)


def rates_tried(best: Setting, settings: Sequence[Setting]) -> Claim:
    """State the learning rates that were tried with the architecture and optimizer of the best setting.

    ``untried`` are those that would show whether its own is the right one: 1, 3, 10, ... on each side that has none.
    """
    alike = [one for one in settings if (one.arch, one.optimizer) == (best.arch, best.optimizer)]
    rates = sorted({one.config["optim.lr"] for one in alike})
    own = best.config["optim.lr"]
    place = round(2 * math.log10(own))
    halves = [*([place - 1] if own == rates[0] else []), *([place + 1] if own == rates[-1] else [])]
    untried = [units.plain_value(float(f"{10 ** (half / 2):.1g}")) for half in halves]
    return Claim(
        NAME,
        Kind.VALUE,
        "lr",
        [units.plain_value(rate) for rate in rates],
        list(map(float, rates)),
        given={"setting": best.reference, "untried": untried},
    )


def left_over(study: StudyFiles) -> Claim:
    """Count the runs that are to be finished, were stopped by a search, or failed with an error of no setting.

    The last ones are counted by kind of failure: it says something of the machine alone, or of what the run was given.
    """
    runs = study.runs.sort_values("number")
    runs = runs.assign(reference=runs["number"].astype(str) + " " + runs["name"])
    absent = [f"{run.number} {run.name}".strip() for run in study.absent]
    failed = runs[runs["state"] == "failed"]
    found = {
        **{
            f"failed: {kind}": failed.loc[failed["failure_kind"] == kind, "reference"].to_list()
            for kind in sorted(KINDS)
            if is_retried(kind)
        },
        "unfinished": [*runs.loc[runs["state"].isin(OPEN), "reference"], *absent],
        "stopped": runs.loc[(runs["state"] == "stopped") & runs["rung"].notna(), "reference"].to_list(),
    }
    found = {what: names for what, names in found.items() if names}
    return Claim(
        NAME,
        Kind.COUNT,
        "runs",
        list(found),
        [float(len(names)) for names in found.values()],
        given={"runs": list(found.values()), "absent": len(absent)},
    )


def _left(what: str, names: Sequence[str], command: str) -> str:
    named = f"{units.count(len(names), 'run')} ({first_few(names, MOST_NAMED)})"
    if what == "unfinished":
        return f"To be finished: {named}."
    if what == "stopped":
        return f"Stopped by the search: {named}. “{command} --kind stopped” lets them go on."
    return f"To be tried again, since the failure says nothing about the setting: {what}: {named}."


# -- longer --------------------------------------------------------------------------------------------------------


def falling(study: StudyFiles, done: int) -> list[Claim]:
    """Return a claim on the runs of each proposal: by how much of the perplexity they fell per epoch at their end."""
    runs = falling_runs(study)
    claims = []
    for proposal in dict.fromkeys(runs["proposal"]):
        own = runs[runs["proposal"] == proposal]
        names = own["number"].astype(str) + " " + own["name"]
        claims.append(
            Claim(
                NAME,
                Kind.COUNT,
                "fall_per_epoch",
                list(names),
                list(map(float, own["fall"])),
                given={"proposal": proposal, "of": done},
            )
        )
    return claims


def _longer(claim: Claim) -> str:
    write = MEASURES[claim.measure].write
    named = [f"{write(fall)} ({name})" for name, fall in zip(claim.members, claim.values, strict=True)]
    runs = f"{len(named)} of {claim.given['of']} finished runs, per epoch by {first_few(named, MOST_NAMED)}"
    what = "More epochs" if claim.given["proposal"] == LONGER else "A schedule over more epochs"
    return f"{what}: the perplexity still fell at the end of {runs}."


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
