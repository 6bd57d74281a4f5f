"""What seqlm uses of Ray's private modules: `make versions` runs this with the oldest and the newest Ray."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from jobs.backends import ray_private
from jobs.backends.ray_backend import RayBackend
from jobs.backends.ray_cluster import RayCluster
from jobs.study.kept_code import Code
from seqlm.errors import BackendError

ROOT = Path(__file__).parents[3]
TO_JOIN = [
    "ray._private.state.available_resources_per_node",
    "ray._private.state.state",
    "ray._private.worker.print_to_stdstream",
]
TO_START = [
    *TO_JOIN,
    "ray._private.services.ConsolePopen",
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER",
    "ray._raylet.Config",
    "ray._raylet.AuthenticationTokenLoader",
]


def test_the_installed_ray_has_these_names_and_no_others_are_used() -> None:
    assert [".".join(pair) for pair in ray_private.TO_JOIN] == TO_JOIN
    assert [".".join(pair) for pair in ray_private.TO_START] == TO_START
    ray_private.require(starts=True)
    ray_private.require(starts=False)


@pytest.mark.parametrize("name", TO_START)
def test_a_ray_without_one_of_them_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, attribute = name.rpartition(".")
    monkeypatch.delattr(importlib.import_module(module), attribute)
    says = rf'^Ray [0-9.]+ has no {re.escape(name)}, .*; install "ray>=2\.54,<2\.\d+", or use --backend local$'
    with pytest.raises(BackendError, match=says):
        RayCluster(None).open(Code(path=tmp_path, commit=None, dirty=False, live=True))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (finding,) = RayBackend.doctor(runs_dir=tmp_path, is_asked=False, wait_s=0)
    assert (finding.level, bool(re.search(says, finding.text))) == ("bad", True)
    with pytest.raises(BackendError, match=says if name in TO_JOIN else "no Ray cluster at"):
        RayCluster("127.0.0.1:9").capacity()


def test_the_versions_that_are_named_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (needed,) = [text for text in project["dependencies"] if text.startswith("ray")]
    assert needed.startswith("ray>={}.{},".format(*ray_private.OLDEST))
    constraints = (ROOT / "tests" / "constraints.txt").read_text("utf-8").splitlines()
    assert any(line.startswith("ray=={}.{}.".format(*ray_private.NEWEST)) for line in constraints)
