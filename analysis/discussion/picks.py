"""Which setting to take for wall-clock time and which for generalisation, and what each costs the other way."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import described, device_sentences, distinct, times
from analysis.plots.scatter import time_chart
from analysis.study import units
from analysis.study.settings import Setting, best_of
from analysis.study.study import WITHIN, Study


def picks_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The picks in sentences, as a table, and in a figure."""
    if not settings:
        return [Prose(text="No run has finished, so there is nothing to pick.")]
    best, front = best_of(settings), pareto_front(settings)
    within = [setting for setting in settings if units.is_number(setting.seconds_to_study_best)]
    fastest = min(within, key=lambda s: (s.seconds_to_study_best, s.val_ppl, s.number), default=None)
    sentences = [
        _generalisation_sentence(best, settings),
        *_time_sentences(best, fastest, len(within)),
        *_front_sentences(best, fastest, front, len(settings)),
        *(device_sentences(study) if fastest is not None else []),
    ]
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    chart = [time_chart(timed, front)] if len(timed) > 1 else []
    return [Points(items=sentences), _table(best, fastest, front), *chart]


def pareto_front(settings: Sequence[Setting]) -> list[Setting]:
    """Those that no other beats or equals in one of (time to best, perplexity) and beats in the other."""
    front: list[Setting] = []
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    for setting in sorted(timed, key=lambda s: (s.seconds_to_best, s.val_ppl, s.number)):
        if not front or setting.val_ppl < front[-1].val_ppl:
            front.append(setting)
    return front


# -- sentences -----------------------------------------------------------------------------------------------------


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


def _time_sentences(best: Setting, fastest: Setting | None, within: int) -> list[str]:
    """Name the first of the settings to come ``within`` 5 % of the lowest perplexity, and what it costs."""
    if fastest is None:
        return ["For wall-clock time there is no pick: no times were recorded for the runs that come near it."]
    soonest = units.duration(fastest.seconds_to_study_best)
    if fastest is best:
        if within == 1:
            return [
                f"For wall-clock time: the same, after {soonest} within 5 % of its best; no other setting comes within "
                "5 % of that perplexity at all."
            ]
        others = f"the {units.count(within - 1, 'other setting')} that {'does' if within == 2 else 'do'}"
        return [
            f"For wall-clock time: the same. It comes within 5 % of that perplexity after {soonest}, before {others}."
        ]
    text = (
        f"For wall-clock time: {fastest.reference}, the first of {within} settings to come within 5 % of "
        f"that perplexity, after {soonest} (best {units.perplexity(fastest.val_ppl)} after "
        f"{units.duration(fastest.seconds_to_best)})."
    )
    costs = f"The pick for time costs {_cost(fastest, best)}"
    if units.is_number(best.seconds_to_best) and fastest.seconds_to_best > 0:
        ratio = best.seconds_to_best / fastest.seconds_to_best
        took = f"{units.duration(best.seconds_to_best)} against {units.duration(fastest.seconds_to_best)}"
        costs += "; " + (
            f"the pick for generalisation takes {times(ratio)} the time to its best epoch ({took})"
            if ratio >= 1
            else f"yet the pick for generalisation is sooner at its own best epoch ({took})"
        )
    return [text, f"{costs}."]


def _front_sentences(best: Setting, fastest: Setting | None, front: Sequence[Setting], of: int) -> list[str]:
    if fastest is None or len(front) < 2:
        return []
    sentences = []
    if fastest is best:
        soonest = front[0]
        text = (
            f"The soonest at its best epoch of those worth considering is {soonest.reference}, after "
            f"{units.duration(soonest.seconds_to_best)}; it costs {_cost(soonest, best)}"
        )
        if units.is_number(best.seconds_to_best) and soonest.seconds_to_best > 0:
            ratio = best.seconds_to_best / soonest.seconds_to_best
            text += f", and the pick takes {times(ratio)} its time ({units.duration(best.seconds_to_best)})"
        sentences.append(f"{text}.")
    return [
        *sentences,
        f"{len(front)} of {units.count(of, 'setting')} are worth considering: no other is both "
        "lower in perplexity and sooner at its best epoch.",
    ]


def _cost(setting: Setting, best: Setting) -> str:
    low, high = distinct(best.val_ppl, setting.val_ppl)
    return f"{times(setting.val_ppl / best.val_ppl)} the perplexity ({high} against {low})"


# -- table ---------------------------------------------------------------------------------------------------------


def _table(best: Setting, fastest: Setting | None, front: Sequence[Setting]) -> Table:
    picked = {best.number: "generalisation"}
    if fastest is not None:
        picked[fastest.number] = "generalisation and time" if fastest is best else "time"
    shown = {setting.number: setting for setting in [*front, *([fastest] if fastest else []), best]}
    columns = [
        Column("setting", "Run", of=lambda setting: setting.reference),
        Column("architecture", "Architecture", of=lambda s: units.architecture(s.arch)),
        Column("optimizer", "Optimizer", of=lambda s: units.optimizer(s.optimizer)),
        number("val_ppl", "Valid.", units.perplexity, lambda setting: setting.val_ppl),
        number("gap", "Gap", units.perplexity, lambda setting: setting.gap),
        number("seconds_to_best", "Time to best", units.duration, lambda setting: setting.seconds_to_best),
        number("seconds_to_study_best", "Time to 5 %", units.duration, lambda s: s.seconds_to_study_best),
        Column("picked_for", "Picked for", of=lambda setting: picked.get(setting.number, units.MISSING)),
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
        records=list(shown.values()),
        run=lambda setting: setting.only_run,
    )
