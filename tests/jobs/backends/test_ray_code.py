"""What of this machine travels to the nodes of a Ray cluster, and what is refused before. No Ray is started."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.backends import ray_cluster
from jobs.study.kept_code import Code
from seqlm.errors import BackendError


def code(folder: Path, *, live: bool = False) -> Code:
    return Code(path=folder, commit=None, dirty=False, live=live)


def test_the_kept_code_travels_and_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    assert ray_cluster._runtime_env(code(tmp_path)) == {"working_dir": str(tmp_path)}


def test_a_live_tree_stays_where_it_is(tmp_path: Path) -> None:
    assert ray_cluster._runtime_env(code(tmp_path, live=True)) == {"env_vars": {"PYTHONPATH": str(tmp_path)}}


def test_a_job_server_is_no_cluster_to_join() -> None:
    with pytest.raises(BackendError, match=r"is a job server .* use: ray job submit --address http://head:8265"):
        ray_cluster.RayCluster("http://head:8265")


def test_an_address_of_rays_client_is_no_cluster_to_join() -> None:
    with pytest.raises(BackendError, match=r'^ray://head:10001 is for .*; launch on a node .* address "auto"$'):
        ray_cluster.RayCluster("ray://head:10001")


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with pytest.raises(
        BackendError, match=r"^no Ray cluster at 127\.0\.0\.1:9: .*; `ray status` shows whether it is up$"
    ):
        ray_cluster.RayCluster("127.0.0.1:9").capacity()


def test_a_ray_that_lets_other_users_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.53.0")
    with pytest.raises(
        BackendError, match=r"^Ray 2\.53\.0 lets other users .*; install ray>=2\.54, or use --backend local$"
    ):
        ray_cluster.RayCluster(None).open(code(tmp_path))


def test_the_environment_is_as_before_when_ray_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/of/the/user")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    seen = []

    def init(**options: Any) -> None:
        seen.append(
            (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]), "RAY_AUTH_TOKEN_PATH" in os.environ)
        )
        seen.append(Path(options["_temp_dir"]).parent.stat().st_mode & 0o777)
        raise RuntimeError("no")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(BackendError, match="cannot start Ray on this machine: no"):
        ray_cluster.RayCluster(None).open(code(tmp_path))
    assert seen == [("token", 64, False), 0o700]
    assert (os.environ.get("RAY_AUTH_TOKEN"), os.environ["RAY_AUTH_TOKEN_PATH"]) == (None, "/of/the/user")
    assert not list(tmp_path.glob("seqlm-ray-*"))
