"""Policy as tests: no result depends on a sleep, on a short time limit, or on a port that was free a moment ago."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ALLOWED = {
    ("waiting.py", "sleep"): "the pause between two looks",
    ("waiting.py", "process"): "py-spy, with a limit of its own, while a wait in vain is described",
    ("leftovers.py", "sleep"): "the pause between two looks",
    ("soak.py", "process"): "a program",
    ("ray_nodes.py", "process"): "a program, and the workers of its nodes",
    ("warm.py", "sleep"): "until a process that has ended is seen to have",
    ("crawl/sitecustomize.py", "sleep"): "imitates slow steps and slow renaming",
    ("tools/stub_worker.py", "sleep"): "imitates slow epochs",
    ("training/elsewhere.py", "sleep"): "imitates slow steps",
    ("jobs/launch/stand_in_behaviour.py", "sleep"): "imitates work that ends at a signal",
    ("chaos/test_disk.py", "sleep"): "imitates a writer that keeps its file open",
    ("chaos/disk.py", "sleep"): "a program: the pause between two tries",
    ("chaos/disk.py", "process"): "a program, and a helper that lives as long as its disk",
    ("chaos/shim/lying_files.py", "sleep"): "imitates slow files",
    ("chaos/shim/sitecustomize.py", "sleep"): "imitates slow steps",
    ("chaos/faults.py", "sleep"): "a program: the pause between two looks",
    ("chaos/loop.py", "sleep"): "a program: the pause between two looks",
}
"""(File, rule) -> why it may. All else waits with ``tests.waiting.wait_for`` and starts with ``tests.commands``."""

STARTERS = {"Popen", "run", "call", "check_call", "check_output", "system", "popen", "create_subprocess_exec"}
WAITERS = {"wait", "join", "acquire", "communicate"}
"""Methods that return after a time limit, whatever has happened: a number given to them decides a result."""


def is_number(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def violations(source: str) -> Iterator[tuple[str, int]]:
    """The rules that a file breaks, each with its line."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            first, _, rest = called.partition(".")
            module, _, function = ".".join(filter(None, [names.get(first, first), rest])).rpartition(".")
            limits = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            if function in WAITERS and module not in ("os.path", ""):
                limits += node.args[:1]
            if function == "sleep" and module in ("time", "asyncio"):
                yield "sleep", node.lineno
            elif function in STARTERS and module in ("subprocess", "os", "asyncio"):
                yield "process", node.lineno
            elif function != "Policy" and any(map(is_number, limits)):  # whose timeouts are numbers of retries
                yield "limit", node.lineno
            elif function == "bind" and any(isinstance(a, ast.Tuple) and is_number(a.elts[-1]) for a in node.args):
                yield "port", node.lineno


@cache
def found() -> dict[tuple[str, str], list[int]]:
    """(File, rule) -> lines."""
    lines: dict[tuple[str, str], list[int]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for rule, line in violations(path.read_text("utf-8")):
            lines.setdefault((path.relative_to(TESTS).as_posix(), rule), []).append(line)
    return lines


def test_no_test_waits_by_the_clock_or_starts_a_process_on_its_own() -> None:
    assert {place: lines for place, lines in found().items() if place not in ALLOWED} == {}


def test_every_exception_is_still_needed() -> None:
    assert ALLOWED.keys() - found().keys() == set()


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import time\ntime.sleep(0.1)", "sleep"),
        ("import time as t\nt.sleep(x)", "sleep"),
        ("from time import sleep\nsleep(1)", "sleep"),
        ("import subprocess\nsubprocess.run(['x'])", "process"),
        ("from subprocess import Popen as P\nP(['x'])", "process"),
        ("import os\nos.system('x')", "process"),
        ("done.wait(3)", "limit"),
        ("thread.join(timeout=0.3)", "limit"),
        ("process.communicate(timeout=60)", "limit"),
        ("run(['x'], timeout=60)", "limit"),
        ("socket.bind(('127.0.0.1', 0))", "port"),
    ],
)
def test_each_rule_is_heeded(source: str, rule: str) -> None:
    assert [rule for rule, _ in violations(source)] == [rule]


@pytest.mark.parametrize(
    "source",
    [
        "done.wait()",
        "', '.join(words)",
        "import os\nos.path.join('a', 'b')",
        "Policy(timeout=1)",
        "from tests import commands\ncommands.run(['x'])",
        "program = 'time.sleep(600)'",
    ],
)
def test_what_is_fine_is_left_alone(source: str) -> None:
    assert list(violations(source)) == []


@pytest.mark.xdist_group("heeded")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="no groups without xdist")
def test_groups_are_heeded(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@heeded"), "each process of the test run starts a Ray of its own"
