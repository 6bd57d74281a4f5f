"""docs/pictures/architecture.svg: the folders by floor, with their imports."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import TopologicalSorter
from html import escape

import grimp

FOLDERS = {
    "launch": (2, "launch.py", "parser and exit codes"),
    "jobs.cli": (2, "jobs/cli/", "tables, progress, findings"),
    "slurm": (3, "slurm/", "job arrays on a cluster"),
    "jobs.launch": (2, "jobs/launch/", "prepare, canaries, dispatch"),
    "jobs.backends": (2, "jobs/backends/", "this machine, Ray"),
    "jobs.plan": (2, "jobs/plan/", "plan, queue, estimates"),
    "jobs.study": (3, "jobs/study/", "states, cancel, logs, code"),
    "jobs.attempt": (2, "jobs/attempt/", "ranks, heartbeat, retry"),
    "jobs.manifests": (2, "jobs/manifests/", "file to Manifest"),
    "jobs": (2, "jobs/*.py", "records, text output"),
    "analysis": (4, "analysis/*.py", "the report and its page"),
    "analysis.discussion": (5, "analysis/discussion/", "answers, with their numbers"),
    "analysis.sections": (4, "analysis/sections/", "results, cost, effects, samples"),
    "analysis.plots": (4, "analysis/plots/", "figures"),
    "analysis.blocks": (4, "analysis/blocks/", "text, table, figure; LaTeX"),
    "analysis.study": (4, "analysis/study/", "run directories to tables"),
    "analysis.behaviour": (0, "analysis/behaviour/", "what trained models do"),
    "seqlm.check_model": (1, "seqlm/check_model/", "tests a user's own model"),
    "seqlm.training": (0, "seqlm/training/", "one rank of one run"),
    "seqlm.models": (0, "seqlm/models/", "RNN, GRU, Transformer"),
    "seqlm.data": (1, "seqlm/data/", "text to batches"),
    "seqlm": (0, "seqlm/*.py", "configuration, run directory, lease, errors; without torch"),
}
"""Package -> column of its box, title, subtitle. The floor of a box follows from the imports."""

BOTTOM = "seqlm"
"""The folder below all others, drawn over the whole width."""

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 46, 22, 30, 16
STYLE = (
    "text{font-family:sans-serif;font-size:12px;fill:#666;text-anchor:middle}"
    ".title{font-size:14px;font-weight:bold;fill:#222}"
    "rect{fill:#eef3fa;stroke:#4a6fa5}path{fill:none;stroke:#888}marker path{fill:#888}"
)


def folder_of(module: str) -> str | None:
    """Return the folder of the picture that a module belongs to, or ``None`` if the picture leaves it out."""
    found = [folder for folder in FOLDERS if module == folder or module.startswith(f"{folder}.")]
    return max(found, key=len, default=None)


def folder_imports() -> dict[str, set[str]]:
    """Return the folders that each folder imports, itself excluded.

    Raises:
        CycleError: modules or folders import each other in a circle.
    """
    graph: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    graph["launch"] = {"jobs", "jobs.cli", "seqlm"}  # a module outside of all packages
    found = grimp.build_graph("seqlm", "jobs", "slurm", "analysis", cache_dir=None)
    TopologicalSorter({name: found.find_modules_directly_imported_by(name) for name in found.modules}).prepare()
    for name in found.modules:
        if (folder := folder_of(name)) is not None:
            imported = {folder_of(module) for module in found.find_modules_directly_imported_by(name)}
            graph[folder] |= {other for other in imported if other is not None and other != folder}
    TopologicalSorter(graph).prepare()
    return graph


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each folder: one above the highest folder that it imports, 0 if it imports none."""
    found: dict[str, int] = {}
    for folder in TopologicalSorter(graph).static_order():
        found[folder] = max((found[other] + 1 for other in graph[folder]), default=0)
    return found


def direct(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the transitive reduction of the graph: only the edges that no longer path implies."""
    reach: dict[str, set[str]] = {}
    for folder in TopologicalSorter(graph).static_order():
        reach[folder] = graph[folder].union(*(reach[other] for other in graph[folder]))
    return {
        folder: {other for other in below if not any(other in reach[between] for between in below)}
        for folder, below in graph.items()
    }


def draw() -> str:
    """Return the picture as SVG text. The same imports give the same text."""
    graph = folder_imports()
    floor = floors(graph)
    top = max(floor.values())
    columns = max(column for column, *_ in FOLDERS.values()) + 1
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP_X
    height = 2 * MARGIN + (top + 1) * HEIGHT + top * GAP_Y

    def left(folder: str) -> int:
        return MARGIN + FOLDERS[folder][0] * (WIDTH + GAP_X)

    def upper(folder: str) -> int:
        return MARGIN + (top - floor[folder]) * (HEIGHT + GAP_Y)

    def arrow(folder: str, other: str) -> str:
        x, y = left(folder) + WIDTH // 2, upper(folder) + HEIGHT
        end_x, end_y = x if other == BOTTOM else left(other) + WIDTH // 2, upper(other)
        if x == end_x or floor[folder] - floor[other] == 1:
            return f'<path d="M{x} {y}L{end_x} {end_y - 2}" marker-end="url(#head)"/>'
        side = left(folder) + (WIDTH if end_x > x else 0)
        return f'<path d="M{side} {y - HEIGHT // 2}H{end_x}V{end_y - 2}" marker-end="url(#head)"/>'

    def box(folder: str) -> list[str]:
        _, title, subtitle = FOLDERS[folder]
        x, y = left(folder), upper(folder)
        wide = width - 2 * MARGIN if folder == BOTTOM else WIDTH
        return [
            f'<rect x="{x}" y="{y}" width="{wide}" height="{HEIGHT}" rx="5"/>',
            f'<text class="title" x="{x + wide // 2}" y="{y + 19}">{escape(title)}</text>',
            f'<text x="{x + wide // 2}" y="{y + 37}">{escape(subtitle)}</text>',
        ]

    edges = direct(graph)
    size = f'width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
            "<title>The folders of seqlm; each arrow is an import, and all arrows point down</title>",
            f"<style>{STYLE}</style>",
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z"/></marker>',
            f'<rect {size} style="fill:#fff;stroke:none"/>',
            *(arrow(folder, other) for folder in FOLDERS for other in sorted(edges[folder])),
            *(line for folder in FOLDERS for line in box(folder)),
            "</svg>",
            "",
        ]
    )
