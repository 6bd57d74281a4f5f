"""What of this machine travels to the nodes of a Ray cluster, and what is refused before. No Ray is started."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import terminal
from jobs.backends import ray_cluster
from jobs.backends.ray_backend import RayBackend
from jobs.backends.ray_cluster import LONGEST_PLACE
from jobs.study.kept_code import Code
from seqlm.errors import BackendError


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        yield Path(folder)


def code(folder: Path, *, live: bool = False) -> Code:
    return Code(path=folder, commit=None, dirty=False, live=live)


def test_the_kept_code_travels_and_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    assert ray_cluster._runtime_env(code(tmp_path)) == {"working_dir": str(tmp_path), "excludes": ["__pycache__"]}


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


def test_an_address_of_the_environment_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    backend = RayBackend(RayBackend.read({"address": "127.0.0.1:8"}, where="m"))
    with pytest.raises(BackendError, match=r"^no Ray cluster at 127\.0\.0\.1:9 \(RAY_ADDRESS\): "):
        backend.capacity()


def test_a_local_address_is_a_ray_that_seqlm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert RayBackend.read({}, where="m").address is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert RayBackend.read({"address": "local"}, where="m").address is None


def test_what_a_ray_that_does_not_start_has_logged_is_shown_with_verbose(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))

    def init(**options: Any) -> None:
        logs = Path(options["_temp_dir"]) / "session" / "logs"
        logs.mkdir(parents=True)
        (logs / "gcs_server.err").write_text("no port is left\n")
        raise RuntimeError("it failed\nfor a reason")

    monkeypatch.setattr("ray.init", init)
    terminal.configure(verbose=True)
    with pytest.raises(BackendError, match=r"^cannot start Ray on this machine: it failed; .*--verbose"):
        ray_cluster.RayCluster(None).open(code(short))
    shown = capsys.readouterr().err
    assert "for a reason" in shown
    assert "gcs_server.err: no port is left" in shown
    assert list(short.iterdir()) == []


FITS, TOO_LONG = LONGEST_PLACE, LONGEST_PLACE + 1


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ({"RAY_TMPDIR": FITS, "TMPDIR": 20, "XDG_RUNTIME_DIR": 20}, "RAY_TMPDIR"),
        ({"RAY_TMPDIR": TOO_LONG, "TMPDIR": 20, "XDG_RUNTIME_DIR": 20}, None),
        ({"TMPDIR": FITS, "XDG_RUNTIME_DIR": 20}, "TMPDIR"),
        ({"TMPDIR": TOO_LONG, "XDG_RUNTIME_DIR": FITS}, "XDG_RUNTIME_DIR"),
        ({"TMPDIR": TOO_LONG}, None),
    ],
)
def test_the_sockets_of_ray_are_in_a_folder_whose_path_is_short_enough(
    short: Path, monkeypatch: pytest.MonkeyPatch, lengths: dict[str, int], chosen: str | None
) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    folders = {}
    for name, length in lengths.items():
        folders[name] = short / name[0].ljust(length - len(str(short)) - 1, "x")
        folders[name].mkdir()
        monkeypatch.setenv(name, str(folders[name]))
    seen = []

    def init(**options: Any) -> None:
        seen.append(Path(options["_temp_dir"]))
        raise RuntimeError("no")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(BackendError, match="set RAY_TMPDIR" if chosen is None else "machine: no; "):
        ray_cluster.RayCluster(None).open(code(short))
    assert [path.parents[1] for path in seen] == ([] if chosen is None else [folders[chosen]])
    longest = "session_2026-12-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert all(len(f"{path}/{longest}") <= 107 for path in seen)


def test_a_ray_that_lets_other_users_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.53.0")
    with pytest.raises(
        BackendError, match=r"^Ray 2\.53\.0 lets other users .*; install ray>=2\.54, or use --backend local$"
    ):
        ray_cluster.RayCluster(None).open(code(tmp_path))


def test_the_environment_is_as_before_when_ray_does_not_start(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/of/the/user")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # of a job of another Ray
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    seen = []

    def init(**options: Any) -> None:
        seen.append((os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])))
        seen.append({"RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR"} & os.environ.keys())
        seen.append(Path(options["_temp_dir"]).parent.stat().st_mode & 0o777)
        raise RuntimeError("no")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(BackendError, match="cannot start Ray on this machine: no"):
        ray_cluster.RayCluster(None).open(code(short))
    assert seen == [("token", 64), set(), 0o700]
    assert (os.environ.get("RAY_AUTH_TOKEN"), os.environ["RAY_AUTH_TOKEN_PATH"]) == (None, "/of/the/user")
    assert not list(short.glob("seqlm-*"))
