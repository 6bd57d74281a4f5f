"""The command line from end to end on small runs, with real workers or the stub (:mod:`tests.tools.stub_worker`)."""

import contextlib
import json
import os
import pty
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.cli import launching, planning
from jobs.cli.arguments import PlanArguments
from jobs.spec import RunSpec
from seqlm import machine
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.records.runs import Provenance, Result
from seqlm.rundir import RunDirectory
from tests import commands, hostile
from tests.chaos.disk import may_mount
from tests.crawl import Crawl, blank_figures
from tests.facts import fail, start_of
from tests.seqlm.training.studies import make_config
from tests.small_study import ROOT, STUB_LAUNCH, Study, epochs_of, worker_pid
from tests.waiting import wait_for


@pytest.mark.process
def test_a_manifest_becomes_runs_and_a_report_and_a_second_run_starts_nothing(tmp_path: Path) -> None:
    study = Study(tmp_path, stub=True, archs=("rnn", "gru", "transformer"))
    blank = {**os.environ, **blank_figures()}
    first = study("run", "small.toml", "--json", "--report", "--no-behaviour", env=blank)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["schema_version"], document["ok"], document["error"]) == (1, True, None)
    assert [run["state"] for run in document["data"]["runs"]] == ["done"] * 3
    assert (tmp_path / "runs/small/report/index.html").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for run in study.runs() for path in run.path.rglob("*")}
    record = json.loads((tmp_path / "runs/small/study.json").read_text())
    assert (record["study"], record["manifest"]) == ("small", "small.toml")
    prints = [run.read_config().fingerprint() for run in study.runs()]
    assert [run["fingerprint"] for run in record["planned"]] == list(record["estimates"]) == prints

    plan = json.loads(study("plan", "small.toml", "--json").stdout)
    assert {run["action"] for run in plan["data"]["runs"]} == {"skip"}
    keys = {"name", "id", "fingerprint", "directory", "action", "config", "resources", "parameters"}
    assert keys <= plan["data"]["runs"][0].keys()
    assert all(run["seconds"] > 0 for run in plan["data"]["runs"]), "earlier runs tell the time"

    second = study("run", "small.toml")
    assert second.returncode == 0
    assert "0 of 3 runs to do" in second.stderr
    assert {path: path.stat().st_mtime_ns for run in study.runs() for path in run.path.rglob("*")} == before

    assert json.loads((tmp_path / "runs/small/study.json").read_text()) == record, "the first estimates stand"


@pytest.mark.process
def test_where_ray_cannot_start_the_runs_of_a_manifest_that_names_it_go_to_local_and_those_of_the_flag_do_not(
    tmp_path: Path,
) -> None:
    study = Study(tmp_path, stub=True, head='backend = "ray"')
    no_ray = {**os.environ, "SEQLM_BACKEND": "", "RAY_TMPDIR": f"/tmp/{'x' * 107}"}
    refused = study("run", "small.toml", "--backend", "ray", env=no_ray)
    assert refused.returncode == 3
    assert "set RAY_TMPDIR" in refused.stderr
    done = study("run", "small.toml", env=no_ray)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "set RAY_TMPDIR" in warning
    assert "backend local" in warning
    (run,) = study.runs()
    assert start_of(run).backend == "local"

    logs = study("logs", "small.toml", "rnn-adam")
    assert "epoch 2/2 done" in logs.stdout
    assert json.loads(study("cancel", "small", "--json").stdout)["data"]["runs"] == []
    run = study.runs()[0]
    worker, end = (json.loads(file.read_text()) for file in (run.worker_file(1, 0), run.end_file(1)))
    provenance, result = run.read_provenance(), run.read_result() or Result()
    times = [provenance.launched_at, worker["started_at"], result.finished_at, end["ended_at"]]
    assert times == sorted(times), "in UTC and whole seconds: texts that sort"
    assert worker["ranks"] == 1
    assert Path(str(provenance.code and provenance.code.path)).joinpath("seqlm/training/worker.py").is_file()
    assert provenance.command[-2:] == ("--only", "name=rnn-adam")


@pytest.fixture
def crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crawl:
    """Workers that are not done with their third epoch until the test ends it."""
    crawl = Crawl(tmp_path, epochs=2)
    for name, value in crawl.env.items():
        monkeypatch.setenv(name, value)
    return crawl


