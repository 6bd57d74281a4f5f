"""Change the product in random places, one at a time, and count the changes that a test notices.

``python -m tests.tools.mutants jobs slurm --count 40 --seed 1 [--tests tests/jobs ...]``. The tests run once with
coverage; then each mutant runs in a copy of the repository, against the tests that reach its line, until one fails.
With ``--stories 60`` it is not tested, but played: the kept stories of the simulation, and so many others.
"""

import argparse
import ast
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from coverage import Coverage, CoverageData

ROOT = Path(__file__).parents[2]
FAST = ("-m", "not process and not slow")
SECONDS = 300
"""A mutant whose tests take longer is caught: it does not end."""

PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div)),
]
OTHER = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}


def mutate(node: Any) -> bool:
    """Change a node in place; return whether it is of a kind that is changed."""
    match node:
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.Compare(ops=[operator]) if type(operator) in OTHER:
            node.ops = [OTHER[type(operator)]()]
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OTHER:
            node.op = OTHER[type(operator)]()
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare):
            node.test = ast.UnaryOp(ast.Not(), test)
        case ast.Return(value=ast.Constant(value=None)):
            return False
        case ast.Expr(value=ast.Call()) | ast.Return(value=ast.expr()):
            node.value = ast.Constant(None)
        case _:
            return False
    return True


def mutant_of(text: str, number: int) -> tuple[int, str, str]:
    """Return the line, the description and the whole text of a module whose node of this number is changed."""
    tree = ast.parse(text)
    node: Any = next(itertools.islice(ast.walk(tree), number, None))
    before = ast.unparse(node).partition("\n")[0]
    mutate(node)
    return node.lineno, f"{before} -> {ast.unparse(node)}".partition("\n")[0], ast.unparse(tree)


def pytest_runtest_logstart(nodeid: str) -> None:
    """As a plugin of pytest: have coverage note which test reaches a line."""
    if (current := Coverage.current()) is not None:
        current.switch_context(nodeid.partition("[")[0])


def passes(folder: Path, module: list[str], words: list[str]) -> bool:
    """Run tests in a copy of the repository, until one fails; return whether all pass."""
    argv = [sys.executable, "-m", *module, "-q", "-x", "-p", "no:cacheprovider", *FAST, *words]
    try:
        most = None if "coverage" in module else SECONDS
        done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        return False
    if "coverage" in module and done.returncode:
        sys.exit(f"the tests fail without any change:\n{done.stdout[-3000:]}")
    return done.returncode == 0


def plays(folder: Path, stories: int) -> bool:
    """Play stories in a copy of the repository until one ends in a new way; return whether all end well."""
    for words in (["--kept"], ["--seeds", str(stories), "--exitfirst"]):
        argv = [sys.executable, "-m", "tests.simulation", *words]
        try:
            done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode:
            return False
    return True


def main() -> None:
    """Print each mutant that no test notices, and the share of those that one does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, help="packages or modules to change, from the root")
    parser.add_argument("--tests", nargs="+", default=["tests"])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stories", type=int, metavar="N", help="play so many stories in the place of tests")
    given = parser.parse_args()
    files = [
        file for source in given.sources for file in ([source] if source.is_file() else sorted(source.rglob("*.py")))
    ]
    mutants = [
        (file, number)
        for file in files
        for number, node in enumerate(ast.walk(ast.parse(file.read_text("utf-8"))))
        if mutate(node)
    ]
    chosen = random.Random(given.seed).sample(mutants, min(given.count, len(mutants)))
    with tempfile.TemporaryDirectory() as parent:
        copied = Path(parent) / "copy"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", "runs", "build"))
        reached = CoverageData(no_disk=True)
        if given.stories is None:
            options = ["--rcfile=/dev/null", "--data-file=lines", f"--include={','.join(map(str, files))}"]
            passes(copied, ["coverage", "run", *options, "-m", "pytest"], ["-p", __spec__.name, *given.tests])
            reached = CoverageData(str(copied / "lines"))
            reached.read()
        elif not plays(copied, given.stories):
            sys.exit("the stories do not end well without any change")
        missed = 0
        for path, number in chosen:
            line, what, mutant = mutant_of(path.read_text("utf-8"), number)
            (copied / path).write_text(mutant, "utf-8")
            where = ""
            if given.stories is not None:
                is_missed = plays(copied, given.stories)
            else:
                tests = sorted(set(reached.contexts_by_lineno(str(copied / path)).get(line, [])))
                where = "" if tests else " (not reached)"
                is_missed = not tests or passes(copied, ["pytest"], given.tests if "" in tests else tests)
            if is_missed:
                missed += 1
                print(f"{path}:{line}: {what}{where}", flush=True)
            shutil.copy(path, copied / path)
    print(f"{len(chosen) - missed} of {len(chosen)} mutants were noticed, of {len(mutants)}")


if __name__ == "__main__":
    main()
