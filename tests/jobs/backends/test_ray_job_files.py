"""What a launch on a remote Ray cluster is sent: the code, the manifest, and the files of own models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.backends import ray_job
from jobs.study.kept_code import Code
from seqlm.errors import UsageError


class Client:
    """A job server that lists what it is sent."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        root = Path(runtime_env["working_dir"])
        self.sent = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
        return "job"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Client:
    client = Client()
    code = tmp_path / "code"
    code.mkdir()
    (code / "launch.py").write_text("code")
    monkeypatch.setattr(ray_job, "_client", lambda address: client)
    monkeypatch.setattr(ray_job, "launcher_of", lambda study_dir: SimpleNamespace(pid=1))
    kept = Code(path=code, commit=None, dirty=False, live=False)
    monkeypatch.setattr(ray_job, "keep_code", lambda *arguments, **options: kept)
    return client


def submit(folder: Path, **model_files: bytes) -> None:
    manifest = folder / "own.toml"
    manifest.write_text("manifest")
    files = {name.replace("__", "/").replace("_py", ".py"): content for name, content in model_files.items()}
    ray_job.RayJob("http://head:8265").submit(["run", "own.toml"], folder / "runs" / "own", manifest, model_files=files)


def test_the_files_of_own_models_lie_next_to_the_manifest(tmp_path: Path, client: Client) -> None:
    submit(tmp_path, lstm_py=b"model", models__cells_py=b"cells")
    assert client.sent == {
        "launch.py": "code",
        "own.toml": "manifest",
        "lstm.py": "model",
        "models/cells.py": "cells",
    }


def test_a_file_with_the_name_of_a_file_of_the_code_is_refused(tmp_path: Path, client: Client) -> None:
    with pytest.raises(UsageError, match=r"launch\.py: cannot be sent, since the code has a file of this name"):
        submit(tmp_path, launch_py=b"model")
