"""The optimizers compared: perplexity, time and generalisation, over all runs and within pairs that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import described, device_sentences, median
from analysis.discussion.duels import duel_sentences, duel_table, duels_of
from analysis.discussion.minima import expected_lowest_perplexity
from analysis.study import units
from analysis.study.settings import Setting, best_of, finished
from analysis.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the finished runs with one optimizer have reached."""

    optimizer: str
    """Its name in print."""
    runs: int
    diverged: int
    """Runs that failed as diverged; they are in none of the other numbers."""
    settings: int
    """Finished settings, among which ``best`` is the lowest."""
    best: Setting
    at_equal_counts_ppl: float
    """Expected lowest perplexity of as many settings as the optimizer with the fewest has."""
    architectures: list[Setting]
    """The best of each architecture, the lowest first."""
    median_seconds: float
    """Of the time to within 5 % of a run's own best."""
    median_gap: float


def optimizers_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The comparison over all runs, then the fair one."""
    summaries = summaries_of(study, settings)
    if not summaries:
        return [Prose(text="No run has finished, so the optimizers cannot be compared.")]
    if len(summaries) == 1:
        (only,) = summaries
        text = f"Only {only.optimizer} has finished runs, so there is nothing to compare it with."
        return [Prose(text=text), _table(summaries)]
    duels = duels_of(study)
    blocks: list[Block] = [Points(items=_sentences(study, summaries)), _table(summaries)]
    if not duels:
        text = (
            "No two finished runs with different optimizers agree in model, data, training and seed. So the settings "
            "differ in other ways too, and the numbers above are not the effect of the optimizer alone."
        )
        return [*blocks, Prose(text=text)]
    return [*blocks, Prose(text=duel_sentences(duels)), duel_table(duels)]


# -- over all runs -------------------------------------------------------------------------------------------------


def summaries_of(study: Study, settings: Sequence[Setting]) -> list[Summary]:
    """One for each optimizer that has a finished run, in the report's order."""
    groups: dict[Any, list[Setting]] = defaultdict(list)
    for setting in settings:
        groups[setting.optimizer].append(setting)
    done = finished(study.runs)
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    fewest = min(map(len, groups.values()), default=0)
    found = []
    for key in sorted(groups, key=lambda key: (units.rank(units.OPTIMIZERS, key), str(key))):
        runs = done[done["optimizer"] == key]
        archs: dict[Any, list[Setting]] = defaultdict(list)
        for setting in groups[key]:
            archs[setting.arch].append(setting)
        found.append(
            Summary(
                optimizer=units.optimizer(key),
                runs=len(runs),
                diverged=int((diverged["optimizer"] == key).sum()),
                settings=len(groups[key]),
                best=best_of(groups[key]),
                at_equal_counts_ppl=expected_lowest_perplexity([s.val_ppl for s in groups[key]], fewest),
                architectures=sorted(map(best_of, archs.values()), key=lambda setting: setting.val_ppl),
                median_seconds=median(runs["seconds_to_5pct"]),
                median_gap=median(runs["gap"]),
            )
        )
    return found


def _sentences(study: Study, summaries: Sequence[Summary]) -> list[str]:
    ranked = sorted(summaries, key=lambda summary: summary.best.val_ppl)
    lowest = ", ".join(f"{summary.optimizer} {described(summary.best)}" for summary in ranked)
    sentences = [f"Lowest validation perplexity: {lowest}."]
    if doubt := ranked[0].best.interval.doubt_against(ranked[1].best.interval):
        sentences[0] += f" Which of the first two is lower is not clear ({doubt})."
    sentences += _counts_sentence(ranked)
    for summary in ranked:
        archs = [f"{units.architecture(c.arch)} ({units.rounded(c.val_ppl)})" for c in summary.architectures]
        only = " alone" if len(archs) == 1 else ""
        then = f", then {units.listing(archs[1:])}" if archs[1:] else ""
        verb = "has finished runs of" if only else "does best with"
        sentences.append(f"{summary.optimizer} {verb} {archs[0]}{then}{only}.")
    timed = sorted((s for s in summaries if units.is_number(s.median_seconds)), key=lambda s: s.median_seconds)
    if timed:
        listed = ", ".join(f"{units.duration(s.median_seconds)} with {s.optimizer}" for s in timed)
        text = f"Median time to within 5 % of a run's own best validation perplexity: {listed}."
        sentences.append(" ".join([text, *device_sentences(study)]))
    gaps = sorted((s for s in summaries if units.is_number(s.median_gap)), key=lambda s: s.median_gap)
    if gaps:
        listed = ", ".join(
            f"{units.rounded(s.median_gap)} with {s.optimizer} ({units.rounded(s.best.gap)} in its best run)"
            for s in gaps
        )
        sentences.append(f"Median generalisation gap (validation less training perplexity): {listed}.")
    return sentences


def _counts_sentence(summaries: Sequence[Summary]) -> list[str]:
    """Say that minima of unequal numbers of settings do not compare, and what they would be at equal numbers."""
    counts = [summary.settings for summary in summaries]
    fewest = min(counts)
    if fewest == max(counts):
        return []
    ranked = sorted(summaries, key=lambda summary: summary.at_equal_counts_ppl)
    listed = ", ".join(
        f"{summary.optimizer} {units.rounded(summary.at_equal_counts_ppl)} (of {summary.settings})"
        for summary in ranked
    )
    return [
        "The optimizers have unequal numbers of finished settings, and the lowest of more settings is lower by chance "
        f"alone. Expected lowest perplexity of {units.count(fewest, 'setting')} chosen at random: {listed}."
    ]


def _table(summaries: Sequence[Summary]) -> Table:
    columns = [
        Column("optimizer", "Optimizer", of=lambda summary: summary.optimizer),
        number("runs", "Runs", of=lambda summary: summary.runs),
        number("diverged", "Diverged", of=lambda summary: summary.diverged),
        number("val_ppl", "Best valid.", units.perplexity, lambda summary: summary.best.val_ppl),
        number("at_equal_counts_ppl", "Equal counts", units.perplexity, lambda summary: summary.at_equal_counts_ppl),
        Column("run", "Run", of=lambda summary: summary.best.reference),
        Column("architecture", "Architecture", of=lambda s: units.architecture(s.best.arch)),
        number("median_seconds_to_5pct", "Time to 5 %", units.duration, lambda summary: summary.median_seconds),
        number("gap", "Gap of best", units.perplexity, lambda summary: summary.best.gap),
        number("median_gap", "Median gap", units.perplexity, lambda summary: summary.median_gap),
    ]
    caption = (
        "Best valid.: of all finished settings; equal counts: expected of as many as the optimizer with the fewest "
        "has. Time to 5 %: median. Gap: validation minus training perplexity at the best epoch."
    )
    return Table(
        name="discussion-2-optimizers",
        title="The optimizers compared",
        caption=caption,
        columns=columns,
        records=summaries,
    )
