import os
import time
from pathlib import Path

import pytest

from jobs.study.folder import observe_study
from seqlm import lease, processes
from seqlm.errors import FileError
from seqlm.files import write_json, write_json_lines
from seqlm.records.attempts import Exit
from seqlm.records.runs import Provenance
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
    run.write_exit(2, Exit(kind="node", message="its machine is gone"))
    assert run.observe().state == "failed", "a launcher knows better than a heartbeat of a minute ago"
    second.beat()
    write_json(run.result_file, {})
    assert run.observe().state == "done"


def test_a_live_run_is_running_however_a_newer_attempt_that_never_got_it_has_ended(run: RunDirectory) -> None:
    run.attempt_dir(1).mkdir(parents=True)
    owner = lease.claim(run.lease_dir, attempt=1, busy="busy")
    run.write_exit(2, Exit(kind="code", message="it found no device"))
    assert run.observe().state == "running"
    assert not run.has_ended()
    owner.release()
    assert run.observe().state == "failed"
    lease.claim(run.lease_dir, attempt=1, busy="busy")
    run.write_exit(1, Exit(kind="node", message="its machine is gone"))
    assert run.observe().state == "failed", "its end is recorded"


SWEEPS = {
    "a new owner": (
        (2,),
        "checkpoints/.last.pt.a.tmp checkpoints/.best.pt.a.tmp .metrics.jsonl.a.tmp .result.json.a.tmp "
        ".canary.json.a.tmp lease/.000001.json.a.tmp attempts/0001/.worker.json.a.tmp "
        "attempts/0001/.worker-1.json.a.tmp attempts/0001/.end-1.json.a.tmp attempts/0001/.progress.json.tmp "
        ".rung-3.json.a.tmp",
        "checkpoints/last.pt checkpoints/best.pt metrics.jsonl lease/000001.json attempts/0001/worker.json "
        "attempts/0001/.exit.json.a.tmp attempts/0002/.worker-1.json.a.tmp",  # of a launcher, and of another rank
    ),
    "a launcher": (
        (),
        ".config.json.a.tmp .provenance.json.a.tmp attempts/0001/.start.json.a.tmp attempts/0001/.exit.json.a.tmp",
        "checkpoints/.last.pt.a.tmp .metrics.jsonl.a.tmp",
    ),
}


@pytest.mark.parametrize(("attempt", "begun", "kept"), SWEEPS.values(), ids=SWEEPS)
def test_what_dead_ones_of_its_kind_have_begun_is_swept_and_nothing_else(
    run: RunDirectory, attempt: tuple[int, ...], begun: str, kept: str
) -> None:
    for name in f"{begun} {kept}".split():
        path = run.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.sweep(*attempt)
    assert not [name for name in begun.split() if (run.path / name).exists()]
    assert all((run.path / name).exists() for name in kept.split())


def test_a_run_is_found_again_whatever_its_name_is_now(tmp_path: Path) -> None:
    config = make_config()
    run = RunDirectory.locate(tmp_path, "GRU / first try", config.fingerprint())
    assert run.id == f"gru-first-try-{config.fingerprint()[:8]}"
    run.create(config, Provenance(name="GRU / first try"))
    assert RunDirectory.locate(tmp_path, "renamed", config.fingerprint()) == run


def test_another_configuration_never_overwrites_a_run(run: RunDirectory) -> None:
    before = run.config_file.read_bytes()
    run.create(make_config(), Provenance(name="again"))
    with pytest.raises(FileError, match="holds another configuration"):
        run.create(make_config(seed=5), Provenance())
    assert run.config_file.read_bytes() == before


def test_runs_are_listed_in_manifest_order(tmp_path: Path) -> None:
    for order, name in ((1, "a-00000001"), (0, "b-00000002"), (None, "c-00000003")):
        make_run(tmp_path / name, make_config()).create(make_config(), Provenance(order=order))
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
