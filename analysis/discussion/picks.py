"""Which setting to take for wall-clock time and which for generalisation, and what each costs the other way."""

from collections.abc import Sequence

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.sentences import scope, sentences
from analysis.blocks.table import Column, Table, number
from analysis.plots.scatter import time_chart
from analysis.study import units
from analysis.study.comparison import WITHIN
from analysis.study.settings import Setting, best_of, is_longer, on_one_machine
from analysis.study.study import OVERFITTED_FROM, StudyFiles


def picks_blocks(study: StudyFiles, settings: Sequence[Setting]) -> list[Block]:
    """The picks in sentences, as a table, and in a figure. Times are those on one machine."""
    if not settings:
        return [Prose(text="No run has finished, so there is nothing to pick.")]
    best, machine = best_of(settings), on_one_machine(settings)
    front, soonest = pareto_front(machine), first_within(machine)
    said = sentences(
        "picks",
        best=best,
        unclear=sum(bool(best.interval.doubt_against(one.interval)) for one in settings if one is not best),
        overfits=best.final_val_ppl > OVERFITTED_FROM * best.val_ppl,
        soonest=soonest,
        pick=(pick := best_of(soonest) if soonest else None),
        within=sum(units.is_number(one.seconds_to_study_best) for one in machine),
        front=front,
        settings=settings,
        machine=machine,
        on_machine=len(machine),
    )
    timed = [setting for setting in machine if units.is_number(setting.seconds_to_best)]
    chart = [time_chart(timed, front, scope(study))] if len(timed) > 1 else []
    return [Points(items=said), _table(best, pick, front, scope(study)), *chart]


def pareto_front(settings: Sequence[Setting]) -> list[Setting]:
    """Those with a time to best than which no other has a lower perplexity and no longer time, beyond scatter.

    By time; of settings of one machine.
    """
    front: list[Setting] = []
    better: list[Setting] = []
    timed = [setting for setting in settings if units.is_number(setting.seconds_to_best)]
    for setting in sorted(timed, key=lambda s: (s.val_ppl, s.seconds_to_best, s.number)):
        if all(is_longer(other, setting, lambda s: s.seconds_to_best) for other in better):
            front.append(setting)
        better.append(setting)
    return sorted(front, key=lambda s: (s.seconds_to_best, -s.val_ppl))


def first_within(settings: Sequence[Setting]) -> list[Setting]:
    """Of settings of one machine, the first within 5 % of the lowest perplexity, and those no later beyond scatter."""
    within = [setting for setting in settings if units.is_number(setting.seconds_to_study_best)]
    if not within:
        return []
    first = min(within, key=lambda s: (s.seconds_to_study_best, s.val_ppl, s.number))
    return [one for one in within if one is first or not is_longer(one, first, lambda s: s.seconds_to_study_best)]


def _table(best: Setting, pick: Setting | None, front: Sequence[Setting], of: str) -> Table:
    picked = {best.number: "generalisation"}
    if pick is not None:
        picked[pick.number] = "generalisation and time" if pick is best else "time"
    shown = {setting.number: setting for setting in [*front, *([pick] if pick else []), best]}
    return Table(
        name="discussion-3-picks",
        title="Perplexity against time",
        caption="The Pareto front, and the picks. Gap: validation less training loss at the best epoch; final: after "
        f"the last. Time to 5 %: to {WITHIN:g} times the lowest.{of}",
        columns=[
            Column("setting", "Run", of=lambda setting: setting.reference),
            Column("architecture", "Architecture", of=lambda s: units.architecture(s.arch)),
            Column("optimizer", "Optimizer", of=lambda s: units.optimizer(s.optimizer)),
            number("val_ppl", "Valid.", units.perplexity, lambda setting: setting.val_ppl),
            number("test_ppl", "Test", units.perplexity, lambda setting: setting.test_ppl),
            number("gap", "Gap (nats)", units.signed, lambda setting: setting.gap),
            number("final_gap", "Final gap (nats)", units.signed, lambda setting: setting.final_gap),
            number("seconds_to_best", "Time to best", units.duration, lambda setting: setting.seconds_to_best),
            number("seconds_to_study_best", "Time to 5 %", units.duration, lambda s: s.seconds_to_study_best),
            Column("picked_for", "Picked for", of=lambda setting: picked.get(setting.number, units.MISSING)),
        ],
        records=list(shown.values()),
        run=lambda setting: setting.only_run,
    )
