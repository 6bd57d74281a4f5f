"""The command line that a cluster is sent by a machine that is no node of it. The cluster is played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import launch
from seqlm.rundir import RunDirectory
from tests.training.studies import make_config, make_run, write_text

SENT: list[list[str]] = []


class JobServer:
    """Takes a launch and does nothing."""

    id = "job-1"

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, words: Sequence[str], study_dir: Path, manifest: Path | None, **_: object) -> None:
        SENT.append(list(words))


def sent(*words: str) -> list[str]:
    SENT.clear()
    assert launch.main([*words, "--ray-address", "http://head:8265", "--backend", "ray", "--no-wait"]) == 0
    (line,) = SENT
    return line


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.cli.request.RayJob", JobServer)


def failed_run(study: str) -> RunDirectory:
    run = make_run(Path("runs") / study / "run", make_config())
    run.write_failure_once({"kind": "node", "message": "lost"})
    return run


def test_a_study_called_like_a_command_does_not_replace_the_command() -> None:
    failed_run("retry")
    command, study, *_ = sent("retry", "retry")
    assert (command, study) == ("retry", str(Path("runs/retry").absolute()))


def test_the_value_of_a_flag_that_equals_the_study_stays() -> None:
    failed_run("node")
    words = sent("retry", "--kind", "node", "node", "--only", "arch=rnn")
    assert words[:6] == ["retry", "--kind", "node", str(Path("runs/node").absolute()), "--only", "arch=rnn"]


def test_a_manifest_is_named_as_it_is_sent() -> None:
    folder = Path("far")
    write_text(folder / "text")
    (folder / "small.toml").write_text(
        '[study]\nname = "small"\ndata = "text"\n[defaults.data]\ncorpus = "files"\n[[grid]]\nmodel.arch = "rnn"\n'
        'model.hidden_size = 8\noptim.optimizer = "adam"\noptim.lr = 0.1\n'
    )
    assert sent("run", "far/small.toml", "--set", "train.epochs=1")[:4] == [
        "run", "small.toml", "--set", "train.epochs=1"
    ]  # fmt: skip
