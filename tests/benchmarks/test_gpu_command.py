"""``python -m benchmarks.gpu``, rehearsed on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import workers
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.folder import PARTS, Budget, Results
from benchmarks.gpu.study import LEAST_SECONDS, Pace, study, tiny_text
from benchmarks.gpu.summary import as_markdown
from benchmarks.shapes import published, tiny
from jobs.attempt.supervisor import start_rank
from seqlm.rundir import RunDirectory
from tests import blank, commands, warm
from tests.waiting import SESSION_VARIABLE, wait_for

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out"]


def read(folder: Path, part: str) -> dict[str, Any]:
    return Results(folder).read(part)


@pytest.mark.process
def test_a_rehearsal_goes_through_all_parts_in_a_folder_that_has_never_seen_it(tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    # The tests that it runs are a session of their own, which looks for what it leaves behind.
    env = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE}
    answer = commands.run([*COMMAND, str(out)], cwd=ROOT, env=env, preexec_fn=blank.reports)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = {part: read(out, part) for part in PARTS}
    for part, document in found.items():
        assert document["complete"], part
        assert (document["error"], document["failures"]) == (None, []), part
        assert document["device"]["name"].startswith("rehearsal on ")
        assert document["versions"]["torch"] == torch.__version__
    assert " passed" in found["tests"]["summary"]
    assert len(found["synchronisations"]["cases"]) >= 4
    for shape in found["steps"]["cases"].values():
        assert shape["profiles"]["ours-fp32"]["kernels"] > 10
        assert shape["peak_memory_mb"].keys() == {name for name, spread in shape["step_ms"].items() if spread}
        assert shape["share_of_card"]["ours-fp32"].keys() == {"gemm", "bandwidth"}
    (resumed,) = found["resume"]["runs"].values()
    assert resumed["resumed_from"]["step"] > 0
    assert found["sharing"]["modes"]["without MPS"]["runs"].keys() == {"1", "2"}
    assert found["sharing"]["modes"]["with MPS"]["unavailable"] == "no GPU"
    assert "ours-fp32 sdpa / ours-fp32" in found["variants"]["cases"]["transformer-2x16-b4"]["times_as_fast"]
    for run in found["study"]["runs"]:
        assert (run["state"], len(run["curves"]["val_ppl"]), run["published"]["val_ppl"]) == ("done", 2, 50)
        assert min(run["curves"]["val_ppl"]) == run["best_val_ppl"]
    assert found["study"]["report"] == "written"
    summary = (out / "summary.md").read_text()
    for part in PARTS:
        assert f"| {part} | complete |" in summary
    for text in (summary, *(Results(out).file(part).read_text() for part in PARTS)):
        for folder in (ROOT, tmp_path, Path(sys.prefix)):
            assert str(folder) not in text

    times = {part: Results(out).file(part).stat().st_mtime_ns for part in PARTS}
    again = commands.run([*COMMAND, str(out)], cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == [f"{part}: done before" for part in PARTS]
    assert {part: Results(out).file(part).stat().st_mtime_ns for part in PARTS} == times


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_call_that_ends_early_loses_the_part_under_way_alone(tmp_path: Path, number: signal.Signals) -> None:
    argv = [*COMMAND, str(tmp_path), "--parts", "synchronisations", "resume"]
    call = commands.start(argv, cwd=ROOT)
    wait_for(lambda: Results(tmp_path).file("resume").exists(), "the second part has begun")
    call.send_signal(number)
    _, stderr = commands.finish(call)
    if number == signal.SIGKILL:
        assert call.returncode == -number
    else:
        assert call.returncode == 130
        assert stderr == "error: interrupted; the same command goes on from here\n"
        assert "| synchronisations | complete |" in (tmp_path / "summary.md").read_text()
    assert read(tmp_path, "synchronisations")["complete"]
    assert not read(tmp_path, "resume")["complete"]
    assert commands.run([*argv, "--minutes", "0"], cwd=ROOT).stdout.splitlines() == [
        "synchronisations: done before",
        "resume: no time left",
        "not complete: resume; the same command goes on from here",
    ]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--minutes", "soon"], "argument --minutes: expected a number of at least 0, got soon"),
        (["--parts", "stepps"], "argument --parts: invalid choice: 'stepps'"),
        (["--reherse"], "unrecognized arguments: --reherse"),
        (["--ptb", "nowhere.zip"], "nowhere.zip does not exist; expected a folder or a zip file with"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"error: {line}")
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_without_a_gpu_it_says_what_can_be_done(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    argv = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    answer = commands.run(argv, cwd=ROOT, env=env)
    assert answer.returncode == 2
    expected = "torch sees no GPU here; --rehearse goes through all parts on the CPU, at tiny sizes"
    assert answer.stderr == f"error: {expected}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.process
def test_the_folder_of_another_device_is_refused(tmp_path: Path) -> None:
    Results(tmp_path).write("steps", {"device": {"name": "NVIDIA H100"}, "complete": True})
    answer = commands.run([*COMMAND, str(tmp_path)], cwd=ROOT)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: --out: {tmp_path} holds results of NVIDIA H100, this is rehearsal on ")


class NoTime:
    """A budget that lets the study begin and ends it at once."""

    seconds_left = LEAST_SECONDS + 1e-9


@pytest.mark.process
def test_a_study_whose_time_is_up_goes_on_in_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", subprocess.run)
    blank.reports()
    results = Results(tmp_path)
    said: list[str] = []
    for budget in (NoTime(), Budget(None)):
        document: dict[str, Any] = {"rehearsal": True}
        data = tiny_text(tmp_path)
        options = {"data": data, "precision": "fp32", "say": said.append}
        study(document, lambda: None, budget, results, **options)  # type: ignore[arg-type]
    assert document["complete"]
    assert said[-1] == "study: 2 of 2 runs are done"
    assert said[0] != said[-1]


def test_without_the_corpus_the_study_says_what_it_needs(tmp_path: Path) -> None:
    document: dict[str, Any] = {"rehearsal": False}
    said: list[str] = []
    options: dict[str, Any] = {"data": None, "precision": "fp32", "say": said.append}
    study(document, lambda: None, Budget(None), Results(tmp_path), **options)
    assert not document["complete"]
    assert document["needs"].startswith("the Penn Treebank: --ptb FILE.zip or FOLDER, or SEQLM_DATA")
    assert said == [f"study: needs {document['needs']}"]


def test_the_pace_comes_from_measured_steps_and_memory() -> None:
    shapes = {shape.name: shape.config for shape in published()}
    small, large = shapes["rnn-2x512-b20"], shapes["rnn-2x2000-b128"]
    steps = {"rnn-2x512-b20": {"step_ms": {"ours-fp32": {"median": 2.0}}, "peak_memory_mb": {"ours-fp32": 1000.0}}}
    pace = Pace(steps=steps, at_once=4, card_bytes=80 * 10**9, precision="fp32")
    windows = (929_589 // 20 - 1) // 35
    assert pace.seconds(small, 929_589, 10_000) == pytest.approx(40 * windows * 2e-3)
    assert pace.seconds(large, 929_589, 10_000) > pace.seconds(small, 929_589, 10_000)
    assert pace.share(small, 10_000) == 0.25
    tight = Pace(steps=steps, at_once=4, card_bytes=4 * 10**9, precision="fp32")
    assert tight.share(small, 10_000) == 0.51, "a gigabyte and a half, and what CUDA takes"
    assert Pace(steps={}, at_once=1, card_bytes=None, precision="fp32").share(large, 10_000) == 0


@pytest.mark.process
def test_a_run_that_resumes_into_other_weights_is_found(tmp_path: Path) -> None:
    text = workers.write_text(tmp_path / "text", tiny()[1], 40)
    runs: list[RunDirectory] = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        run = workers._new_run(tmp_path / name, tiny()[1], epochs=1, seed=seed)
        workers._finish(run, workers.start_worker(run, text, "cpu", {}))
        runs.append(run)
    assert workers._differences(runs[0], runs[1]) == []
    differences = workers._differences(runs[0], runs[2])
    assert "last.pt model.output.weight" in differences
    assert "metrics.jsonl" in differences


CONTROL = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY: $*" >>"$CALLS"
if [ $# = 0 ]; then cat >>"$CALLS"; else exit "$CODE"; fi
"""


