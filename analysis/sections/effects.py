"""Which hyperparameter matters: what a change of one alone has done to the best validation loss.

There are two estimates. Paired: settings that agree in everything but one key. Unpaired: the mean over all settings
with a value, in which everything else may differ too. The keys have the order of :func:`effects_of`.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from analysis.blocks.effects import Effect, effect_sentence, effects_of
from analysis.blocks.section import Block, Prose, Section
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import first_few, on_one_text, scope, text_sentences
from analysis.plots.heat_map import heat_map
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.pairs import CHOICES, printed, single_key_pairs, sorted_values
from analysis.study.settings import settings_of
from analysis.study.study import Study
from seqlm.config import varying_keys

SINGLE_STEPS = 8
"""Most values of a key that has a row for each change from one value to the next. With more, it has one row."""

ANY, ANY_HIGHER = "any", "any higher"
"""Both ends of the one change of a key with more values."""

NATS = units.decimals("+.3f")
"""Differences of losses."""


def effects_section(study: Study) -> Section:
    """Heat map of architectures and optimizers, slices along each hyperparameter, and the size of their effects."""
    blocks: list[Block] = [Prose(text=text) for text in text_sentences(study)]
    study = on_one_text(study).compared
    done = finished(study.runs)
    if len(done) < 2:
        found = "No run has" if done.empty else "Only one run has"
        blocks.append(Prose(text=f"{found} finished. An effect is a difference between finished runs."))
        return Section(name="effects", title="Main effects", blocks=blocks)
    effects = effects_of(single_key_pairs(study.runs))
    changes = [change for effect in effects for change in changes_of(effect)]
    slices = slices_chart(study, order=[effect.key for effect in effects])
    unpaired = unpaired_table(study)
    blocks += [
        heat_map(study),
        *([slices] if slices else []),
        Prose(text=_paired_sentence(effects, changes)),
        *([paired_table(changes, scope(study))] if changes else []),
        *([unpaired] if unpaired.rows else []),
    ]
    return Section(name="effects", title="Main effects", blocks=blocks)


# -- paired --------------------------------------------------------------------------------------------------------


def changes_of(effect: Effect) -> list[dict[str, Any]]:
    """Return a row for each change between values of a key: loss with the higher value minus loss with the lower one.

    A key with up to ``SINGLE_STEPS`` values has a change from each value to the next, and with more than two also one
    from the lowest to the highest, where there are such pairs; of architectures and optimizers, every two are compared.
    """
    values = sorted_values(effect.key, [value for pair in effect.pairs for value in (pair.a_value, pair.b_value)])
    place = {value: number for number, value in enumerate(values)}
    differences_of: dict[tuple[Any, Any], list[float]] = defaultdict(list)
    for pair in effect.pairs:
        ends = (pair.a_value, pair.b_value) if len(values) <= SINGLE_STEPS else (ANY, ANY_HIGHER)
        differences_of[ends].append(pair.difference_nats)
    if len(values) <= SINGLE_STEPS and effect.key not in CHOICES:
        steps = {ends for ends in differences_of if place[ends[1]] - place[ends[0]] in (1, len(values) - 1)}
        # without such pairs, only values apart from one another have been paired, and all are kept
        differences_of = {ends: differences_of[ends] for ends in steps or differences_of}
    by_place = {ends: (place.get(ends[0], 0), place.get(ends[1], 0)) for ends in differences_of}
    return [
        {
            "key": effect.key,
            "lower": ends[0],
            "higher": ends[1],
            "pairs": len(differences_of[ends]),
            "mean_change_nats": (mean := statistics.fmean(differences_of[ends])),
            "perplexity_ratio": math.exp(mean),
            "lowest_change_nats": min(differences_of[ends]),
            "highest_change_nats": max(differences_of[ends]),
        }
        for ends in sorted(by_place, key=lambda ends: (by_place[ends][1] - by_place[ends][0] > 1, by_place[ends]))
    ]


def paired_table(changes: Sequence[dict[str, Any]], of: str = "") -> Table:
    """A row for each change. ``of``: what they are of (see :func:`scope`)."""
    caption = (
        "Pairs agree in every other key. Change: mean loss with To minus loss with From; below 0, To is better. "
        "Perplexity ratio: exp(Change). Lowest, Highest: of a single pair."
    )
    if any(change["lower"] == ANY for change in changes):
        caption += " any: all pairs of a key of many values."
    return Table(
        name="effects",
        title="Effect of changing one hyperparameter alone",
        caption=caption + of,
        columns=[
            Column("key", "Key"),
            Column("lower", "From", shown=lambda change: _end(change, "lower"), numeric=True),
            Column("higher", "To", shown=lambda change: _end(change, "higher"), numeric=True),
            number("pairs", "Pairs"),
            number("mean_change_nats", "Change (nats)", NATS),
            number("perplexity_ratio", "Perplexity ratio", units.decimals(".3f")),
            number("lowest_change_nats", "Lowest", NATS),
            number("highest_change_nats", "Highest", NATS),
        ],
        records=changes,
    )


def _end(change: dict[str, Any], side: str) -> str:
    return str(change[side]) if change["lower"] == ANY else printed(change["key"], change[side])


def _paired_sentence(effects: Sequence[Effect], changes: Sequence[dict[str, Any]]) -> str:
    if not effects:
        return effect_sentence(effects)
    pairs = sum(len(effect.pairs) for effect in effects)
    keys = units.listing([effect.key for effect in effects])
    of_largest = [change for change in changes if change["key"] == effects[0].key]
    largest = max(of_largest, key=lambda change: abs(change["mean_change_nats"]))
    ends = (
        "from a lower to a higher value"
        if largest["lower"] == ANY
        else f"from {_end(largest, 'lower')} to {_end(largest, 'higher')}"
    )
    return (
        f"{units.count(pairs, 'pair')} of settings {'differs' if pairs == 1 else 'differ'} in one hyperparameter "
        f"alone ({keys}). {effect_sentence(effects)} The largest mean change of {largest['key']}, {ends}, is "
        f"{largest['mean_change_nats']:+.3f} nats, which multiplies the perplexity by "
        f"{largest['perplexity_ratio']:.3g} ({units.count(largest['pairs'], 'pair')})."
    )


# -- unpaired ------------------------------------------------------------------------------------------------------


def unpaired_table(study: Study) -> Table:
    """The mean over the settings with each value of each key that varies."""
    settings = settings_of(study.runs)
    rows: list[dict[str, Any]] = []
    summed_up: list[str] = []
    for key in varying_keys([setting.config for setting in settings]):
        losses: dict[Any, list[float]] = defaultdict(list)
        for setting in settings:
            if key in setting.config:
                losses[setting.config[key]].append(math.log(setting.val_ppl))
        values = sorted_values(key, losses)
        if len(values) > SINGLE_STEPS:
            summed_up.append(key)
            continue
        mean = {value: statistics.fmean(losses[value]) for value in values}
        rows += [
            {
                "key": key,
                "value": value,
                "settings": len(losses[value]),
                "mean_loss_nats": mean[value],
                "perplexity": math.exp(mean[value]),
                "above_lowest_nats": mean[value] - min(mean.values()),
            }
            for value in values
        ]
    caption = "For orientation, not the effect of the key: all else may differ. Perplexity: exp(loss)."
    if summed_up:
        caption += f" Left out, of more than {SINGLE_STEPS} values: {first_few(summed_up, 2)}."
    return Table(
        name="marginal-means",
        title="Unpaired: mean of all settings with a value",
        caption=caption + scope(study),
        columns=[
            Column("key", "Key"),
            Column("value", "Value", shown=lambda mean: printed(mean["key"], mean["value"]), numeric=True),
            number("settings", "Settings"),
            number("mean_loss_nats", "Mean loss (nats)", units.decimals(".3f")),
            number("perplexity", "Perplexity", units.perplexity),
            number("above_lowest_nats", "Above lowest (nats)", NATS),
        ],
        records=rows,
    )
