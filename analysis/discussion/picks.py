"""Which setting to take for wall-clock time and which for generalisation, and what each costs the other way."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import described, device_sentences, distinct, scope, times
from analysis.plots.scatter import time_chart
from analysis.study import units
from analysis.study.comparison import WITHIN
from analysis.study.settings import Setting, best_of
from analysis.study.study import OVERFITTED_FROM, Study


def picks_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The picks in sentences, as a table, and in a figure."""
    if not settings:
        return [Prose(text="No run has finished, so there is nothing to pick.")]
    best, front = best_of(settings), pareto_front(settings)
    within = [setting for setting in settings if units.is_number(setting.seconds_to_study_best)]
    fastest = min(within, key=lambda s: (s.seconds_to_study_best, s.val_ppl, s.number), default=None)
    sentences = [
        _generalisation_sentence(best, settings),
        *_gap_sentences(best, settings),
        *_time_sentences(best, fastest, settings, len(within)),
        *_front_sentences(best, fastest, front, len(settings)),
        *(device_sentences(study) if fastest is not None else []),
    ]
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    chart = [time_chart(timed, front, scope(study))] if len(timed) > 1 else []
    return [Points(items=sentences), _table(best, fastest, front, scope(study)), *chart]


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
    if best.final_val_ppl > OVERFITTED_FROM * best.val_ppl:
        text += (
            f" By its last epoch its validation perplexity is {units.rounded(best.final_val_ppl)}, so take the "
            "parameters of its best epoch."
        )
    return text


def _gap_sentences(best: Setting, settings: Sequence[Setting]) -> list[str]:
    """Compare gaps at the best epoch and after the last, where overfitting shows."""
    known = [s for s in settings if units.is_number(s.gap) and units.is_number(s.final_gap)]
    if len(known) < 2 or best not in known:
        return []
    least, least_final = (min(known, key=key) for key in (lambda s: s.gap, lambda s: s.final_gap))
    smallest = [
        f"{units.rounded(gap)} {when} ({setting.reference}, validation perplexity {units.rounded(ppl)})"
        for setting, gap, when, ppl in (
            (least, least.gap, "at the best epoch", least.val_ppl),
            (least_final, least_final.final_gap, "after the last", least_final.final_val_ppl),
        )
        if setting is not best
    ]
    others = f"The smallest gap is {units.listing(smallest)}" if smallest else "No other setting has a smaller one"
    return [
        f"Gap between validation and training perplexity of this pick: {units.rounded(best.gap)} at its best epoch, "
        f"{units.rounded(best.final_gap)} after its last. {others}."
    ]


def _time_sentences(best: Setting, fastest: Setting | None, settings: Sequence[Setting], within: int) -> list[str]:
    """Name the first of the settings to come ``within`` 5 % of the lowest perplexity, and what it costs."""
    if fastest is None:
        near = [setting for setting in settings if setting.val_ppl <= WITHIN * best.val_ppl]
        if all(units.is_number(setting.seconds_to_best) for setting in near):
            why = "no setting comes within 5 % of that perplexity with all its seeds"
        else:
            why = "no times are recorded for the runs near that perplexity"
        return [f"For wall-clock time there is no pick: {why}."]
    soonest = units.duration(fastest.seconds_to_study_best)
    if fastest is best:
        if within == 1:
            return [
                f"For wall-clock time: the same setting. It comes within 5 % of its best after {soonest}; no other "
                "setting comes within 5 % of that perplexity."
            ]
        others = f"the {units.count(within - 1, 'other setting')} that {'does' if within == 2 else 'do'}"
        return [
            f"For wall-clock time: the same setting. It comes within 5 % of its best after {soonest}, before {others}."
        ]
    text = (
        f"For wall-clock time: {fastest.reference}, the first of {within} settings to come within 5 % of "
        f"that perplexity, after {soonest} (best {units.perplexity(fastest.val_ppl)} after "
        f"{units.duration(fastest.seconds_to_best)})."
    )
    costs = f"The pick for time has {_cost(fastest, best)}"
    if units.is_number(best.seconds_to_best) and fastest.seconds_to_best > 0:
        ratio = best.seconds_to_best / fastest.seconds_to_best
        took = f"{units.duration(best.seconds_to_best)} against {units.duration(fastest.seconds_to_best)}"
        costs += "; " + (
            f"the pick for generalisation takes {times(ratio)} as long to its best epoch ({took})"
            if ratio >= 1
            else f"the pick for generalisation is even earlier at its own best epoch ({took})"
        )
    return [text, f"{costs}."]


def _front_sentences(best: Setting, fastest: Setting | None, front: Sequence[Setting], of: int) -> list[str]:
    if fastest is None or len(front) < 2:
        return []
    sentences = []
    if fastest is best:
        soonest = front[0]
        text = (
            f"The fastest setting on the Pareto front is {soonest.reference}: its best epoch ends after "
            f"{units.duration(soonest.seconds_to_best)}, with {_cost(soonest, best)}"
        )
        if units.is_number(best.seconds_to_best) and soonest.seconds_to_best > 0:
            ratio = best.seconds_to_best / soonest.seconds_to_best
            text += f". The pick takes {times(ratio)} as long ({units.duration(best.seconds_to_best)})"
        sentences.append(f"{text}.")
    return [
        *sentences,
        f"{len(front)} of {units.count(of, 'setting')} are on the Pareto front: no other setting is better in both "
        "perplexity and time to the best epoch.",
    ]


def _cost(setting: Setting, best: Setting) -> str:
    low, high = distinct(best.val_ppl, setting.val_ppl)
    return f"{times(setting.val_ppl / best.val_ppl)} the perplexity ({high} against {low})"


# -- table ---------------------------------------------------------------------------------------------------------


def _table(best: Setting, fastest: Setting | None, front: Sequence[Setting], of: str) -> Table:
    picked = {best.number: "generalisation"}
    if fastest is not None:
        picked[fastest.number] = "generalisation and time" if fastest is best else "time"
    shown = {setting.number: setting for setting in [*front, *([fastest] if fastest else []), best]}
    return Table(
        name="discussion-3-picks",
        title="Perplexity against time",
        caption="The Pareto front of perplexity and time to best, and the picks. Gap: at the best "
        f"epoch; final: after the last. Time to 5 %: to {WITHIN:g} times the lowest. {units.MISSING}: not reached.{of}",
        columns=[
            Column("setting", "Run", of=lambda setting: setting.reference),
            Column("architecture", "Architecture", of=lambda s: units.architecture(s.arch)),
            Column("optimizer", "Optimizer", of=lambda s: units.optimizer(s.optimizer)),
            number("val_ppl", "Valid.", units.perplexity, lambda setting: setting.val_ppl),
            number("gap", "Gap", units.perplexity, lambda setting: setting.gap),
            number("final_gap", "Final gap", units.perplexity, lambda setting: setting.final_gap),
            number("seconds_to_best", "Time to best", units.duration, lambda setting: setting.seconds_to_best),
            number("seconds_to_study_best", "Time to 5 %", units.duration, lambda s: s.seconds_to_study_best),
            Column("picked_for", "Picked for", of=lambda setting: picked.get(setting.number, units.MISSING)),
        ],
        records=list(shown.values()),
        run=lambda setting: setting.only_run,
    )
