from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.study.folder import observe_study
from seqlm import lease, processes
from seqlm.errors import FileError
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory, slugify
from seqlm.state import View
from tests.facts import fail
from tests.seqlm.training.studies import make_config, make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "study" / "rnn-sgd-0123abcd", make_config())


def epoch(number: int, val_ppl: float | None = 100.0) -> dict[str, object]:
    return {"epoch": number, "val_ppl": val_ppl}


def test_a_metrics_file_cut_in_a_line_loses_that_line_alone_and_says_so(run: RunDirectory) -> None:
    write_json_lines(run.metrics_file, [epoch(0), epoch(1), epoch(2)])
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text[:-9])
    epochs, warnings = run.read_metrics()
    assert [record["epoch"] for record in epochs] == [0, 1]
    assert warnings == [f"{run.metrics_file}: line 3 is cut or damaged and was left out"]
    assert run.observe().epoch == 1


def test_the_state_is_read_from_the_files(run: RunDirectory) -> None:
    assert run.observe().state == "pending"
    assert run.observe(View(stage="queued")).state == "queued"
    run.attempt_dir(1).mkdir(parents=True)
    assert run.observe().reason == "interrupted before the first epoch ended; run again to resume"
    write_json_lines(run.metrics_file, [epoch(0, 90.0), epoch(1, None), epoch(2, 95.0)])
    observation = run.observe()
    assert (observation.state, observation.epoch, observation.best_val_ppl) == ("pending", 2, 90.0)
    assert observation.reason == "interrupted after 3 epochs; run again to resume"
    fail(run, {"kind": "diverged", "message": "the loss is nan"})
    assert run.observe().state == "failed"
    assert run.observe().reason == "diverged: the loss is nan"
    write_json(run.result_file, {})
    assert run.observe().state == "done", "a result stands above a failure that came before"


def test_a_live_lease_of_another_host_says_running_until_it_is_stale_released_or_the_run_has_spoken(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "this_host", lambda: {"host": "other", "machine_id": "other"})
    theirs = lease.claim(run.lease_dir, attempt=1, busy="busy")
    monkeypatch.setattr(processes, "this_host", lambda: {"host": "here", "machine_id": "here"})
    assert run.observe(View(stage="queued")).state == "running"
    silent = time.time() - 200
    os.utime(theirs.file, (silent, silent))
    assert run.observe(View(stage="queued")).state == "queued"
    monkeypatch.setenv("SEQLM_STALE_LEASE_MINUTES", "4")
    assert run.observe().state == "running"
    theirs.release()
    assert run.observe().state == "pending"
    second = lease.claim(run.lease_dir, attempt=2, busy="busy")
    monkeypatch.setattr(processes, "this_host", lambda: {"host": "other", "machine_id": "other"})
    assert run.observe().state == "running"
    run.write_exit(2, {"kind": "node", "message": "its machine is gone"})
    assert run.observe().state == "failed", "a launcher knows better than a heartbeat of a minute ago"
    second.beat()
    write_json(run.result_file, {})
    assert run.observe().state == "done"


def test_a_new_owner_sweeps_what_dead_owners_have_begun_and_nothing_else(run: RunDirectory) -> None:
    begun = [
        run.last_checkpoint.with_name(".last.pt.abc.tmp"),
        run.last_checkpoint.with_name(".best.pt.def.tmp"),
        run.path / ".metrics.jsonl.abc.tmp",
        run.path / ".result.json.abc.tmp",
        run.path / ".canary.json.abc.tmp",
        run.lease_dir / ".000001.json.abc.tmp",
        run.attempt_dir(1) / ".worker.json.abc.tmp",
        run.attempt_dir(1) / ".worker-1.json.abc.tmp",
        run.attempt_dir(1) / ".end-1.json.abc.tmp",
        run.path / ".rung-3.json.abc.tmp",
        run.attempt_dir(1) / ".progress.json.tmp",
    ]
    kept = [
        run.last_checkpoint,
        run.best_checkpoint,
        run.metrics_file,
        run.lease_dir / "000001.json",
        run.attempt_dir(1) / ".exit.json.abc.tmp",  # a launcher may be about to put it in place
        run.attempt_dir(2) / ".worker-1.json.abc.tmp",  # another rank of the new owner's attempt
        run.attempt_dir(1) / "worker.json",
    ]
    for path in (*begun, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.sweep(2)
    assert not [path for path in begun if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_launcher_sweeps_what_dead_launchers_have_begun_and_nothing_of_a_worker(run: RunDirectory) -> None:
    begun = [
        run.path / ".config.json.abc.tmp",
        run.path / ".provenance.json.abc.tmp",
        run.attempt_dir(1) / ".start.json.abc.tmp",
        run.attempt_dir(1) / ".exit.json.abc.tmp",
    ]
    kept = [run.last_checkpoint.with_name(".last.pt.abc.tmp"), run.path / ".metrics.jsonl.abc.tmp"]
    for path in (*begun, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.sweep()
    assert not [path for path in begun if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_run_is_found_again_whatever_its_name_is_now(tmp_path: Path) -> None:
    config = make_config()
    run = RunDirectory.locate(tmp_path, "GRU / first try", config.fingerprint())
    assert run.id == f"gru-first-try-{config.fingerprint()[:8]}"
    run.create(config, {"name": "GRU / first try"})
    assert RunDirectory.locate(tmp_path, "renamed", config.fingerprint()) == run


def test_another_configuration_never_overwrites_a_run(run: RunDirectory) -> None:
    run.create(make_config(), {"name": "again"})
    with pytest.raises(FileError, match="holds another configuration"):
        run.create(make_config(seed=5), {})
    assert run.read_config() == make_config()


def test_runs_are_listed_in_manifest_order(tmp_path: Path) -> None:
    for order, name in ((1, "a-00000001"), (0, "b-00000002"), (None, "c-00000003")):
        make_run(tmp_path / name, make_config()).create(make_config(), {"order": order})
    assert [seen.run.id for seen in observe_study(tmp_path)] == ["b-00000002", "a-00000001", "c-00000003"]
    (tmp_path / "b-00000002" / "provenance.json").write_text("{")
    assert [seen.run.id for seen in observe_study(tmp_path)] == ["a-00000001", "b-00000002", "c-00000003"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("gru-adam", "gru-adam"),
        ("../../etc/passwd", "etc-passwd"),
        ("$(rm -rf ~)", "rm-rf"),
        ("a\nb c", "a-b-c"),
        ("...", "run"),
        ("é", "run"),
        ("x" * 200, "x" * 80),
    ],
)
def test_a_name_becomes_a_harmless_folder_name(name: str, slug: str) -> None:
    assert slugify(name) == slug