@pytest.mark.process
def test_a_run_whose_worker_is_killed_goes_on_by_itself_with_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_TEST_STUB", '{"1/2": "SIGKILL"}')
    study = Study(tmp_path, epochs=12, stub=True)
    answer = study("run", "small.toml")
    assert answer.returncode == 0
    (run,) = study.runs()
    assert [record["attempt"] for record in run.read_metrics()[0]] == [1] * 2 + [2] * 10
    assert epochs_of(run) == list(range(12))
    assert (run.end(1).kind, "killed by SIGKILL" in run.end(1).message) == ("node", True)


@pytest.mark.process
def test_a_run_that_is_asked_for_more_epochs_is_extended_and_for_fewer_is_done(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=5, stub=True)
    assert study("run", "small.toml", "--set", "train.epochs=1").returncode == 0
    (run,) = study.runs()
    assert (epochs_of(run), study.states()) == ([0], {"rnn-adam": "done"})
    assert re.search(r"extend 1 -> 5 .*\n\nsmall: 1 run \(1 extend\)", study("plan", "small.toml").stdout)
    more = study("run", "small.toml")
    assert "1 extend" in more.stderr
    assert (more.returncode, epochs_of(run)) == (0, list(range(5)))
    fewer = study("run", "small.toml", "--set", "train.epochs=3")
    assert (fewer.returncode, run.attempts()) == (0, [1, 2]), fewer.stderr
    assert "skipped rnn-adam: done; it has trained 5 epochs, and 3 are requested\n" in fewer.stderr
    study.manifest.write_text(study.manifest.read_text().replace("[[grid]]", '[[run]]\nname = "plain"'))
    study.manifest.write_text(re.sub(r"= \[(\S+)\]$", r"= \1", study.manifest.read_text(), flags=re.MULTILINE))
    assert study("run", "small.toml").returncode == 0
    assert (study.states(), run.attempts()) == ({"plain": "done"}, [1, 2]), "a run has the name that its entry has now"


@pytest.mark.process
@pytest.mark.usefixtures("crawl")
def test_ctrl_c_stops_the_workers_cleanly_and_leaves_the_runs_resumable(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=5000, archs=("rnn", "gru"), stub=True)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of one of the two runs", until=lambda epochs: len(epochs) == 2 and any(epochs))
    pids = [worker_pid(run) for run in study.runs() if run.lease_dir.exists()]
    launcher.send_signal(signal.SIGINT)
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 130
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert set(study.states().values()) == {"pending"}
    assert {run["action"] for run in json.loads(study("plan", "small.toml", "--json").stdout)["data"]["runs"]} <= {
        "resume",
        "start",
    }


@pytest.mark.process
@pytest.mark.usefixtures("crawl")
@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_closes_stops_the_workers_as_ctrl_c_does(tmp_path: Path, term: str) -> None:
    study = Study(tmp_path, epochs=5000, archs=("rnn", "gru"), stub=True)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    words = ["setsid", "--ctty", "env", f"TERM={term}", *study.command("run", "small.toml")]
    launcher = commands.start(words, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def epochs() -> list[list[int]]:
        with contextlib.suppress(BlockingIOError):  # what is not read would fill the terminal
            os.read(ours, 2**16)
        return study.epochs()

    wait_for(epochs, "an epoch of both runs", until=lambda seen: len(seen) == 2 and all(seen))
    os.close(ours)
    commands.finish(launcher)
    assert launcher.returncode == 130
    assert set(study.states().values()) == {"pending"}
    assert all("stopped; run again to resume" in run.stderr_log(1).read_text() for run in study.runs())


IMPORTS = """
import pathlib, sys, time
if "seqlm.training.worker" in sys.orig_argv and not pathlib.Path({gate!r}).exists():
    pathlib.Path({seen!r}).touch()
    time.sleep(600)
sys.path.remove({folder!r})
del sys.modules["torch"]
import torch
"""


@pytest.mark.process
def test_ctrl_c_while_a_worker_imports_torch_leaves_a_run_that_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path)
    folder, seen, gate = (tmp_path / name for name in ("slow", "seen", "gate"))
    folder.mkdir()
    (folder / "torch.py").write_text(IMPORTS.format(gate=str(gate), seen=str(seen), folder=str(folder)))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("SEQLM_TEST_COLD", "1")
    launcher = study.start("run", "small.toml")
    wait_for(seen.exists, "the worker to import torch")
    launcher.send_signal(signal.SIGINT)
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert study.states() == {"rnn-adam": "pending"}
    gate.touch()
    study.program = STUB_LAUNCH
    again = study("run", "small.toml")
    assert again.returncode == 0, again.stderr
    (run,) = study.runs()
    assert epochs_of(run) == [0, 1]


