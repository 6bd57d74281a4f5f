"""Which hyperparameter matters: what a change of one alone has done to the best validation loss.

Two estimates stand beside each other. Paired: settings that agree in everything but one key, so that nothing else
differs. Unpaired: the mean over all settings with a value, in which everything else may differ too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.section import Block, Prose, Section
from analysis.blocks.table import Cell, Column, Row, Table
from analysis.plots.heat_map import heat_map
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.pairs import CHOICES, SettingPair, printed, single_key_pairs, sorted_values, varying_keys
from analysis.study.settings import finished, settings_of
from analysis.study.study import HYPERPARAMETERS, Study

SINGLE_STEPS = 8
"""A key with at most so many values has a row for each change from one to the next; with more, one row for all."""

PAIRED_COLUMNS = [
    Column(key="key", title="Key"),
    Column(key="lower", title="From", numeric=True),
    Column(key="higher", title="To", numeric=True),
    Column(key="pairs", title="Pairs", numeric=True),
    Column(key="mean_change_nats", title="Change (nats)", numeric=True),
    Column(key="perplexity_ratio", title="Perplexity ratio", numeric=True),
    Column(key="lowest_change_nats", title="Lowest", numeric=True),
    Column(key="highest_change_nats", title="Highest", numeric=True),
]

UNPAIRED_COLUMNS = [
    Column(key="key", title="Key"),
    Column(key="value", title="Value", numeric=True),
    Column(key="settings", title="Settings", numeric=True),
    Column(key="mean_loss_nats", title="Mean loss (nats)", numeric=True),
    Column(key="perplexity", title="Perplexity", numeric=True),
    Column(key="above_lowest_nats", title="Above lowest (nats)", numeric=True),
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What going from one value of a key to another has done, over all pairs that differ in nothing else."""

    key: str
    lower: Any
    """None in both for the change from any value to any higher one."""
    higher: Any
    differences_nats: list[float]
    """Loss with the higher value less loss with the lower one, of each pair."""

    @property
    def mean_nats(self) -> float:
        return math.fsum(self.differences_nats) / len(self.differences_nats)


def effects_section(study: Study) -> Section:
    """Heat map of architectures and optimizers, slices along each hyperparameter, and the size of their effects."""
    done = finished(study.runs)
    blocks: list[Block] = []
    if len(done) < 2:
        found = "No run has" if done.empty else "One run has"
        blocks = [Prose(text=f"{found} been finished; effects show only between finished runs that differ.")]
        return Section(name="effects", title="Main effects", blocks=blocks)
    pairs = single_key_pairs(study.runs)
    changes = changes_of(pairs)
    blocks.append(heat_map(study))
    slices = slices_chart(study, order=list(dict.fromkeys(change.key for change in changes)))
    if slices is not None:
        blocks.append(slices)
    blocks.append(Prose(text=_paired_sentence(changes, pairs)))
    if changes:
        blocks.append(paired_table(changes))
    unpaired = unpaired_table(study)
    if unpaired.rows:
        blocks.append(unpaired)
    return Section(name="effects", title="Main effects", blocks=blocks)


# -- paired --------------------------------------------------------------------------------------------------------


def changes_of(pairs: Sequence[SettingPair]) -> list[Change]:
    """The changes between values, those of the key with the largest mean change first.

    A key with up to ``SINGLE_STEPS`` values has a change from each value to the next, and with more than two also one
    from the lowest to the highest, where there are such pairs; of architectures and optimizers, every two are compared.
    """
    by_key: dict[str, list[SettingPair]] = defaultdict(list)
    for pair in pairs:
        by_key[pair.key].append(pair)
    found = {key: _changes(key, members) for key, members in by_key.items()}
    sizes = {key: max(abs(change.mean_nats) for change in changes) for key, changes in found.items()}
    ordered = sorted(found, key=lambda key: (-sizes[key], HYPERPARAMETERS.index(key)))
    return [change for key in ordered for change in found[key]]


def _changes(key: str, pairs: Sequence[SettingPair]) -> list[Change]:
    values = sorted_values(key, [value for pair in pairs for value in (pair.a_value, pair.b_value)])
    if len(values) > SINGLE_STEPS:
        differences = [pair.difference_nats for pair in pairs]
        return [Change(key=key, lower=None, higher=None, differences_nats=differences)]
    place = {value: number for number, value in enumerate(values)}
    differences_of: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for pair in pairs:
        differences_of[pair.a_value, pair.b_value].append(pair.difference_nats)
    kept = {
        (lower, higher): differences
        for (lower, higher), differences in differences_of.items()
        if key in CHOICES or place[higher] - place[lower] in (1, len(values) - 1)
    }
    if not kept:  # only values apart from one another have been paired
        kept = differences_of
    ordered = sorted(kept, key=lambda ends: (place[ends[1]] - place[ends[0]] > 1, place[ends[0]], place[ends[1]]))
    return [Change(key=key, lower=low, higher=high, differences_nats=kept[low, high]) for low, high in ordered]