@pytest.mark.process
@pytest.mark.parametrize(("code", "reason"), [("1", "nvidia-cuda-mps-control does not start: "), ("0", "a process ")])
def test_an_mps_server_that_is_of_no_use_is_said_so_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    """Here a process can never use the card: there is none."""
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(CONTROL)
    control.chmod(0o755)
    for name, value in {"CALLS": str(tmp_path / "calls"), "CODE": code, "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    with pytest.raises(workers.MpsUnavailable, match=f"^{reason}"), workers.mps("cuda"):
        pytest.fail("there is no MPS")
    start, end, quit_ = (tmp_path / "calls").read_text().splitlines()
    assert start.endswith("/pipe: -d")
    assert end == start.removesuffix("-d")
    assert quit_ == "quit"
    assert not Path(start.partition(":")[0]).exists()


def test_the_summary_of_an_empty_folder_lists_what_has_not_begun(tmp_path: Path) -> None:
    text = as_markdown(Results(tmp_path))
    assert all(f"| {part} | not begun |" in text for part in PARTS)


@pytest.mark.process
def test_a_case_whose_process_dies_ends_alone_and_is_measured_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(argv: list[str], *words: Any) -> Any:
        started.append(argv[argv.index("--case") + 1])
        dies = len(started) == 2
        return start_rank([sys.executable, "-c", "import os; os.abort()"] if dies else argv, *words)

    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    monkeypatch.setattr("benchmarks.gpu.__main__.start_rank", start)
    argv = ["--rehearse", "--out", str(tmp_path), "--parts", "synchronisations"]
    assert main(argv) == 1
    found = read(tmp_path, "synchronisations")
    errors = [record["error"] for record in found["cases"].values()]
    assert len(errors) == len(started) > 2
    assert [error is None for error in errors] == [place != 1 for place in range(len(errors))]
    assert not found["complete"]
    failed = started[1]
    started[:] = ["", ""]
    assert main(argv) == 0
    assert started[2:] == [failed]
    assert read(tmp_path, "synchronisations")["complete"]


@pytest.mark.process
def test_a_fault_of_ours_in_one_part_costs_that_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    monkeypatch.setattr(workers, "resume", fail)
    monkeypatch.setattr(workers, "sharing", lambda document, *_: document.update(complete=True))
    assert main(["--rehearse", "--out", str(tmp_path), "--parts", "resume", "sharing"]) == 1
    assert read(tmp_path, "resume")["error"] == "KeyError: 'a fault'"
    assert not read(tmp_path, "resume")["complete"]
    assert read(tmp_path, "sharing")["complete"]
    assert "Traceback" in capsys.readouterr().err
