"""The effects of single hyperparameters, in settings that agree in all others.

The hyperparameters are not ranked: each has been varied over other values and in other settings.
"""

from collections.abc import Sequence
from typing import Any

from analysis.blocks.section import Block, Section, paragraphs
from analysis.blocks.sentences import scope, sentences, text_sentences
from analysis.blocks.table import Column, Table, number
from analysis.plots.forest import forest_chart
from analysis.plots.slices import slices_chart
from analysis.study import units
from analysis.study.pairs import changes_of, pairs_of
from analysis.study.study import StudyFiles


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
    blocks += filter(None, [forest_chart(changes, scope(one))])
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
            number("lowest_change_nats", "Lowest", units.signed),
            number("highest_change_nats", "Highest", units.signed),
        ],
        records=changes,
    )
