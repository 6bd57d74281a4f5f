"""Which setting to take for wall-clock time and which for generalisation, and what each costs the other way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import described, device_sentences, distinct, times
from analysis.plots.scatter import time_chart
from analysis.study import units
from analysis.study.settings import Setting, best_of
from analysis.study.study import WITHIN, Study


@dataclass(frozen=True, kw_only=True)
class Picks:
    """The two picks, and everything between them."""

    generalisation: Setting
    """The lowest validation perplexity."""
    time: Setting | None
    """The first to come within 5 % of that; none where no time is known."""
    front: list[Setting]
    """Those that no other beats in both perplexity and time to the best epoch, the fastest first."""
    within: int
    """Settings that come within 5 % of the lowest perplexity."""


def picks_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The picks in sentences, as a table, and in a figure."""
    if not settings:
        return [Prose(text="No run has finished, so there is nothing to pick.")]
    picks = picks_of(settings)
    blocks: list[Block] = [Points(items=_sentences(study, picks, settings)), _table(picks)]
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    return [*blocks, time_chart(timed, picks.front)] if len(timed) > 1 else blocks


def picks_of(settings: Sequence[Setting]) -> Picks:
    """Pick among at least one."""
    within = [setting for setting in settings if units.is_number(setting.seconds_to_study_best)]
    fastest = min(within, key=lambda s: (s.seconds_to_study_best, s.val_ppl, s.number), default=None)
    return Picks(generalisation=best_of(settings), time=fastest, front=pareto_front(settings), within=len(within))


def pareto_front(settings: Sequence[Setting]) -> list[Setting]:
    """Those that no other beats or equals in one of (time to best, perplexity) and beats in the other."""
    front: list[Setting] = []
    lowest = math.inf
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    for setting in sorted(timed, key=lambda s: (s.seconds_to_best, s.val_ppl, s.number)):
        if setting.val_ppl < lowest:
            front.append(setting)
            lowest = setting.val_ppl
    return front


# -- sentences -----------------------------------------------------------------------------------------------------


def _sentences(study: Study, picks: Picks, settings: Sequence[Setting]) -> list[str]:
    best, fastest = picks.generalisation, picks.time
    sentences = [_generalisation_sentence(best, settings)]
    if fastest is None:
        sentences.append("For wall-clock time there is no pick: no times were recorded for the runs that come near it.")
        return sentences
    soonest = units.duration(fastest.seconds_to_study_best)
    if fastest is best and picks.within == 1:
        sentences.append(
            f"For wall-clock time: the same, after {soonest} within 5 % of its best; no other setting comes within 5 % "
            "of that perplexity at all."
        )
    elif fastest is best:
        others = units.count(picks.within - 1, "other setting")
        sentences.append(
            f"For wall-clock time: the same. It comes within 5 % of that perplexity after {soonest}, before the "
            f"{others} that {'does' if picks.within == 2 else 'do'}."
        )
    else:
        sentences.append(
            f"For wall-clock time: {fastest.reference}, the first of {picks.within} settings to come within 5 % of "
            f"that perplexity, after {soonest} (best {units.perplexity(fastest.val_ppl)} after "
            f"{units.duration(fastest.seconds_to_best)})."
        )
        sentences += _cost_sentence(best, fastest)
    if fastest is best and len(picks.front) > 1:
        sentences.append(_fastest_sentence(best, picks.front[0]))
    if len(picks.front) > 1:
        sentences.append(
            f"{len(picks.front)} of {units.count(len(settings), 'setting')} are worth considering: no other is both "
            "lower in perplexity and sooner at its best epoch."
        )
    return sentences + device_sentences(study)