def paired_table(changes: Sequence[Change]) -> Table:
    """A row for each change."""
    caption = (
        "Each pair is two settings with finished runs that agree in every key but this one (of architectures and "
        "optimizers, in every key that both have); several seeds of a setting count as their mean. From, To: the lower "
        "and the higher value. Change: mean over the pairs of the best validation loss with To less that with From, in "
        "nats per predicted token; below 0, To is better. Perplexity ratio: exp(Change), perplexity with To over that "
        "with From. Lowest, Highest: of a single pair. Keys by their largest mean change."
    )
    if any(change.lower is None for change in changes):
        caption += " any: a key of many values, all its pairs together, from the lower value to the higher one."
    rows = [_paired_row(change) for change in changes]
    return Table(
        name="effects",
        title="What a change of one hyperparameter alone has done",
        caption=caption,
        columns=PAIRED_COLUMNS,
        rows=rows,
    )


def _paired_row(change: Change) -> Row:
    differences, mean = change.differences_nats, change.mean_nats
    any_two = change.lower is None and change.higher is None
    ends = [
        Cell(text=text if any_two else printed(change.key, value), value=text if any_two else value)
        for text, value in (("any", change.lower), ("any higher", change.higher))
    ]
    cells = [
        Cell(text=change.key, value=change.key),
        *ends,
        Cell(text=str(len(differences)), value=len(differences)),
        Cell(text=f"{mean:+.3f}", value=mean),
        Cell(text=f"{math.exp(mean):.3f}", value=math.exp(mean)),
        *(Cell(text=f"{value:+.3f}", value=value) for value in (min(differences), max(differences))),
    ]
    return Row(cells=cells)


def _paired_sentence(changes: Sequence[Change], pairs: Sequence[SettingPair]) -> str:
    if not changes:
        return (
            "No two settings with finished runs differ in one hyperparameter alone, so that no effect can be told from "
            "those of the others."
        )
    keys = list(dict.fromkeys(change.key for change in changes))
    largest = max((change for change in changes if change.key == keys[0]), key=lambda change: abs(change.mean_nats))
    ends = (
        "from a lower to a higher value"
        if largest.lower is None and largest.higher is None
        else f"from {printed(largest.key, largest.lower)} to {printed(largest.key, largest.higher)}"
    )
    n = len(largest.differences_nats)
    text = (
        f"{units.count(len(pairs), 'pair')} of settings differ in one hyperparameter alone ({units.listing(keys)}). "
        f"The largest mean change is that of {largest.key} {ends}: {largest.mean_nats:+.3f} nats, a perplexity "
        f"{math.exp(largest.mean_nats):.3g} times as high ({units.count(n, 'pair')}"
    )
    alone = "; a single pair says nothing of other settings)." if n == 1 else ")."
    return text.replace("1 pair of settings differ in", "1 pair of settings differs in", 1) + alone


# -- unpaired ------------------------------------------------------------------------------------------------------


def unpaired_table(study: Study) -> Table:
    """The mean over the settings with each value of each key that varies."""
    settings = settings_of(study.runs)
    rows: list[Row] = []
    summed_up: list[str] = []
    for key in varying_keys([setting.config for setting in settings]):
        of_value: dict[Any, list[float]] = defaultdict(list)
        for setting in settings:
            if key in setting.config:
                of_value[setting.config[key]].append(math.log(setting.val_ppl.centre))
        values = sorted_values(key, of_value)
        if len(values) > SINGLE_STEPS:
            summed_up.append(key)
            continue
        lowest = min(math.fsum(found) / len(found) for found in of_value.values())
        rows += [_unpaired_row(key, value, of_value[value], lowest) for value in values]
    caption = (
        "For orientation alone: the settings with one value may differ from those with another in everything else, so "
        "these differences are not the effect of the key. Settings: those with finished runs; several seeds count as "
        "their mean. Mean loss: best validation loss in nats per predicted token. Perplexity: exp(Mean loss), the "
        "geometric mean. Above lowest: Mean loss less that of the key's best value."
    )
    if summed_up:
        caption += f" Left out, as they have more than {SINGLE_STEPS} values: {units.listing(summed_up)}."
    return Table(
        name="marginal-means",
        title="Unpaired: mean of all settings with a value",
        caption=caption,
        columns=UNPAIRED_COLUMNS,
        rows=rows,
    )


def _unpaired_row(key: str, value: Any, losses: Sequence[float], lowest: float) -> Row:
    mean = math.fsum(losses) / len(losses)
    cells = [
        Cell(text=key, value=key),
        Cell(text=printed(key, value), value=value),
        Cell(text=str(len(losses)), value=len(losses)),
        Cell(text=f"{mean:.3f}", value=mean),
        Cell(text=units.perplexity(math.exp(mean)), value=math.exp(mean)),
        Cell(text=f"{mean - lowest:+.3f}", value=mean - lowest),
    ]
    return Row(cells=cells)
