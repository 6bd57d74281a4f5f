"""Policy as tests: what may name an architecture, what may ask for files, and that the map of the folders is true.

``make lint`` checks who may import whom (pyproject.toml).
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from seqlm.config import labels
from tests import commands

ROOT = Path(__file__).parent.parent


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
ASKS_OTHERS = ("slurm/testcluster/",)
"""What no run depends on."""


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


def test_only_the_module_that_asks_whose_a_job_is_cancels_jobs() -> None:
    """A bare id, which may be another user's or another study's job, cannot be passed to scancel."""
    found = []
    for _, path in modules():
        place = path.relative_to(ROOT).as_posix()
        if place != "slurm/scheduler.py" and not place.startswith(("slurm/testcluster/", "benchmarks/")):
            words = [word for call in ast.walk(tree_of(path)) if isinstance(call, ast.Call) for word in call.args]
            cancels = [word for word in words if isinstance(word, ast.Constant) and word.value == "scancel"]
            found += [f"{place}:{word.lineno}" for word in cancels]
    assert not found, "\n".join([*found, "use live and cancel of slurm.scheduler.Slurm"])


def test_only_one_module_uses_private_modules_of_ray() -> None:
    found = []
    for _, path in modules():
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Import():
                    named = [alias.name for alias in node.names]
                case ast.ImportFrom(module=str(module)):
                    named = [f"{module}.{alias.name}" for alias in node.names]
                case ast.Attribute():
                    named = [ast.unparse(node)]
                case ast.Constant(value=str(text)):
                    named = [text]
                case _:
                    named = []
            found += [f"{path}:{node.lineno}: {text}" for text in named if re.match(r"ray\.([a-z_.]*\.)?_[a-z]", text)]
    others = [line for line in found if "jobs/backends/ray_private.py" not in line]
    assert len(found) > len(others), "the pattern finds none"
    assert not others, "\n".join([*others, "jobs/backends/ray_private.py has what there is no public way for"])


BY_PATH = {
    *("stat", "lstat", "open", "listdir", "scandir", "read_text", "read_bytes", "write_text", "write_bytes", "rmtree"),
    *("unlink", "mkdir", "makedirs", "rename", "touch", "rmdir", "utime", "link", "symlink_to", "hardlink_to", "chmod"),
}
"""Functions of ``os``, ``shutil`` and ``Path`` that follow links in the folders of a path."""
OPENS_OTHERS = ("_cluster.open", "executor.open", "archive.open")
ELSEWHERE = (
    *(
        "seqlm/check_model/",
        "seqlm/data/",
        "seqlm/gpus.py",
        "seqlm/machine.py",
        "seqlm/processes.py",
        "seqlm/training/self_check.py",
    ),
    *("seqlm/trust.py", "jobs/attempt/supervisor.py", "jobs/backends/ray_cluster.py", "jobs/launch/own_models.py"),
    *("jobs/manifests/reader.py", "jobs/study/kept_code.py", "jobs/terminal.py", "slurm/doctor.py"),
    "slurm/testcluster/",
)
"""Modules whose paths are not below a study: caches, corpora, manifests, temporary folders, what the system says."""
MADE_THROUGH_THE_DOOR = {
    ("seqlm/files.py", "temporary.write_bytes"),
    ("seqlm/files.py", "temporary.write_text"),
    ("seqlm/model_files.py", "temporary.write_bytes"),
    ("seqlm/training/checkpoint.py", "path.open"),
    ("seqlm/training/witness.py", "Path('/proc/driver/nvidia/version').read_text"),
    ("analysis/export.py", "path.open"),
    ("jobs/cli/auditing.py", "tarfile.open"),
}
"""Temporary files that :func:`seqlm.files.file_beside` has made, files that were opened before, and a driver."""


def test_what_is_below_a_study_is_reached_through_the_two_doors_alone() -> None:
    found = []
    for name, path in modules():
        place = path.relative_to(ROOT).as_posix()
        if name == "launch" or name.startswith("benchmarks") or place.startswith(ELSEWHERE):
            continue
        for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
            named = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            text, has_folder = ast.unparse(call.func), any((one.arg or "").endswith("dir_fd") for one in call.keywords)
            is_other = text.endswith(OPENS_OTHERS) or (place, text) in MADE_THROUGH_THE_DOOR
            if (named in BY_PATH or text == "open") and not has_folder and not is_other and place != "seqlm/reading.py":
                found.append(f"{place}:{call.lineno}: {ast.unparse(call)}")
    assert not found, "\n".join([*found, "use seqlm.reading and seqlm.files, which follow no link below a study"])


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
    files = {str(path) for path in paths if path.parent in (Path(), Path("seqlm"))}
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
