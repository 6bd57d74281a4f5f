"""No shell string is built from what a manifest says, and nothing that could be a program is read as one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = [
    ROOT / "launch.py",
    *sorted(path for package in ("seqlm", "jobs", "slurm", "analysis") for path in (ROOT / package).rglob("*.py")),
]

WRITES_SHELL = {
    "slurm/submission.py": "the script of a job array: paths are quoted, setup and python are shell",
    "slurm/backend.py": "the command of the report's job: paths are quoted, python is shell",
    "slurm/probe.py": "the command of the doctor's trial job, the same",
    "analysis/study/run.py": "the command that a report shows of a run, to copy; it runs nothing",
}
"""Modules that quote words for a shell, and so write for one."""

STARTERS = ("run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput")
SHELLS = ("sh", "bash", "dash", "zsh", "/bin/sh", "/bin/bash")
RUNS_CODE = {
    "os": ("system", "popen"),
    "pickle": ("load", "loads", "Unpickler"),
    "marshal": ("load", "loads"),
    "shelve": ("open",),
    "dill": ("load", "loads"),
    "cloudpickle": ("load", "loads"),
    "joblib": ("load",),
    "pd": ("read_pickle",),
    "dist": (  # unpickle what other ranks send
        "all_gather_object",
        "broadcast_object_list",
        "gather_object",
        "recv_object_list",
        "scatter_object_list",
    ),
    "subprocess": ("getoutput", "getstatusoutput"),
    "yaml": ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"),
}
BARE = ("eval", "exec", "compile", "__import__")


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def is_text(node: ast.expr) -> bool:
    """Whether a first argument is one string, and not a list of words."""
    joined = isinstance(node, ast.Call) and dotted(node.func).endswith((".join", ".format"))
    return (
        isinstance(node, ast.JoinedStr | ast.BinOp)
        or joined
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )


def begins_a_shell(node: ast.expr) -> bool:
    words = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    return bool(words) and isinstance(words[0], ast.Constant) and words[0].value in SHELLS


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        module, _, function = name.rpartition(".")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in BARE or function in RUNS_CODE.get(module, ()):
            yield f"line {node.lineno}: {name}"
        if (shell := keywords.get("shell")) is not None and not (isinstance(shell, ast.Constant) and not shell.value):
            yield f"line {node.lineno}: shell=..."
        if module == "subprocess" and function in STARTERS:
            command = node.args[0] if node.args else keywords.get("args")
            if command is None or is_text(command) or begins_a_shell(command):
                yield f"line {node.lineno}: {name} of a string, or of a shell"
        if name.startswith(("os.spawn", "os.posix_spawn")) or (name.startswith("os.exec") and function.endswith("p")):
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and not is_true(keywords.get("weights_only")):
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if function == "load" and module.endswith("np") and not is_false(keywords.get("allow_pickle")):
            yield f"line {node.lineno}: np.load without allow_pickle=False"


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_module_starts_a_shell_or_reads_a_pickle(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text("utf-8")))) == []


def test_only_the_modules_named_here_write_for_a_shell() -> None:
    quoting = {named(path) for path in SOURCES if "shlex." in path.read_text("utf-8")}
    assert quoting == set(WRITES_SHELL)


@pytest.mark.parametrize(
    "text",
    [
        "import os; os.system('ls')",
        "import subprocess; subprocess.run(f'ls {x}')",
        "import subprocess; subprocess.run('ls ' + x, shell=True)",
        "import subprocess; subprocess.Popen(args, shell=maybe)",
        "import subprocess; subprocess.run(['bash', '-c', x])",
        "import subprocess; subprocess.check_output(' '.join(words))",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import pickle; pickle.loads(x)",
        "import torch.distributed as dist; dist.all_gather_object(values, value)",
        "import yaml; yaml.load(text, yaml.SafeLoader)",
        "eval(x)",
    ],
)
def test_each_way_to_run_what_is_read_would_be_found(text: str) -> None:
    assert len(list(offences(ast.parse(text)))) >= 1
