import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from seqlm import environment
from seqlm.environment import VARIABLES
from seqlm.errors import UsageError
from seqlm.schema import Valid, words_of
from tests.test_architecture import tree_of

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bSEQLM_(?!TEST_)[A-Z]+(?:_[A-Z]+)*\b(?!\*)")
PACKAGES = ("seqlm", "jobs", "slurm", "analysis")


def test_every_variable_that_is_mentioned_anywhere_exists() -> None:
    known = {"SEQLM_NOTIFY", *(variable.name for variable in VARIABLES)}  # the one that notify.url_env may name
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "slurm").glob("*.toml")]
    sources = [path for package in (*PACKAGES, "benchmarks") for path in (ROOT / package).rglob("*.py")]
    for path in [*pages, *sources]:
        assert set(NAME.findall(path.read_text("utf-8"))) <= known, path


def test_no_other_module_has_the_name_of_a_variable_in_its_code() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in [ROOT / "launch.py", *paths]:
        if path == ROOT / "seqlm" / "environment.py":
            continue
        texts = [node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)]
        found = [text for text in texts if isinstance(text, str) and NAME.fullmatch(text)]
        assert not found, f"{path}: use seqlm.environment in place of {found}"


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_an_empty_variable_is_an_unset_one(variable: environment.Variable[object]) -> None:
    assert variable.read({}) == variable.read({variable.name: ""}) == variable.read({variable.name: " "})
    assert variable.read({}) == variable.default


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        (environment.LEASE_SECONDS, "2.5", 2.5),
        (environment.ATTEMPT, "3", 3),
        (environment.KEEP_LAST, "0", False),
        (environment.DETERMINISTIC, "1", True),
        (environment.DATA, "a b/text.zip", Path("a b/text.zip")),
        (environment.DEVICE, "cuda", "cuda"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_variable_has_a_type(variable: environment.Variable[object], text: str, value: object) -> None:
    assert variable.read({variable.name: text}) == value


WRONG = {float: ("soon", "0", "-1", "nan"), int: ("many", "0", "-1", "3.5"), bool: ("no", "true"), str: (), Path: ()}


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_wrong_value_is_one_line(variable: environment.Variable[object]) -> None:
    kind, *rules = get_args(variable.kind)
    for text in WRONG.get(kind, ("tpu",)):
        if text == "0" and any(isinstance(rule, Valid) and rule.least == 0 for rule in rules):
            continue
        expected = re.escape(words_of(variable.kind))
        with pytest.raises(UsageError, match=f'^{variable.name}: expected {expected}, got "{text}"$'):
            variable.read({variable.name: text})
