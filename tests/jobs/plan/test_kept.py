"""What a study keeps of its manifest for ``retry`` and ``behaviour``, which read none."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.policy import Policy
from jobs.plan.record import kept_policy, kept_tables, record_of
from seqlm.files import write_json
from seqlm.run_layout import study_record_file

RUN = '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'


def keep(folder: Path, text: str) -> Manifest:
    """The manifest whose record is in the folder now."""
    path = folder / "m.toml"
    path.write_text(f'[study]\nname = "m"\n{text}\n{RUN}')
    manifest = load_manifest(path)
    write_json(study_record_file(folder), record_of(manifest, manifest.runs, None))
    return manifest


def test_the_policy_is_kept(tmp_path: Path) -> None:
    manifest = keep(tmp_path, '[policy]\noom = 7\npreempted = 2\ntimeout = "unlimited"')
    told: list[str] = []
    assert kept_policy(tmp_path, told.append) == manifest.policy == Policy(oom=7, preempted=2, timeout=None)
    assert kept_policy(tmp_path / "older", told.append) == Policy()
    assert told == []


def test_the_tables_of_all_backends_are_kept(tmp_path: Path) -> None:
    manifest = keep(
        tmp_path,
        '[backend.ray]\nmax_parallel = 3\nenv = {A = "b"}\nenv_pass = ["HF_TOKEN"]\n[backend.slurm]\ntimeout_min = 7',
    )
    told: list[str] = []
    assert kept_tables(tmp_path, told.append) == manifest.backend
    assert kept_tables(tmp_path / "older", told.append) == {}
    assert told == []


def test_of_what_looks_like_a_secret_the_name_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, '[backend.ray]\nenv = {A = "b", HF_TOKEN = "oops"}\nenv_pass = ["PIN"]')
    assert kept_tables(tmp_path, print) == {"ray": {"env": {"A": "b"}, "env_pass": ["PIN", "HF_TOKEN"]}}
    assert "oops" not in study_record_file(tmp_path).read_text()


@pytest.mark.parametrize("content", ['{"policy": ', '{"policy": 3}', '{"policy": {"oom": -1}}', '{"policy": {"x": 1}}'])
def test_a_damaged_policy_is_told_and_the_defaults_hold(tmp_path: Path, content: str) -> None:
    study_record_file(tmp_path).write_text(content)
    told: list[str] = []
    assert kept_policy(tmp_path, told.append) == Policy()
    assert len(told) == 1
    assert told[0].startswith("warning: ")


@pytest.mark.parametrize(
    "content",
    [
        '{"backend": ',
        '{"backend": 3}',
        '{"backend": {"ray": 3}}',
        '{"backend": {"rya": {}}}',
        '{"backend": {"ray": {"max_parallel": 0}}}',
    ],
)
def test_damaged_tables_are_told_and_left_out(tmp_path: Path, content: str) -> None:
    study_record_file(tmp_path).write_text(content)
    told: list[str] = []
    assert kept_tables(tmp_path, told.append) == {}
    assert len(told) == 1
    assert told[0].startswith("warning: ")
