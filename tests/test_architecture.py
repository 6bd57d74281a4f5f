"""Policy as tests: who may import whom, what starts without torch, and that the map of the folders is true."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from seqlm.config import labels
from tests import commands

ROOT = Path(__file__).parent.parent
PACKAGES = ("seqlm", "jobs", "slurm", "analysis", "benchmarks", "launch")

BOTTOM = (
    *("seqlm.config", "seqlm.schema", "seqlm.rundir", "seqlm.reading", "seqlm.errors", "seqlm.machine", "seqlm.lease"),
    *("seqlm.environment", "seqlm.files", "seqlm.locks", "seqlm.processes", "seqlm.run_layout"),
    *("seqlm.architectures", "seqlm.model_files", "seqlm.optimizers", "seqlm.search", "seqlm.rounding"),
    *("seqlm.trust", "seqlm.state", "seqlm.ends", "seqlm.requests"),
)
"""What everybody may import; these import nothing but each other and the standard library."""

TEXT = ("seqlm.data.corpus", "seqlm.data.layout", "seqlm.data.cache", "seqlm.data.ptb_download")
"""The part of seqlm.data without torch, for planning."""

FLOORS = (
    *(
        "jobs.spec",
        "jobs.terminal",
        "jobs.registry",
        "jobs.manifests",
        "jobs.attempt",
        "jobs.study",
        "jobs.plan",
        "jobs.backends",
    ),
    *("jobs.launch", "slurm", "jobs.cli"),
)
"""The launcher from the bottom up: each floor may import itself and those before it."""

REPORT_FLOORS = ("analysis.study", "analysis.blocks", "analysis.plots", "analysis.sections")
"""The report from the bottom up, likewise; discussion and behaviour aside."""

ALLOWED = {
    "seqlm.config": BOTTOM,
    "seqlm.schema": ("seqlm.errors",),
    "seqlm.architectures": ("seqlm.schema",),
    "seqlm.optimizers": ("seqlm.schema",),
    "seqlm.rundir": BOTTOM,
    "seqlm.search": BOTTOM,
    "seqlm.trust": BOTTOM,
    "seqlm.model_files": ("seqlm.architectures", "seqlm.errors", "seqlm.files", "seqlm.reading"),
    "seqlm.errors": (),
    "seqlm.state": (),
    "seqlm.ends": ("seqlm.state",),
    "seqlm.requests": ("seqlm.errors", "seqlm.files", "seqlm.reading"),
    "seqlm.processes": (),
    "seqlm.rounding": ("seqlm.errors", "seqlm.files", "seqlm.run_layout"),
    "seqlm.run_layout": ("seqlm.reading",),
    "seqlm.reading": ("seqlm.errors", "seqlm.schema"),
    "seqlm.machine": ("seqlm.environment", "seqlm.errors", "seqlm.reading"),
    "seqlm.environment": ("seqlm.errors",),
    "seqlm.files": ("seqlm.errors", "seqlm.reading"),
    "seqlm.locks": ("seqlm.errors", "seqlm.processes", "seqlm.reading"),
    "seqlm.lease": (
        *("seqlm.environment", "seqlm.errors", "seqlm.files", "seqlm.locks", "seqlm.processes", "seqlm.reading"),
    ),
    "seqlm.data": (*BOTTOM, "seqlm.data"),
    "seqlm.models": (*BOTTOM, "seqlm.models"),
    "seqlm.training": (*BOTTOM, "seqlm.models", "seqlm.data", "seqlm.training"),
    "seqlm.check_model": (*BOTTOM, "seqlm.models", "seqlm.data", "seqlm.training", "seqlm.check_model"),
    **{floor: (*BOTTOM, *TEXT, "seqlm", *FLOORS[: number + 1]) for number, floor in enumerate(FLOORS)},
    **{floor: (*BOTTOM, *REPORT_FLOORS[: number + 1]) for number, floor in enumerate(REPORT_FLOORS)},
    "analysis.discussion": (*BOTTOM, *REPORT_FLOORS[:-1], "analysis.discussion"),
    "analysis": (*BOTTOM, "analysis"),
    "analysis.run": (  # loads a trained model, and text from it
        *(*BOTTOM, "analysis.study", "analysis.behaviour"),
        *("seqlm.data", "seqlm.models", "seqlm.training.checkpoint"),
    ),
    "analysis.behaviour": (
        *BOTTOM,
        "analysis.study",  # the records that the report reads
        "seqlm.models",
        "seqlm.data",
        "seqlm.training.checkpoint",  # the trained model
        "seqlm.training.attempt",  # the life of a worker
        "seqlm.training.distributed",  # its device
        "seqlm.training.perplexity",
        "analysis.behaviour",
    ),
    "benchmarks": (*BOTTOM, "seqlm.data", "seqlm.models", "seqlm.training", "jobs", "slurm", "analysis", "benchmarks"),
    "jobs.cli.launching": (*BOTTOM, *TEXT, "seqlm", *FLOORS, "analysis.report"),
    "jobs.cli.naming": (*BOTTOM, *FLOORS, "analysis.study.study"),
    "jobs.cli.results": (*BOTTOM, *FLOORS, "analysis"),
    "launch": ("seqlm.errors", "jobs.terminal", "jobs.cli"),
}
"""Part -> the parts it may import from. ``seqlm`` alone means its version and place."""

PRIVATE = "analysis.behaviour"
"""Needs torch, which reading and launching do without: started as a program, and imported where a run writes text."""


@cache
def modules() -> list[tuple[str, Path]]:
    found = [("launch", ROOT / "launch.py")]
    for package in ("seqlm", "jobs", "slurm", "analysis", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def imports_of(name: str, path: Path) -> frozenset[str]:
    """The modules of ours that a file imports, ``from seqlm import machine`` as ``seqlm.machine``."""
    known = {module for module, _ in modules()}
    imported: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
            imported |= inside or {node.module}
    return frozenset(module for module in imported if module.split(".")[0] in PACKAGES)


def test_no_arrow_points_back() -> None:
    wrong = []
    for name, path in modules():
        if name in ("seqlm", "jobs", "analysis"):  # the public names of analysis, and nothing else
            wrong += [
                f"{name} imports {module}" for module in imports_of(name, path) - {"analysis.api", "analysis.run"}
            ]
            continue
        part = max((part for part in ALLOWED if name == part or name.startswith(part + ".")), key=len)
        for module in imports_of(name, path):
            fits = any(
                module == allowed or (allowed != "seqlm" and module.startswith(allowed + "."))
                for allowed in ALLOWED[part]
            )
            if not fits or (part not in (PRIVATE, "analysis.run") and f"{module}.".startswith(f"{PRIVATE}.")):
                wrong.append(f"{name} imports {module}; {part} may import {', '.join(ALLOWED[part])}")
    assert not wrong, "\n".join(wrong)


VALUES = {choice for section in ("model", "optim") for choice in labels(section)}
OWN_MODULES = (
    "seqlm/architectures.py",
    "seqlm/optimizers.py",
    "seqlm/models/recurrent.py",
    "seqlm/models/transformer.py",
)


def test_no_other_module_depends_on_the_name_of_an_architecture_or_an_optimizer() -> None:
    found = []
    for name, path in modules():
        if name.startswith("benchmarks") or path.relative_to(ROOT).as_posix() in OWN_MODULES:
            continue
        tests = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Compare | ast.MatchValue | ast.Dict)]
        constants = [node for test in tests for node in ast.walk(test) if isinstance(node, ast.Constant)]
        values = [node.value for node in constants if isinstance(node.value, str) and node.value in VALUES]
        found += [f"{path} branches on {values}"] if values else []
    assert not found, "\n".join([*found, "seqlm.architectures and seqlm.optimizers have what depends on it"])


ANSWERS_NO = {
    *("exists", "lexists", "isfile", "isdir", "islink", "is_file", "is_dir", "is_symlink"),
    *("glob", "rglob", "iterdir", "walk"),
}
"""Functions of ``os``, ``os.path`` and ``Path`` that take a file system's error for "there is none", or did once."""
ASKS_OTHERS = ("jobs/study/cancel.py", "slurm/testcluster/")
"""What asks /proc alone, and what no run depends on."""


