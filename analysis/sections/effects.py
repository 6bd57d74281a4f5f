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
from analysis.blocks.table import Column, Table, number
from analysis.plots.heat_map import heat_map
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.pairs import CHOICES, SettingPair, printed, single_key_pairs, sorted_values, varying_keys
from analysis.study.settings import finished, settings_of
from analysis.study.study import HYPERPARAMETERS, Study

SINGLE_STEPS = 8
"""A key with at most so many values has a row for each change from one to the next; with more, one row for all."""

NATS = units.decimals("+.3f")
"""Differences of losses."""


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

    @property
    def ends(self) -> tuple[Any, Any]:
        """Both values, or words for any two."""
        any_two = self.lower is None and self.higher is None
        return ("any", "any higher") if any_two else (self.lower, self.higher)

    @property
    def printed_ends(self) -> tuple[str, str]:
        if self.lower is None and self.higher is None:
            return "any", "any higher"
        return printed(self.key, self.lower), printed(self.key, self.higher)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The settings with one value of a key, whatever else they differ in."""

    key: str
    value: Any
    losses_nats: list[float]
    lowest_nats: float
    """Mean of the key's best value."""

    @property
    def mean_nats(self) -> float:
        return math.fsum(self.losses_nats) / len(self.losses_nats)


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
    columns = [
        Column("key", "Key", of=lambda change: change.key),
        Column("lower", "From", of=lambda c: c.ends[0], shown=lambda c: c.printed_ends[0], numeric=True),
        Column("higher", "To", of=lambda c: c.ends[1], shown=lambda c: c.printed_ends[1], numeric=True),
        number("pairs", "Pairs", of=lambda change: len(change.differences_nats)),
        number("mean_change_nats", "Change (nats)", NATS, lambda change: change.mean_nats),
        number("perplexity_ratio", "Perplexity ratio", units.decimals(".3f"), lambda c: math.exp(c.mean_nats)),
        number("lowest_change_nats", "Lowest", NATS, lambda change: min(change.differences_nats)),
        number("highest_change_nats", "Highest", NATS, lambda change: max(change.differences_nats)),
    ]
    return Table(
        name="effects",
        title="What a change of one hyperparameter alone has done",
        caption=caption,
        columns=columns,
        records=changes,
    )


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
    means: list[Mean] = []
    summed_up: list[str] = []
    for key in varying_keys([setting.config for setting in settings]):
        of_value: dict[Any, list[float]] = defaultdict(list)
        for setting in settings:
            if key in setting.config:
                of_value[setting.config[key]].append(math.log(setting.val_ppl))
        values = sorted_values(key, of_value)
        if len(values) > SINGLE_STEPS:
            summed_up.append(key)
            continue
        lowest = min(math.fsum(found) / len(found) for found in of_value.values())
        means += [Mean(key=key, value=v, losses_nats=of_value[v], lowest_nats=lowest) for v in values]
    caption = (
        "For orientation alone: the settings with one value may differ from those with another in everything else, so "
        "these differences are not the effect of the key. Settings: those with finished runs; several seeds count as "
        "their mean. Mean loss: best validation loss in nats per predicted token. Perplexity: exp(Mean loss), the "
        "geometric mean. Above lowest: Mean loss less that of the key's best value."
    )
    if summed_up:
        caption += f" Left out, as they have more than {SINGLE_STEPS} values: {units.listing(summed_up)}."
    columns = [
        Column("key", "Key", of=lambda mean: mean.key),
        Column("value", "Value", of=lambda m: m.value, shown=lambda m: printed(m.key, m.value), numeric=True),
        number("settings", "Settings", of=lambda mean: len(mean.losses_nats)),
        number("mean_loss_nats", "Mean loss (nats)", units.decimals(".3f"), lambda mean: mean.mean_nats),
        number("perplexity", "Perplexity", units.perplexity, lambda mean: math.exp(mean.mean_nats)),
        number("above_lowest_nats", "Above lowest (nats)", NATS, lambda mean: mean.mean_nats - mean.lowest_nats),
    ]
    return Table(
        name="marginal-means",
        title="Unpaired: mean of all settings with a value",
        caption=caption,
        columns=columns,
        records=means,
    )
