"""The effects of single hyperparameters, and the optimizers compared: each at its best where all else is alike.

The hyperparameters are not ranked: each has been varied over other values and in other settings.
"""

import itertools
import statistics
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Points, Section, paragraphs
from analysis.blocks.sentences import scope, sentences, text_sentences
from analysis.blocks.table import Column, Table, number
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.pairs import ARCHITECTURE, OPTIMIZER, Pair, changes_of, pairs_of
from analysis.study.settings import Setting, best_of, best_settings, by_perplexity, on_one_machine
from analysis.study.study import StudyFiles


def optimizers_blocks(study: StudyFiles, settings: Sequence[Setting], pairs: Sequence[Pair]) -> list[Block]:
    """The comparison over all settings, then in pairs. ``pairs``: of :func:`analysis.study.pairs.pairs_of`."""
    rows = _rows(study, settings)
    duels = _duels([pair for pair in pairs if pair.key == OPTIMIZER])
    said = sentences(
        "optimizers",
        ranked=sorted(rows, key=lambda row: row["val_ppl"]),
        timed=sorted((row for row in rows if units.is_number(row["seconds"])), key=lambda row: row["seconds"]),
        gaps=sorted((row for row in rows if units.is_number(row["median_gap"])), key=lambda row: row["median_gap"]),
        machine=(machine := on_one_machine(settings))[:1],
        on_machine=len(machine),
        settings=settings,
        duels=duels,
        relations=_relations(pairs),
    )
    return [Points(items=said), _table(rows, scope(study))] if rows else paragraphs(said)


def _rows(study: StudyFiles, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return a row for each optimizer with a finished run, in the report's order. Times are those on one machine."""
    done = finished(study.runs)
    timed = {run for setting in on_one_machine(settings) for run in setting.runs}
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    rows = []
    for kind in units.in_order(units.OPTIMIZERS, (setting.optimizer for setting in settings)):
        members = [setting for setting in settings if setting.optimizer == kind]
        runs = done[done["number"].isin(timed & {run for setting in members for run in setting.runs})]
        rows.append(
            {
                "optimizer": units.optimizer(kind),
                "settings": len(members),
                "diverged": int((diverged["optimizer"] == kind).sum()),
                "best": (best := best_of(members)),
                "val_ppl": best.val_ppl,
                "test_ppl": best.test_ppl,
                "run": best.reference,
                "architectures": [
                    f"{units.architecture(one.arch)} ({units.perplexity(one.val_ppl)})"
                    for one in by_perplexity(best_settings(members))
                ],
                "seconds": float(runs["seconds_to_5pct"].median()),
                "median_gap": pd.Series([one.gap for one in members]).median(),
                "median_final_gap": pd.Series([one.final_gap for one in members]).median(),
            }
        )
    return rows


def _duels(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return a row for each two optimizers that have a pair. Differences are those of the second to the first."""
    rows = []
    for values, found in itertools.groupby(pairs, key=lambda pair: pair.values):
        members = list(found)
        nats = [pair.difference_nats for pair in members]
        rows.append(
            {
                "first": units.optimizer(values[0]),
                "second": units.optimizer(values[1]),
                "pairs": len(members),
                "first_wins": sum(difference > 0 for difference in nats),
                "second_wins": sum(difference < 0 for difference in nats),
                "median_difference_nats": statistics.median(nats),
                "first_tried": sum(pair.a_tried for pair in members),
                "second_tried": sum(pair.b_tried for pair in members),
            }
        )
    return rows


def _relations(pairs: Sequence[Pair]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the changes of another hyperparameter that pairs of several optimizers show, the most different first."""
    changes = changes_of([pair for pair in pairs if pair.key != OPTIMIZER])
    groups = (list(group) for _, group in itertools.groupby(changes, itemgetter("key", "lower", "higher")))
    found = [(whole, split) for whole, *split in groups if split]

    def spread(split: Sequence[dict[str, Any]]) -> float:
        nats: list[float] = [one["mean_change_nats"] for one in split]
        return max(nats) - min(nats)

    return sorted(found, key=lambda one: (one[0]["key"] != ARCHITECTURE, -spread(one[1])))


# -- tables --------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[dict[str, Any]], of: str) -> Table:
    return Table(
        name="discussion-2-optimizers",
        title="The optimizers compared",
        caption="Test: of the best. Time to 5 %: median to within 5 % of a run's own best, on one machine. Gap: "
        f"validation less training loss at the best epoch; final: after the last.{of}",
        columns=[
            Column("optimizer", "Optimizer"),
            number("settings", "Settings"),
            number("diverged", "Diverged runs"),
            number("val_ppl", "Best valid.", units.perplexity),
            number("test_ppl", "Test", units.perplexity),
            Column("run", "Run"),
            number("seconds", "Time to 5 %", units.duration),
            number("median_gap", "Median gap (nats)", units.signed),
            number("median_final_gap", "Median final gap (nats)", units.signed),
        ],
        records=rows,
    )


# -- any hyperparameter ------------------------------------------------------------------------------------------------


def effects_section(study: StudyFiles) -> Section:
    """Every setting over the values of each hyperparameter, and the changes between those alike in all others."""
    one = study.on_one_text.compared
    settings = one.settings
    pairs = pairs_of(settings)
    changes = changes_of(pairs)
    chart = slices_chart(one) if len(settings) > 1 else None
    left_out = sorted({pair.key for pair in pairs} - {change["key"] for change in changes})
    told = sentences("effects", settings=len(settings), pairs=len(pairs), left_out=left_out)
    blocks: list[Block] = paragraphs([*text_sentences(study), *told])
    blocks += [*([effects_table(changes, scope(one))] if changes else []), *([chart] if chart else [])]
    return Section(name="effects", title="Effects of single hyperparameters", short="Effects", blocks=blocks)


def effects_table(changes: Sequence[dict[str, Any]], of: str = "") -> Table:
    """A row for each change. ``of``: what they are of (see :func:`scope`)."""
    return Table(
        name="effects",
        title="Effect of changing one hyperparameter",
        caption="Pairs agree in all other keys; architectures and optimizers have their best learning rate. Change: "
        "mean loss with To less that with From. Lowest, highest: of a single pair." + of,
        columns=[
            Column("key", "Key"),
            Column("name", "Optimizer"),
            Column("lower", "From", shown=lambda change: change["texts"][0], numeric=True),
            Column("higher", "To", shown=lambda change: change["texts"][1], numeric=True),
            number("pairs", "Pairs"),
            number("mean_change_nats", "Change (nats)", units.signed),
            number("perplexity_ratio", "Perplexity ratio", units.decimals(".3f")),
            number("lowest_change_nats", "Lowest", units.signed),
            number("highest_change_nats", "Highest", units.signed),
        ],
        records=changes,
    )
