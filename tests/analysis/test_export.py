"""What is exported of a run: every value that a checkpoint covers, once, as the tracker's own library reads it."""

import contextlib
import json
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.export import export_run
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests import commands
from tests.analysis.exported import READERS, Value, of_csv, of_tensorboard
from tests.analysis.hand_made import add_run
from tests.commands import Ask
from tests.facts import owned

ROOT = Path(__file__).parents[2]
STEPS, EPOCHS = 10, 3
WHOLE = STEPS * EPOCHS
RESULT = {"epochs": EPOCHS, "test_ppl": 71.5}


def float32(value: float) -> float:
    (found,) = struct.unpack("<f", struct.pack("<f", value))
    return float(found)


def train_until(run: RunDirectory, covered: int, *, taken: int = 0) -> None:
    """Let a checkpoint cover ``covered`` steps of a run, with all records of them. ``taken``: steps beyond."""
    epochs, step = divmod(covered, STEPS)
    rows = [(1 / (number + 1), 1 / 3, 0.25) for number in range(covered + taken)]
    run.trace_file.write_bytes(b"".join(struct.pack("<3f", *row) for row in rows))
    records = [{"epoch": epoch, "steps": STEPS, "val_ppl": 100 / (epoch + 1), "lr": 0.1} for epoch in range(epochs)]
    write_json_lines(run.metrics_file, records)
    for path in (run.position_file, run.progress_file(1)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.progress_file(1), {"epoch": epochs, "step": step + taken, "steps": STEPS})
    write_json(run.position_file, {"epoch": epochs, "step": step})
    if epochs == EPOCHS:
        write_json(run.result_file, RESULT)


def expected(run: RunDirectory, covered: int) -> list[Value]:
    """What is to be exported of such a run. The last step of an epoch is exported together with the epoch."""
    found: list[Value] = []
    for step in range(covered):
        values = {"loss": 1 / (step + 1), "grad_norm": 1 / 3, "seconds": 0.25}
        found += [(run.id, f"step/{name}", step, float32(value)) for name, value in values.items()]
    for epoch in range(covered // STEPS):
        values = {"epoch": epoch, "steps": STEPS, "val_ppl": 100 / (epoch + 1), "lr": 0.1}
        found += [(run.id, f"epoch/{name}", (epoch + 1) * STEPS - 1, value) for name, value in values.items()]
    if covered == WHOLE:
        found += [(run.id, f"result/{name}", covered - 1, value) for name, value in RESULT.items()]
    return sorted(found)


def a_run(study: Path, order: int = 0) -> RunDirectory:
    run = add_run(study, order, f"gru-{order}", "gru", "adam", [], lr=0.1 + order, done=False, epochs=EPOCHS)
    train_until(run, 0)
    return run


@contextlib.contextmanager
def killed(out: Path, is_killed: bool) -> Iterator[None]:
    """Leave what an export leaves that is killed: its files, and the record of the export before."""
    record = out / "exported.json"
    before = record.read_bytes() if record.is_file() else b"{}"
    yield
    if is_killed:
        record.write_bytes(before)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("target", READERS)
def test_the_library_reads_back_each_covered_value_once(target: str, tmp_path: Path) -> None:
    runs, out = [a_run(tmp_path / "runs" / "study", order) for order in range(2)], tmp_path / "out"
    export = [sys.executable, ROOT / "launch.py", "export", "study", "--to", target, "--output", out, "--json"]
    points = []
    for covered in ((14, 0), (WHOLE, 7), (WHOLE, 7)):
        for run, steps in zip(runs, covered, strict=True):
            train_until(run, steps, taken=3)
        with killed(out, len(points) == 1):
            document = json.loads(commands.run(export, cold=True, cwd=tmp_path, check=True).stdout)
        points.append([document["data"]["points"].get(run.id, 0) for run in runs])
    assert points == [[14, 0], [WHOLE - 14 + 1, 7], [WHOLE - 14 + 1, 7]]
    read = [sys.executable, "-m", "tests.analysis.exported", target, out]
    found = json.loads(commands.run(read, cold=True, cwd=ROOT, check=True).stdout)
    rounded = float32 if target == "tensorboard" else float
    wanted = [[*place, rounded(value)] for *place, value in [*expected(runs[0], WHOLE), *expected(runs[1], 7)]]
    assert found == sorted(wanted)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, WHOLE), st.booleans()), min_size=1, max_size=5), st.integers(0, 5))
def test_however_often_a_run_is_exported_each_value_is_there_once(rounds: list[tuple[int, bool]], taken: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, out = a_run(Path(folder, "study")), Path(folder, "out")
        out.mkdir()
        for steps, is_killed in sorted(rounds):
            train_until(run, steps, taken=taken)
            with killed(out, is_killed):
                export_run(run, "gru", "tensorboard", out)
        found = sorted(of_tensorboard(out))
    assert found == [(*place, float32(value)) for *place, value in expected(run, max(rounds)[0])]


def test_a_run_without_a_trace_is_exported_by_epochs(tmp_path: Path) -> None:
    run = add_run(tmp_path / "study", 0, "gru", "gru", "adam", [90.0, 80.0])
    assert export_run(run, "gru", "csv", tmp_path) == 3
    values = {(name, step): value for _, name, step, value in of_csv(tmp_path)}
    assert [values["epoch/val_ppl", epoch] for epoch in range(2)] == [90.0, 80.0]
    assert values["result/test_ppl", 1] == 80.0


def test_watch_exports_until_no_run_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    run, ends = a_run(tmp_path / "study"), contextlib.ExitStack()
    train_until(run, 4)
    ends.enter_context(owned(run))
    later = iter((lambda: train_until(run, 12), lambda: (train_until(run, WHOLE), ends.close())))
    monkeypatch.setattr("jobs.cli.studying.time", SimpleNamespace(sleep=lambda seconds: next(later)()))
    words = ["export", str(run.path.parent), "--to", "csv", "--output", str(tmp_path / "out"), "--watch"]
    code, data, _ = ask(*words)
    assert (code, data["points"]) == (0, {run.id: WHOLE + 1})
    assert sorted(of_csv(tmp_path / "out")) == expected(run, WHOLE)


@pytest.mark.parametrize("library", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_library_is_one_line(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    add_run(tmp_path / "study", 0, "gru", "gru", "adam", [90.0])
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    code, error, _ = ask("export", str(tmp_path / "study"), "--to", library, "--output", str(tmp_path / "out"))
    assert code == 2
    assert f"seqlm[{library}]" in error["message"]
    assert "\n" not in error["message"]


def test_a_run_of_many_steps_is_exported_in_little_memory(tmp_path: Path) -> None:
    steps = 40_000
    run = add_run(tmp_path / "small", 0, "m", "gru", "adam", [100.0])
    run.trace_file.write_bytes(struct.pack("<3f", 1.0, 0.5, 0.25) * steps)
    write_json_lines(run.metrics_file, [{"epoch": 0, "steps": steps, "val_ppl": 100.0}])
    run.position_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.position_file, {"epoch": 1, "step": 0})
    tracemalloc.start()
    try:
        assert export_run(run, "m", "csv", tmp_path / "exported") >= steps
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * steps, "bytes: a table for each step takes four times as much"