def test_only_seqlm_reading_says_what_exists() -> None:
    found = []
    for name, path in modules():
        place = path.relative_to(ROOT).as_posix()
        if name.startswith("benchmarks") or place.startswith(ASKS_OTHERS):
            continue
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        asked = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in ANSWERS_NO]
        found += [f"{place}:{call.lineno}: {ast.unparse(call)}" for call in asked]
    assert not found, "\n".join([*found, "use exists, is_file, is_folder, is_link, listed or below of seqlm.reading"])


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: imports_of(name, path) - {name} for name, path in modules()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_bottom_needs_the_standard_library_alone() -> None:
    for name in BOTTOM:
        for node in ast.walk(tree_of(ROOT / (name.replace(".", "/") + ".py"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for imported in names:
                top = imported.split(".")[0]
                assert top in sys.stdlib_module_names or top == "seqlm", f"{name} imports {imported}"


@pytest.mark.process
def test_the_map_names_every_folder_and_module_at_the_top() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    section = text.split("## Map", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))
    tracked = commands.run(["git", "ls-files"], cwd=ROOT).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    paths = [Path(line) for line in tracked.splitlines()]
    folders = {f"{path.parts[0]}/" for path in paths if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    inside = [path for path in paths if len(path.parts) > 2 and path.parts[0] in ("seqlm", "jobs", "analysis")]
    folders |= {f"{path.parts[0]}/{path.parts[1]}/" for path in inside}
    files = {str(path) for path in paths if path.parent == Path() or path.match("seqlm/*.py")}
    files -= {
        "seqlm/__init__.py",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "MANIFEST.in",
        "pyproject.toml",
        ".gitignore",
    }
    assert named == folders | files


@pytest.mark.process
def test_no_file_names_a_path_of_a_developers_machine_or_a_package_registry() -> None:
    forbidden = re.compile(r"/work/|/root/|/opt/wheels|pypi\.org|pythonhosted|deb\.debian|registry\.npmjs")
    listed = commands.run(["git", "ls-files"], cwd=ROOT).stdout
    for name in listed.splitlines():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        found = forbidden.search(path.read_bytes().decode("utf-8", errors="ignore"))
        assert not found, f"{name}: {found and found[0]}"
