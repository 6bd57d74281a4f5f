import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import Backend
from jobs.cli import planning
from jobs.cli.arguments import read
from jobs.manifests.load import Manifest, load_manifest
from seqlm.errors import UsageError
from seqlm.machine import Gpu

RUN = '\n[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQLM_BACKEND", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def manifest(folder: Path, text: str) -> Manifest:
    (folder / "m.toml").write_text(f'[study]\nname = "m"\n{text}{RUN}')
    return load_manifest(folder / "m.toml")


def choose(
    given: Manifest | None = None, *, last: str | None = None, kept: Mapping[str, Any] | None = None, **flags: Any
) -> Backend:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    found = read(["run", "m.toml", *words])
    assert found is not None
    return planning.choose(found, given, last=last, kept=kept)


@pytest.mark.parametrize(
    ("gpus", "address", "is_installed", "name"),
    [
        (0, None, True, "local"),
        (1, None, True, "local"),
        (2, None, True, "ray"),
        (2, None, False, "local"),
        (0, "10.0.0.1:6379", True, "ray"),
    ],
)
def test_ray_is_the_default_where_it_shares_out_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, address: str | None, is_installed: bool, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object() if is_installed else None)
    monkeypatch.setattr("seqlm.machine.gpus", lambda: [Gpu(str(number), "Fake") for number in range(gpus)])
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert choose().name == name


@pytest.mark.parametrize(("flags", "has_one"), [({}, True), ({"backend": "ray"}, False)])
def test_what_was_not_asked_for_at_this_launch_has_a_stand_in(
    tmp_path: Path, flags: Mapping[str, str], has_one: bool
) -> None:
    given = choose(manifest(tmp_path, 'backend = "ray"\n'), **flags)
    assert (given.name, given.stand_in is not None) == ("ray", has_one)


def test_flag_goes_over_variable_over_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'backend = "local"\n[backend.local]\nmax_parallel = 3\nretries = 1\nprogress_s = 5\n'
    text += '[backend.ray]\naddress = "theirs:1"\n'
    given = manifest(tmp_path, text + 'env = {A = "b"}\n')
    local = choose(given)
    assert (local.name, local.settings.max_parallel, local.settings.retries) == ("local", 3, 1)
    assert local.settings.progress_s == 5
    monkeypatch.setenv("SEQLM_BACKEND", "ray")
    ray = choose(given)
    assert (ray.name, ray.settings.address, ray.settings.env, ray.settings.max_parallel) == (
        "ray",
        "theirs:1",
        {"A": "b"},
        None,
    )
    monkeypatch.setenv("RAY_ADDRESS", "mine:2")
    assert choose(given).settings.address == "mine:2"
    assert choose(given, ray_address="flag:3").settings.address == "flag:3"
    flags = choose(given, backend="local", max_parallel=1, max_stalled_retries=0)
    assert (flags.name, flags.settings.max_parallel, flags.settings.retries) == ("local", 1, 0)


def test_without_a_manifest_runs_go_where_they_went_before() -> None:
    assert choose(last="slurm").name == "slurm"
    assert choose(last="slurm", backend="local").name == "local"


def test_without_a_manifest_the_tables_that_were_kept_hold() -> None:
    kept = {"ray": {"address": "theirs:1", "env": {"A": "b"}, "env_pass": ["PIN"]}, "local": {"max_parallel": 3}}
    ray = choose(last="ray", kept=kept)
    assert (ray.settings.address, ray.settings.env, ray.settings.env_pass, ray.settings.max_parallel) == (
        "theirs:1",
        {"A": "b"},
        ("PIN",),
        None,
    )
    assert choose(last="ray", kept=kept, backend="local").settings.max_parallel == 3
    slurm = choose(last="slurm", kept=kept)
    assert (slurm.settings.env, slurm.settings.max_parallel) == ({}, None)


def test_an_address_without_its_backend_is_an_error() -> None:
    with pytest.raises(UsageError, match="the backend is local; add --backend ray"):
        choose(backend="local", ray_address="auto")


def test_a_variable_that_names_no_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_BACKEND", "rya")
    with pytest.raises(UsageError, match='SEQLM_BACKEND: expected local, ray, slurm, got "rya"'):
        choose()