@pytest.mark.process
def test_ctrl_c_before_a_worker_has_started_claims_that_none_has_stopped(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalBackend, "open", interrupted)
    assert launch.main(["run", "small.toml"]) == 130
    assert "workers" not in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.slow
def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path, epochs=1, lines=60)
    hostile.put_modules(tmp_path)
    monkeypatch.setenv("SEQLM_TEST_COLD", "1")
    answer = study("run", "small.toml")
    assert answer.returncode == 0, answer.stderr
    answer = study("doctor")
    assert "of the working folder" not in answer.stdout + answer.stderr
    assert "torch" in answer.stdout


@pytest.mark.process
def test_a_study_launched_twice_at_the_same_moment_runs_once(tmp_path: Path, crawl: Crawl) -> None:
    study = Study(tmp_path, epochs=12, stub=True)
    both = [study.start("run", "small.toml") for _ in range(2)]
    wait_for(
        lambda: [process.poll() for process in both], "one of them to end", until=lambda codes: codes != [None] * 2
    )
    (other,) = [process for process in both if process.poll() is not None]
    (winner,) = [process for process in both if process is not other]
    assert other.returncode == 1
    assert "study small is already being launched" in commands.finish(other)[1]
    crawl.end()
    _, stderr = commands.finish(winner)
    assert winner.returncode == 0, stderr
    (run,) = study.runs()
    assert run.attempts() == [1]
    assert run.observe().state == "done"


@pytest.mark.process
@pytest.mark.usefixtures("crawl")
def test_workers_end_with_a_killed_launcher_and_the_next_launch_goes_on(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=12, stub=True)
    killed = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of the run", until=any)
    killed.kill()
    commands.finish(killed)
    wait_for(study.states, "the run to be released", until=lambda states: set(states.values()) == {"pending"})


@pytest.mark.process
@pytest.mark.usefixtures("crawl")
def test_no_wait_returns_and_the_study_goes_on_and_can_be_cancelled_and_retried(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=5000, archs=("rnn", "gru"), stub=True)
    left = study("run", "small.toml", "--no-wait", "--max-parallel", "1")
    assert left.returncode == 0, left.stderr
    one_by_one = {"rnn-adam": "queued", "gru-adam": "running"}  # the longer one first
    wait_for(study.states, "the longer run to run", until=lambda states: states == one_by_one)
    cancelled = json.loads(study("cancel", "small", "--only", "arch=rnn", "--json").stdout)
    assert [run["state"] for run in cancelled["data"]["runs"]] == ["cancelled"]
    assert study.states() == {"rnn-adam": "cancelled", "gru-adam": "running"}
    assert study("cancel", "runs/small", "--all").returncode == 0
    assert study.states() == {"rnn-adam": "cancelled", "gru-adam": "cancelled"}
    plain = study("run", "small.toml")
    assert plain.returncode == 1
    assert "skipped rnn-adam: cancelled by the user; `retry` starts it again" in plain.stderr
    assert study.states() == {"rnn-adam": "cancelled", "gru-adam": "cancelled"}
    again = study("retry", "small", "--only", "arch=gru", "--no-wait")
    assert again.returncode == 0, again.stderr
    wait_for(study.states, "the run to run again", until=lambda states: states["gru-adam"] == "running")
    assert study("cancel", "small", "--all").returncode == 0


# -- what plan shows of the whole ----------------------------------------------------------------------------------


