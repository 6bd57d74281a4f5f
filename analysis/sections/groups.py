"""The groups of runs that the manifest names in ``[report.groups]``: curves and a table of each."""

from __future__ import annotations

from analysis.blocks.section import Block, Section, Subheading
from analysis.plots.curve_figures import named_group_charts
from analysis.sections.results import results_table
from analysis.study.study import Study


def groups_section(study: Study) -> Section:
    """A table and a figure for each group that has a run; no block if the manifest names none."""
    charts = named_group_charts(study)
    blocks: list[Block] = []
    for title, ids in study.groups.items():
        if ids:
            blocks += [Subheading(text=title), results_table(study, title), *filter(None, [charts.get(title)])]
    return Section(name="groups", title="Groups of runs", short="Groups", blocks=blocks)