def _generalisation_sentence(best: Setting, settings: Sequence[Setting]) -> str:
    text = f"For generalisation: {described(best)}, the lowest validation perplexity"
    if units.is_number(best.seconds_to_best):
        text += f", reached after {units.duration(best.seconds_to_best)}"
    text += "."
    unclear = sum(bool(best.interval.doubt_against(s.interval)) for s in settings if s is not best)
    if unclear:
        text += (
            f" It may not be the best: seeds do not separate it from {units.count(unclear, 'other setting')} "
            "(Welch's t test of the losses at 5 %, or a single seed)."
        )
    gaps = [setting for setting in settings if units.is_number(setting.gap)]
    if len(gaps) > 1:
        least = min(gaps, key=lambda setting: setting.gap)
        if least is best:
            text += (
                f" Its gap between validation and training perplexity, {units.rounded(best.gap)}, is the smallest too."
            )
        else:
            text += (
                f" The smallest gap between validation and training perplexity is {units.rounded(least.gap)} "
                f"({least.reference}), at a validation perplexity of {units.rounded(least.val_ppl)}; the pick's is "
                f"{units.rounded(best.gap)}."
            )
    return text


def _cost_sentence(best: Setting, fastest: Setting) -> list[str]:
    low, high = distinct(best.val_ppl, fastest.val_ppl)
    costs = [f"The pick for time costs {times(fastest.val_ppl / best.val_ppl)} the perplexity ({high} against {low})"]
    if (
        units.is_number(best.seconds_to_best)
        and units.is_number(fastest.seconds_to_best)
        and fastest.seconds_to_best > 0
    ):
        ratio = best.seconds_to_best / fastest.seconds_to_best
        took = f"{units.duration(best.seconds_to_best)} against {units.duration(fastest.seconds_to_best)}"
        if ratio >= 1:
            costs.append(f"the pick for generalisation takes {times(ratio)} the time to its best epoch ({took})")
        else:
            costs.append(f"yet the pick for generalisation is sooner at its own best epoch ({took})")
    return [f"{'; '.join(costs)}."]


def _fastest_sentence(best: Setting, soonest: Setting) -> str:
    """What haste would cost where one setting is both picks."""
    low, high = distinct(best.val_ppl, soonest.val_ppl)
    text = (
        f"The soonest at its best epoch of those worth considering is {soonest.reference}, after "
        f"{units.duration(soonest.seconds_to_best)}; it costs {times(soonest.val_ppl / best.val_ppl)} the perplexity "
        f"({high} against {low})"
    )
    if soonest.seconds_to_best > 0 and units.is_number(best.seconds_to_best):
        ratio = best.seconds_to_best / soonest.seconds_to_best
        return f"{text}, and the pick takes {times(ratio)} its time ({units.duration(best.seconds_to_best)})."
    return f"{text}."


# -- table ---------------------------------------------------------------------------------------------------------


def _table(picks: Picks) -> Table:
    shown = list(picks.front)
    for pick in (picks.time, picks.generalisation):
        if pick is not None and not any(pick is setting for setting in shown):
            shown.append(pick)
    columns = [
        Column("setting", "Run", of=lambda setting: setting.reference),
        Column("architecture", "Architecture", of=lambda s: units.architecture(s.arch)),
        Column("optimizer", "Optimizer", of=lambda s: units.optimizer(s.optimizer)),
        number("val_ppl", "Valid.", units.perplexity, lambda setting: setting.val_ppl),
        number("gap", "Gap", units.perplexity, lambda setting: setting.gap),
        number("seconds_to_best", "Time to best", units.duration, lambda setting: setting.seconds_to_best),
        number("seconds_to_study_best", "Time to 5 %", units.duration, lambda s: s.seconds_to_study_best),
        Column("picked_for", "Picked for", of=lambda setting: _picked_for(setting, picks)),
    ]
    caption = (
        "The Pareto front of perplexity and time to the best epoch, the fastest first, and the picks. Time to 5 %: to "
        f"within {WITHIN:g} times the study's lowest perplexity. {units.MISSING}: not reached."
    )
    return Table(
        name="discussion-3-picks",
        title="Perplexity against time",
        caption=caption,
        columns=columns,
        records=shown,
        run=lambda setting: setting.only_run,
    )


def _picked_for(setting: Setting, picks: Picks) -> str:
    reasons = [("generalisation", picks.generalisation), ("time", picks.time)]
    return units.listing([reason for reason, pick in reasons if pick is setting] or [units.MISSING])
