"""`launch.py behaviour` and the report that computes what it lacks, with a substitute for the real worker."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.study.folder import launcher_dir, launching
from jobs.study.kept_code import keep_code
from seqlm.files import write_json
from seqlm.lease import live_owner
from seqlm.rundir import RunDirectory
from seqlm.trust import record_launch
from tests import commands
from tests.facts import start_of
from tests.jobs.launch.test_behaviour import done_run
from tests.seqlm.training.studies import write_text
from tests.small_study import ROOT
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("blank_figures")
STAND_IN = "tests.jobs.launch.stand_in_behaviour"
LAUNCHER = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import jobs.launch.behaviour; "
    f"jobs.launch.behaviour.WORKER = {STAND_IN!r}; import jobs.study.kept_code; jobs.study.kept_code.KEPT = ('--',); "
    "import launch; sys.exit(launch.main(sys.argv[1:]))"
)


def finished_runs(folder: Path) -> dict[str, RunDirectory]:
    """The runs of the study ``small`` in this folder, by name, and their text."""
    text = write_text(folder / "text")
    study_dir = folder / "runs" / "small"
    runs = {
        "rnn-a": done_run(study_dir, "rnn-a", 30.0, seed=1),
        "rnn-b": done_run(study_dir, "rnn-b", 20.0, seed=2),
        "gru": done_run(study_dir, "gru", 10.0, arch="gru", seed=3),
    }
    for order, (name, run) in enumerate(runs.items()):
        known = {"name": name, "order": order, "data": str(text), "resources": {"ranks": 2, "cpus": 1}}
        write_json(run.provenance_file, known)
    return runs


class Study:
    """Three finished runs, as far as files tell, and the command line on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.path = folder / "runs" / "small"
        self._capsys = capsys
        self.started: list[subprocess.Popen[str]] = []
        self.runs = finished_runs(folder)
        record_launch(self.path, {run.read_config().fingerprint() for run in self.runs.values()})

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout, and stderr but for the line that each report begins with."""
        self._capsys.readouterr()
        code = launch.main(list(words))
        out, err = self._capsys.readouterr()
        lines = err.splitlines(keepends=True)
        return code, out, "".join(line for line in lines if not line.startswith("writing the report of "))

    def behaviour(self, *words: str) -> tuple[int, dict[str, tuple[str, str | None]], str]:
        """Exit code, state and reason of each run by name, and stderr."""
        code, out, err = self("behaviour", "small", "--json", *words)
        return code, {run["name"]: (run["state"], run["reason"]) for run in json.loads(out)["data"]["runs"]}, err

    def job(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / "behaviour" / self.runs[name].id)

    def attempts(self) -> dict[str, int]:
        return {name: self.job(name).last_attempt() for name in self.runs}

    def order(self, **orders: Any) -> None:
        """What the stand-in is to do."""
        write_json(self.path / "stand-in.json", orders)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCHER, *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.started.append(commands.start(command, cwd=self.folder, env=env))
        return self.started[-1]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Study]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.launch.behaviour.WORKER", STAND_IN)
    monkeypatch.setattr("jobs.study.kept_code.KEPT", ("--",))  # with the tests, which the substitute is one of
    study = Study(tmp_path, capsys)
    yield study
    for launcher in study.started:  # of a test that has failed; it stops its workers
        launcher.terminate()
        commands.finish(launcher)


@pytest.mark.process
def test_what_is_chosen_is_computed_once_and_anew_only_when_its_checkpoint_changes(study: Study) -> None:
    code, states, err = study.behaviour()
    assert (code, states) == (0, {"rnn-b": ("done", "computed"), "gru": ("done", "computed")}), err
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 1, "gru": 1}
    assert json.loads(study.runs["gru"].behaviour_file.read_text())["data"] == str(study.folder / "text")
    task = json.loads(study.job("gru").task_file.read_text())
    assert task == {"panel": [study.runs["rnn-a"].id], "settings": {}}
    job = start_of(study.job("gru"))
    assert job.argv[1:] == ("-m", STAND_IN, str(study.job("gru").path))
    assert (job.backend, job.resources.ranks) == ("local", 1)
    provenance = study.job("gru").read_provenance()
    assert provenance.study == "small/behaviour"
    code_name = Path(str(provenance.code and provenance.code.path)).name
    assert [path.stem for path in (study.path / "code").iterdir()] == [code_name], "one archive of the code for both"
    assert provenance.command[2:] == ("behaviour", "runs/small", "--only", f"id={study.runs['gru'].id}")

    code, states, err = study.behaviour()
    assert (code, states) == (0, {"rnn-b": ("done", "up to date"), "gru": ("done", "up to date")})
    assert not err
    study.runs["rnn-b"].best_checkpoint.write_bytes(b"others")
    study.runs["gru"].behaviour_file.unlink()
    assert study.behaviour("--only", "name=rnn-b")[1] == {"rnn-b": ("done", "computed")}
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 2, "gru": 1}
    assert study.behaviour()[1] == {"rnn-b": ("done", "up to date"), "gru": ("done", "computed")}
    assert study.behaviour("--force", "--only", "name=gru")[1] == {"gru": ("done", "computed")}
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 2, "gru": 3}
    study.runs["rnn-a"].best_checkpoint.write_bytes(b"others")  # in the panel of both
    assert study.behaviour()[1] == {"rnn-b": ("done", "computed"), "gru": ("done", "computed")}


@pytest.mark.process
def test_flags_reach_the_worker_and_other_flags_compute_anew(study: Study) -> None:
    words = ["--window", "4", "--samples", "3", "--temperature", "0.5", "--prompt", "the cat", "--seed", "9"]
    given = {"window": 4, "samples": 3, "temperature": 0.5, "prompt": "the cat", "seed": 9}
    assert study.behaviour("--only", "name=rnn-a", *words)[0] == 0
    assert json.loads(study.job("rnn-a").task_file.read_text())["settings"] == given
    assert study.behaviour("--only", "name=rnn-a", *words)[1] == {"rnn-a": ("done", "up to date")}
    result = json.loads(study.job("rnn-a").result_file.read_text())
    write_json(study.job("rnn-a").result_file, {**result, "unknown": ["zebra", "xyzzy"]})
    shown = study("behaviour", "small", "--only", "name=rnn-a", *words)[1]
    assert "zebra, xyzzy" in shown
    assert str(study.runs["rnn-a"].samples_file.relative_to(study.folder)) in shown
    assert study.behaviour("--only", "name=rnn-a", "--window", "5")[1] == {"rnn-a": ("done", "computed")}
    assert study.attempts()["rnn-a"] == 2


@pytest.mark.process
def test_a_checkpoint_that_is_gone_is_told_and_what_was_computed_from_it_stays(study: Study) -> None:
    study.runs["gru"].best_checkpoint.unlink()
    code, states, _ = study.behaviour()
    assert (code, states["rnn-b"]) == (1, ("done", "computed"))
    assert states["gru"] == ("missing", "its checkpoints/best.pt is gone, so there is no model to examine")
    assert study.behaviour("--only", "name=gru")[0] == 1
    study.runs["rnn-b"].best_checkpoint.unlink()
    code, states, _ = study.behaviour("--only", "name=rnn-b", "--force")
    assert code == 0
    assert states == {"rnn-b": ("kept", "its checkpoints/best.pt is gone; the earlier result is kept")}
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 1, "gru": 0}


@pytest.mark.process
def test_a_failed_job_is_exit_code_1_and_is_tried_again_the_next_time(study: Study) -> None:
    study.order(fail=[study.runs["gru"].id])
    code, out, err = study("behaviour", "small")
    assert code == 1
    assert "code: as it was told" in out
    assert "rnn-b  done\n" in err
    code, states, _ = study.behaviour()
    assert (code, states["gru"]) == (1, ("failed", "code: as it was told"))
    study.order()
    assert study.behaviour()[1] == {"rnn-b": ("done", "up to date"), "gru": ("done", "computed")}
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 1, "gru": 3}


@pytest.mark.process
def test_status_and_logs_take_the_folder_for_a_study_and_retry_does_not(study: Study) -> None:
    assert study.behaviour()[0] == 0
    code, out, _ = study("status", "runs/small/behaviour")
    assert code == 0
    assert [line.split()[::2][:2] for line in out.splitlines()[1:]] == [["rnn-b", "done"], ["gru", "done"]]
    assert " -  " in out, "it has no epochs"
    assert study("logs", "runs/small/behaviour", "gru")[0] == 0
    for command in ("retry", "behaviour"):
        code, _, err = study(command, "runs/small/behaviour")
        assert code == 2
        assert "runs/small/behaviour holds behaviour jobs" in err
        assert err.endswith(": python launch.py behaviour runs/small\n")
    assert len(json.loads(study("status", "small", "--json")[1])["data"]["runs"]) == 3


def test_bad_flags_are_one_line_and_exit_code_2(study: Study) -> None:
    for words in (["--temperature", "0"], ["--temperature", "nan"], ["--window", "0"], ["--only", "arch=lstm"]):
        code, _, err = study("behaviour", "small", *words)
        assert code == 2, words
        assert len(err.splitlines()) == 1
    assert not (study.path / "behaviour").exists()


@pytest.mark.slow
def test_a_study_without_a_finished_run_has_nothing_to_compute(study: Study) -> None:
    for run in study.runs.values():
        run.result_file.unlink()
    assert study("behaviour", "small")[:2] == (0, "nothing to compute: no such run is done\n")
    code, _, err = study("report", "small")
    assert code == 0
    assert "no run is done, so there is no behaviour to compute" in err


@pytest.mark.slow
def test_a_report_without_the_runs_that_the_manifest_asks_for_names_them(study: Study) -> None:
    study.runs["gru"].result_file.unlink()
    wanted = study.runs["gru"].read_config().fingerprint()
    record = {"planned": [{"number": 3, "name": "gru", "fingerprint": wanted}], "behaviour": [wanted]}
    write_json(study.path / "study.json", {"version": 3, "study": "small", **record})
    code, _, err = study("report", "small")
    assert code == 0
    assert "none of the runs in [report] behaviour (gru) is done" in err


@pytest.mark.process
def test_ctrl_c_stops_the_workers_and_cancel_stops_one_of_them(study: Study) -> None:
    study.order(wait=True)
    launcher = study.start("behaviour", "small", "--max-parallel", "2")
    jobs = [study.job(name) for name in ("rnn-b", "gru")]
    wait_for(lambda: [live_owner(job.lease_dir) for job in jobs], "both workers to own their jobs", until=all)
    with launching(study.path):  # a launch of the runs themselves is in nobody's way
        assert live_owner(launcher_dir(study.path))
    code, _, err = study("behaviour", "small")
    assert code == 1
    assert "study small/behaviour is already being launched" in err
    found = study("cancel", "runs/small/behaviour", "--only", "name=gru")
    assert found[0] == 0, found
    assert jobs[1].observe().state == "cancelled"
    assert live_owner(jobs[0].lease_dir)
    launcher.send_signal(signal.SIGINT)
    _, err = commands.finish(launcher)
    assert launcher.returncode == 130, err
    assert not any(live_owner(job.lease_dir) for job in jobs)
    study.order()
    assert study.behaviour()[1] == {"rnn-b": ("done", "computed"), "gru": ("done", "computed")}


@pytest.mark.process
def test_no_wait_leaves_a_launcher_behind(study: Study) -> None:
    launcher = study.start("behaviour", "small", "--no-wait", "--json")
    out, err = commands.finish(launcher)
    assert launcher.returncode == 0, err
    data = json.loads(out)["data"]
    assert data["study"] == "small/behaviour"
    # That launcher is the real command line: it has no stand-in.
    wait_for(
        lambda: [study.job(name).observe().state for name in ("rnn-b", "gru")],
        "both jobs to end",
        until=lambda states: set(states) <= {"failed", "done"},
    )
    wait_for(lambda: not live_owner(launcher_dir(study.path / "behaviour")), "the launcher left behind to end")


# -- the report ----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_report_computes_what_is_missing_first_and_then_nothing(study: Study) -> None:
    code, out, err = study("report", "small", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [(run["name"], run["reason"]) for run in document["data"]["behaviour"]] == [
        ("rnn-b", "computed"),
        ("gru", "computed"),
    ]
    assert (study.path / "report/index.html").exists()
    assert study("report", "small") == (0, "runs/small/report/index.html\n", "")
    assert study.behaviour("--only", "name=gru", "--window", "4")[0] == 0
    assert study("report", "small")[2] == "", "what was asked for by name stays"
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 1, "gru": 2}


@pytest.mark.process
@pytest.mark.parametrize("flag", ["--behaviour", "--trust"])
def test_a_report_on_a_study_of_somebody_else_computes_only_if_asked_and_with_trust_from_then_on(
    study: Study, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(study.folder / "of-another-user"))
    code, out, err = study("report", "small")
    assert (code, out) == (0, "runs/small/report/index.html\n"), err
    assert len(err.splitlines()) == 1
    assert "--trust computes what is missing" in err
    assert not (study.path / "behaviour").exists()
    assert not (study.path / "code").exists()
    code, _, err = study("report", "small", flag)
    assert (code, study.attempts()) == (0, {"rnn-a": 0, "rnn-b": 1, "gru": 1}), err
    study.runs["rnn-a"].best_checkpoint.write_bytes(b"others")
    code, _, err = study("report", "small")
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 2, "gru": 2}, err


@pytest.mark.process
def test_a_report_runs_no_kept_code_that_was_changed(study: Study) -> None:
    kept = keep_code(study.path).archive
    marker = study.folder / "planted-code-ran"
    assert kept is not None
    with zipfile.ZipFile(kept, "a") as file:
        file.writestr("torch.py", f"open({str(marker)!r}, 'w').close()")
    code, _, err = study("report", "small")
    assert code == 0, err
    assert not marker.exists()
    assert f"{kept.relative_to(study.folder)} is not the code that its name says (torch.py differs)" in err
    assert study.attempts() == {"rnn-a": 0, "rnn-b": 0, "gru": 0}
    assert (study.path / "report/index.html").exists()


@pytest.mark.slow
def test_a_report_without_behaviour_reads_no_checkpoint(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cli.launching.BehaviourLaunch", lambda study_dir: pytest.fail("asked for"))
    code, _, err = study("report", "small", "--no-behaviour")
    assert (code, err) == (0, "")
    assert not (study.path / "behaviour").exists()


@pytest.mark.process
def test_nothing_that_goes_wrong_with_behaviour_keeps_the_report_back(study: Study) -> None:
    page = study.path / "report/index.html"
    study.order(fail=[study.runs["gru"].id])
    code, _, err = study("report", "small")
    assert code == 0
    assert "behaviour of gru: failed: code: as it was told\n" in err
    assert page.exists()

    study.runs["gru"].best_checkpoint.unlink()
    code, _, err = study("report", "small")
    assert code == 0
    assert "behaviour of gru: missing: its checkpoints/best.pt is gone" in err

    (study.folder / "text" / "train.txt").unlink()
    study.runs["rnn-b"].behaviour_file.unlink()
    shutil.rmtree(page.parent)
    code, _, err = study("report", "small")
    assert code == 0, err
    assert err.startswith("behaviour is left as it is: ")
    assert "train.txt" in err
    assert page.exists()

    shutil.rmtree(page.parent)
    with launching(study.path / "behaviour"):
        code, _, err = study("report", "small")
    assert code == 0, err
    assert err.startswith("behaviour is left as it is: study small/behaviour is already being launched")
    assert page.exists()

    shutil.rmtree(page.parent)
    (study.path / "study.json").write_text("{")
    code, _, err = study("report", "small")
    assert code == 0
    assert "runs/small/study.json is damaged" in err
    assert page.exists()
