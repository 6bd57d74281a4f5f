"""What docs/explanation/architecture.md says of the code is true, and its picture has every folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.reference import folders
from tests.test_architecture import FLOORS, modules, tree_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
STEPS = re.findall(r"^\| (\d+) \| .* \| `([\w.]+)` \| `([\w/.]+)` \|$", PAGE, flags=re.MULTILINE)
NAMED = re.findall(r"`(\w+)` in `([\w/.]+\.py)`", PAGE)


def definitions(path: Path) -> set[str]:
    """Return the functions and classes of a module, and methods as ``Class.method``."""
    found = set()
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_path_of_a_run_has_ten_steps() -> None:
    assert [int(number) for number, *_ in STEPS] == list(range(1, 11))


@pytest.mark.parametrize(("name", "file"), [(name, file) for _, name, file in STEPS] + NAMED)
def test_every_function_that_the_page_names_is_there(name: str, file: str) -> None:
    assert name in definitions(ROOT / file), f"docs/explanation/architecture.md: expected {name} in {file}"


def test_every_file_and_folder_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`([\w/]+(?:/|\.py))(?: [^`]*)?`", PAGE):
        assert (ROOT / name).exists(), name


def test_the_questions_are_answered() -> None:
    assert len(NAMED) >= 9
    for question in ("a retry decided", "sbatch's options", "column of `status`"):
        assert len(re.findall(rf"^\| .*{question}.*\| `.*` \| .*`\w+` in `", PAGE, flags=re.MULTILINE)) == 1


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
