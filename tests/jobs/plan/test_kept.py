"""What a study keeps of its manifest for ``retry`` and ``behaviour``, which read none."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.policy import Policy
from jobs.plan.record import record_of
from jobs.study.record import StudyRecord
from seqlm.files import write_json
from seqlm.rundir import study_record_file
from seqlm.search import Search

RUN = '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'


def keep(folder: Path, text: str) -> Manifest:
    """The manifest whose record is in the folder now."""
    path = folder / "m.toml"
    path.write_text(f'[study]\nname = "m"\n{text}\n{RUN}')
    manifest = load_manifest(path)
    write_json(study_record_file(folder), record_of(manifest, manifest.runs, None))
    return manifest


def test_the_policy_the_search_and_the_tables_of_all_backends_are_kept(tmp_path: Path) -> None:
    manifest = keep(
        tmp_path,
        '[policy]\noom = 7\npreempted = 2\ntimeout = "unlimited"\n[backend.ray]\nmax_parallel = 3\nenv = {A = "b"}\n'
        'env_pass = ["HF_TOKEN"]\n[backend.slurm]\ntimeout_min = 7\n[search]\nrungs = [3]\nkeep = 0.5',
    )
    found, none = (StudyRecord(folder, pytest.fail) for folder in (tmp_path, tmp_path / "older"))
    assert found.policy == manifest.policy == Policy(oom=7, preempted=2, timeout=None)
    assert found.search == manifest.search == Search(rungs=(3,), keep=0.5)
    assert (found.backends, found.manifest) == (manifest.backend, manifest.path)
    assert (none.policy, none.search, none.backends, none.planned) == (None, None, {}, [])


def test_of_what_looks_like_a_secret_the_name_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, '[backend.ray]\nenv = {A = "b", HF_TOKEN = "oops"}\nenv_pass = ["PIN"]')
    assert StudyRecord(tmp_path).backends == {"ray": {"env": {"A": "b"}, "env_pass": ["PIN", "HF_TOKEN"]}}
    assert "oops" not in study_record_file(tmp_path).read_text()


@pytest.mark.parametrize(
    "content",
    [
        '{"policy": ',
        '{"policy": 3}',
        '{"policy": {"oom": -1}}',
        '{"search": {"x": 1}}',
        '{"backend": 3}',
        '{"backend": {"ray": 3}}',
        '{"backend": {"rya": {}}}',
        '{"backend": {"ray": {"max_parallel": 0}}}',
    ],
)
def test_what_is_damaged_is_told_once_and_is_as_if_it_were_not_given(tmp_path: Path, content: str) -> None:
    study_record_file(tmp_path).write_text(content)
    told: list[str] = []
    found = StudyRecord(tmp_path, told.append)
    assert (found.policy, found.search, found.backends) == (None, None, {})
    assert len(told) == 1
    assert told[0].startswith("warning: ")
