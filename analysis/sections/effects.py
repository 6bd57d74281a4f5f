"""Which hyperparameter matters: what a change of one alone has done to the best validation loss.

There are two estimates. Paired: settings that agree in everything but one key. Unpaired: the mean over all settings
with a value, in which everything else may differ too. The keys have the order of :func:`effects_of`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.effects import Effect, effect_sentence, effects_of
from analysis.blocks.section import Block, Prose, Section
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import on_one_text, text_sentences
from analysis.blocks.words import first_few
from analysis.plots.heat_map import heat_map
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.pairs import CHOICES, SettingPair, printed, single_key_pairs, sorted_values, varying_keys
from analysis.study.settings import finished, settings_of
from analysis.study.study import Study

SINGLE_STEPS = 8
"""Most values of a key that has a row for each change from one value to the next. With more, it has one row."""

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
    blocks: list[Block] = [Prose(text=text) for text in text_sentences(study)]
    study = on_one_text(study)
    done = finished(study.runs)
    if len(done) < 2:
        found = "No run has" if done.empty else "One run has"
        blocks.append(Prose(text=f"{found} been finished; effects show only between finished runs that differ."))
        return Section(name="effects", title="Main effects", blocks=blocks)
    effects = effects_of(single_key_pairs(study.runs))
    changes = changes_of(effects)
    blocks.append(heat_map(study))
    slices = slices_chart(study, order=[effect.key for effect in effects])
    if slices is not None:
        blocks.append(slices)
    blocks.append(Prose(text=_paired_sentence(effects, changes)))
    if changes:
        blocks.append(paired_table(changes))
    unpaired = unpaired_table(study)
    if unpaired.rows:
        blocks.append(unpaired)
    return Section(name="effects", title="Main effects", blocks=blocks)


# -- paired --------------------------------------------------------------------------------------------------------


def changes_of(effects: Sequence[Effect]) -> list[Change]:
    """Return the changes between values of each key, in the order of ``effects``.

    A key with up to ``SINGLE_STEPS`` values has a change from each value to the next, and with more than two also one
    from the lowest to the highest, where there are such pairs; of architectures and optimizers, every two are compared.
    """
    return [change for effect in effects for change in _changes(effect.key, effect.pairs)]


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
        "Pairs agree in every other key. Change: mean loss with To minus loss with From; below 0, To is better. "
        "Perplexity ratio: exp(Change). Lowest, Highest: of a single pair."
    )
    if any(change.lower is None for change in changes):
        caption += " any: all pairs of a key of many values."
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
        title="Effect of changing one hyperparameter alone",
        caption=caption,
        columns=columns,
        records=changes,
    )


def _paired_sentence(effects: Sequence[Effect], changes: Sequence[Change]) -> str:
    if not effects:
        return effect_sentence(effects)
    number = sum(len(effect.pairs) for effect in effects)
    keys = units.listing([effect.key for effect in effects])
    largest = max((c for c in changes if c.key == effects[0].key), key=lambda change: abs(change.mean_nats))
    ends = (
        "from a lower to a higher value"
        if largest.lower is None and largest.higher is None
        else f"from {printed(largest.key, largest.lower)} to {printed(largest.key, largest.higher)}"
    )
    return (
        f"{units.count(number, 'pair')} of settings {'differs' if number == 1 else 'differ'} in one hyperparameter "
        f"alone ({keys}). {effect_sentence(effects)} The largest mean change of {largest.key}, {ends}, is "
        f"{largest.mean_nats:+.3f} nats, a perplexity {math.exp(largest.mean_nats):.3g} times as high "
        f"({units.count(len(largest.differences_nats), 'pair')})."
    )


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
        "For orientation: the settings may differ in everything else, so a difference is not the effect of the key. "
        "Perplexity: exp(Mean loss)."
    )
    if summed_up:
        caption += f" Left out, with more than {SINGLE_STEPS} values: {first_few(summed_up, 3)}."
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
