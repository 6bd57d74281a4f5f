"""The picture of the folders on docs/explanation/architecture.md has every folder, and its arrows point down."""

from __future__ import annotations

from tests.reference import folders
from tests.test_architecture import FLOORS, modules


def test_the_picture_has_every_folder_of_the_launcher_the_trainer_and_the_report() -> None:
    packages = {
        name
        for name, path in modules()
        if path.name == "__init__.py" and name.startswith(("seqlm", "jobs", "analysis"))
    }
    assert packages | set(FLOORS) - {"jobs.spec", "jobs.registry", "jobs.terminal"} <= set(folders.FOLDERS)


def test_every_arrow_points_down_and_none_is_implied_by_others() -> None:
    graph = folders.folder_imports()
    floor = folders.floors(graph)
    edges = folders.direct(graph)
    for folder, below in edges.items():
        assert below <= graph[folder]
        assert all(floor[other] < floor[folder] for other in below)
    diamond = {"a": {"b", "c", "d"}, "b": {"d"}, "c": {"d"}, "d": set[str]()}
    assert folders.floors(diamond) == {"a": 2, "b": 1, "c": 1, "d": 0}
    assert folders.direct(diamond) == {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}
