"""``limit`` changes how many runs of a live launch there are at once."""

from pathlib import Path

import pytest

from tests import commands
from tests.crawl import Crawl
from tests.small_study import Study
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_a_live_launch_takes_on_another_number_of_runs_at_once(tmp_path: Path) -> None:
    crawl = Crawl(tmp_path, epochs=0)
    study = Study(tmp_path, stub=True, rates=(0.01, 0.02, 0.03), cpus=1)
    study.env = {**study.env, **crawl.env}
    early = study("limit", "small.toml", "--max-parallel", "2")
    assert early.returncode == 2
    launcher = study.start("run", "small.toml", "--max-parallel", "1")
    folder = tmp_path / "runs" / "small"
    wait_for(
        lambda: study.each() if (folder / "queue.json").exists() else [],
        "a run",
        until=lambda states: sorted(states) == ["queued", "queued", "running"],
        by=launcher,
    )
    answer = study("limit", "small", "--max-parallel", "2")
    assert answer.returncode == 0, answer.stderr
    assert "at most 2 runs at once" in answer.stdout
    wait_for(
        lambda: [run["reason"] for run in study.status() if run["state"] == "queued"],
        "another run, and why the last one waits",
        until=lambda reasons: reasons == ["at most 2 at once"],
        by=launcher,
    )
    assert study.each().count("running") == 2
    crawl.end()
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    over = study("limit", "small", "--max-parallel", "1")
    assert over.returncode == 2
    assert "no launcher is at work" in over.stderr
    assert study("limit", "small").returncode == 2