def plan_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert launch.main(["plan", "small.toml", "--json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out)["data"])


def pretend_earlier_run(study: Study, data: dict[str, Any], **record: Any) -> None:
    """An earlier run of another study with the configuration of the first run."""
    run = RunDirectory(study.folder / "runs" / "earlier" / "run-1")
    run.create(RunConfig.from_dict(data["runs"][0]["config"]), Provenance())
    run.metrics_file.write_text(json.dumps({"epoch": 0, "val_ppl": 1.0, **record}) + "\n")


def test_a_plan_can_be_asked_for_without_a_command_line_and_prints_nothing(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["plan", "small.toml"]) == 0
    shown = capsys.readouterr()
    found = planning.plan(PlanArguments(manifest="small.toml", runs_dir=Path("runs")))
    assert capsys.readouterr() == ("", "")
    assert (found.exit_code, [item.action for item in found.planned]) == (0, ["start"])
    found.render()
    assert capsys.readouterr().out == shown.out
    assert found.document() == plan_of(capsys)


def test_plan_of_a_study_with_nothing_to_start_claims_no_time(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (planned,) = plan_of(capsys)["runs"]
    run = RunDirectory(Path(planned["directory"]))
    run.create(RunConfig.from_dict(planned["config"]), Provenance())
    run.result_file.write_text("{}")
    assert launch.main(["plan", "small.toml"]) == 0
    assert re.search(r"1 run \(1 skip\) in .*\nnothing to start; disk .* for checkpoints\n$", capsys.readouterr().out)


def test_plan_adds_up_time_on_the_clock_and_disk(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = plan_of(capsys)
    assert unknown["totals"]["wall_seconds"] is None
    assert unknown["totals"]["gpu_hours"] is None
    assert "no rnn of about this size has been trained here on such a text yet" in unknown["totals"]["unknown"]
    pretend_earlier_run(study, unknown, train_tokens_per_second=100.0, peak_memory_bytes=3 * 2**30)
    found = plan_of(capsys)
    (run,) = found["runs"]
    assert run["measured_memory_bytes"] == 3 * 2**30
    assert run["memory_bytes"] == unknown["runs"][0]["memory_bytes"]
    assert found["totals"] == {
        "backend": "local",
        "max_parallel": None,
        "gpu_hours": 0.0,
        "wall_seconds": run["seconds"],
        "disk_bytes": (12 + 4) * run["parameters"] + 2 * 18 * 17,
        "unknown": None,
    }
    freed = plan_of(capsys, "--set", "policy.keep_last=false")["totals"]["disk_bytes"]
    assert freed == 4 * run["parameters"] + 18 * 17, "last.pt is deleted"
    kept = plan_of(capsys, "--set", "policy.keep_epochs=[1, 3, 99]")["totals"]["disk_bytes"]
    assert kept == found["totals"]["disk_bytes"] + 12 * run["parameters"] + 18 * 17, "of 3 epochs; the last is last.pt"
    assert launch.main(["plan", "small.toml"]) == 0
    assert "3.0 GiB" in capsys.readouterr().out


def test_plan_takes_the_time_on_the_clock_from_how_many_runs_go_at_once(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (study.folder / "small.toml").read_text()
    (study.folder / "small.toml").write_text("seeds = [1, 2]\n" + text)
    pretend_earlier_run(study, plan_of(capsys), train_tokens_per_second=100.0)
    one_by_one = plan_of(capsys, "--max-parallel", "1")["totals"]
    assert one_by_one["max_parallel"] == 1
    assert one_by_one["wall_seconds"] == pytest.approx(2 * plan_of(capsys)["runs"][0]["seconds"])


def test_gpu_hours_count_the_share_of_each_rank(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("0", "a card"), machine.Gpu("1", "a card")])
    monkeypatch.setattr(machine, "exclusive_gpus", list)
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    pretend_earlier_run(study, plan_of(capsys), train_tokens_per_second=0.01)
    for words, gpus in ((), 1.0), (("--set", "resources.gpus=0.25"), 0.25), (("--set", "resources.ranks=2"), 2.0):
        found = plan_of(capsys, *words)
        assert found["totals"]["gpu_hours"] == pytest.approx(found["runs"][0]["seconds"] * gpus / 3600), words


@pytest.mark.process
def test_plan_refuses_what_never_fits_as_run_does(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = answer_of(capsys, "plan", "small.toml", "--set", "resources.cpus=4000")
    assert code == 3
    assert "never fits: needs 4000 cores" in error
    assert launch.main(["plan", "small.toml", "--backend", "slurm"]) == 3


# -- bad input: one clear line, no traceback ----------------------------------------------------------------------


def answer_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = launch.main(list(words))
    return code, capsys.readouterr().err.strip()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path)


def test_plan_names_the_folder_next_to_the_manifest_that_has_the_runs(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["plan", "small.toml"]) == 0
    assert "note:" not in capsys.readouterr().err
    (study.folder / "runs" / "small").mkdir(parents=True)
    (study.folder / "runs" / "small" / "study.json").write_text("{}")
    (study.folder / "elsewhere").mkdir()
    monkeypatch.chdir(study.folder / "elsewhere")
    assert launch.main(["plan", "../small.toml"]) == 0
    assert "--runs-dir ../runs" in capsys.readouterr().err


def test_plan_says_where_runs_go_and_if_they_need_more_memory_than_there_is(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "small.toml", "--backend", "ray", "--json"]
    assert launch.main(words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["data"]["totals"]["backend"] == "ray"
    assert "warning" not in printed.err
    monkeypatch.setattr("jobs.launch.prepare.LEAST_MEMORY", 0)  # the run is small
    monkeypatch.setattr("seqlm.machine.memory_bytes", lambda: 1000)
    assert launch.main(words) == 3
    assert "of memory, this machine has 1000 B" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "code"), [("gpu", 2), ("cuda", 3), ("cpu", 0)])
def test_the_variable_of_the_device_is_read_before_anything_starts(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, code: int
) -> None:
    monkeypatch.setenv("SEQLM_DEVICE", device)
    monkeypatch.setattr("seqlm.machine.gpus", list)
    assert launch.main(["plan", "small.toml", "--backend", "local"]) == code
    assert ("SEQLM_DEVICE" in capsys.readouterr().err) == (code != 0)


@pytest.mark.process
@pytest.mark.parametrize("form", [["--json"], []])
def test_a_reader_that_has_left_is_no_error(form: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "launch.py", "plan", "jobs/manifests/quickstart.toml", *form]
    answer = commands.run(command, cwd=ROOT, stdout=writer)
    os.close(writer)
    assert answer.returncode == 0
    assert "BrokenPipe" not in answer.stderr


def test_a_word_outside_the_vocabulary_is_named_before_anything_starts(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.folder / "text" / "valid.txt").write_text("the zebra sat\n" * 60)
    code, error = answer_of(capsys, "run", "small.toml")
    assert code == 2
    assert '"zebra" is not in the vocabulary' in error


@pytest.mark.process
def test_a_finished_run_without_its_last_checkpoint_is_done_and_cannot_go_on(tmp_path: Path) -> None:
    study = Study(tmp_path, epochs=1, stub=True)
    assert study("run", "small.toml", "--set", "policy.keep_last=false").returncode == 0
    (run,) = study.runs()
    assert (run.has_checkpoint(), run.best_checkpoint.is_file()) == (False, True)
    assert study.states() == {"rnn-adam": "done"}
    again = study("run", "small.toml")
    assert (again.returncode, run.attempts()) == (0, [1])
    more = study("run", "small.toml", "--set", "train.epochs=2")
    assert (more.returncode, run.attempts()) == (1, [1]), "it has not what was asked for"
    (line,) = [line for line in more.stderr.splitlines() if "skipped" in line]
    folder = run.path.relative_to(tmp_path)
    reason = f"done after 1 epochs; it cannot go on to 2, because its last.pt was deleted; move {folder} away"
    assert line == f"skipped rnn-adam: {reason} to train it again"
    assert study.states() == {"rnn-adam": "done"}
    run.result_file.unlink()
    answer = study("run", "small.toml")
    assert (answer.returncode, run.attempts()) == (1, [1])
    (line,) = [line for line in answer.stderr.splitlines() if "skipped" in line]
    reason = f"its last.pt was deleted after the training had ended; move {run.path.relative_to(tmp_path)} away"
    assert line == f"skipped rnn-adam: {reason} to train it again"


def launched(study: Study, *states: str) -> list[RunDirectory]:
    """Runs in the given states, as earlier launches have left them; run 0 has seed 1, and so on."""
    runs = []
    for order, state in enumerate(states):
        spec = RunSpec(name=f"rnn-seed{order}", config=make_config(seed=order), order=order)
        run = RunDirectory.locate(study.folder / "runs" / "small", spec.name, spec.fingerprint)
        run.create(spec.config, Provenance(name=spec.name, order=order))
        if state == "done":
            run.result_file.write_text("{}")
        elif state == "failed":
            fail(run, {"kind": "diverged", "message": "nan"})
        runs.append(run)
    return runs


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "retry"])
def test_a_filter_that_finds_nothing_in_a_study_is_no_error(
    study: Study, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    launched(study, "done", "pending")
    assert launch.main([command, "small", "--only", "state=failed", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["ok"], document["data"]["runs"], err) == (True, [], "")
    assert document["notes"][0] == 'no run passes --only "state=failed": the runs have state done, pending'


def test_an_id_is_the_same_in_plan_status_filters_and_logs(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    def ids(*words: str) -> list[str]:
        assert launch.main(list(words)) == 0
        header, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("run ", "rnn-"))]
        column = header.split().index("id")
        return [row.split()[column] for row in rows]

    (found,) = ids("plan", "small.toml")
    run = RunDirectory(study.folder / "runs" / "small" / found)
    assert launch.main(["plan", "small.toml", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["data"]["runs"]
    assert record["id"] == found
    run.create(RunConfig.from_dict(record["config"]), Provenance(name=record["name"]))
    launched(study, "done")
    assert found in ids("status", "small")
    assert ids("status", "small", "--only", f"id={found[:-2]}") == [found]
    assert ids("plan", "small.toml", "--only", f"id={found[:-2]}") == [found]
    assert launch.main(["logs", "small", found[:-2], "--json"]) == 0
    assert [log["id"] for log in json.loads(capsys.readouterr().out)["data"]["runs"]] == [found]
    code, error = answer_of(capsys, "logs", "small", "rnn")
    assert (code, error.partition(": ")[2].partition(";")[0]) == (2, '"rnn" begins 2 ids')
    code, error = answer_of(capsys, "logs", "small", "rnn-adma")
    assert code == 2
    assert error.startswith('error: small has no run "rnn-adma"; did you mean "rnn-adam"?; `status` lists them\n')


def test_workers_here_write_as_often_as_the_manifest_says(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str | None] = []

    def stop(study: Any, order: Any, backend: Backend, shown: Any) -> None:
        given.append(backend.worker_env().get("SEQLM_PROGRESS_SECONDS"))
        raise UsageError("no further")

    monkeypatch.setattr(launching, "launch", stop)
    assert launch.main(["run", "small.toml", "--backend", "local"]) == 2
    with (study.folder / "small.toml").open("a") as manifest:
        manifest.write("[backend.local]\nprogress_s = 2.5\n")
    assert launch.main(["run", "small.toml", "--backend", "local"]) == 2
    assert given == [None, "2.5"]


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the file systems that these tests need")
@pytest.mark.parametrize(
    ("options", "line"), [("ro", "Read-only file system"), ("size=600k", "No space left on device")]
)
def test_a_read_only_or_full_disk_is_one_clear_line(tmp_path: Path, options: str, line: str) -> None:
    study = Study(tmp_path, stub=True)
    (tmp_path / "runs").mkdir()
    script = f'mount -t tmpfs -o {options} none runs && exec "$@"'
    shell = ["unshare", "--mount", "sh", "-c", script, "sh", *study.command("run", "small.toml")]
    answer = commands.run(shell, cwd=tmp_path)
    if "mount:" in answer.stderr or "unshare:" in answer.stderr:
        pytest.skip("mounting is not allowed here")
    assert answer.returncode == 1, answer.stderr
    assert line in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.process
@pytest.mark.skipif(not may_mount(), reason="only root may mount the file system that this test needs")
def test_a_home_that_is_read_only_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, home = Study(tmp_path, stub=True), tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("SEQLM_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    script = 'mount -t tmpfs -o ro none home && exec "$@"'
    shell = ["unshare", "--mount", "sh", "-c", script, "sh", *study.command("run", "small.toml")]
    answer = commands.run(shell, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "going on without a cache" in answer.stderr
    assert sum("not recorded as launched by you" in line for line in answer.stderr.splitlines()) == 1
    assert "Traceback" not in answer.stderr
    assert study.states() == {"rnn-adam": "done"}


def test_plan_of_the_published_study_lists_19_runs_and_says_what_run_refuses(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEQLM_DATA", raising=False)
    monkeypatch.setattr("seqlm.data.corpus.downloaded_ptb", lambda: study.folder / "nowhere")
    paper = str(ROOT / "jobs/manifests/paper.toml")
    assert launch.main(["plan", paper, "--json"]) == 2
    out, said = capsys.readouterr()
    document = json.loads(out)
    runs = document["data"]["runs"]
    assert len(runs) == 19
    assert len({run["fingerprint"] for run in runs}) == 19
    assert document["ok"] is False
    refused = document["data"]["refused"]
    assert refused.startswith('the files of corpus = "ptb" are not given; set study.data in the manifest, pass --data')
    assert said.splitlines()[-1] == f"error: run would refuse this: {refused}"
    code, error = answer_of(capsys, "run", paper, "--backend", "local")
    assert (code, error) == (2, f"error: {refused}")


def test_plan_refuses_a_text_that_is_too_short_as_run_does(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    large = ["small.toml", "--set", "train.batch_size=5000"]
    code, error = answer_of(capsys, "plan", *large)
    assert code == 2
    assert error.splitlines()[-1] == "error: run would refuse this: " + answer_of(capsys, "run", *large)[1][7:]
    assert launch.main(["plan", "small.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["refused"] is None
