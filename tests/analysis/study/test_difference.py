"""What differs between two runs: each planted difference is found, and nothing else."""

import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.study.difference import differences, patch
from seqlm.files import make_directory, read_json, write_json
from seqlm.reading import read_archive
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt
from tests.analysis.hand_made import add_run

STEPS = 10


def a_run(study: Path, lr: float = 0.1) -> RunDirectory:
    """A run of three epochs with a kept copy of its code."""
    run = add_run(
        study,
        0,
        "gru",
        "gru",
        "adam",
        [90.0, 80.0, 70.0],
        lr=lr,
        record={"steps": STEPS},
        result={"corpus_sha256": "ab" * 32},
    )
    for name in ("step.py", "loss.py"):
        write_code(run, name, "first = 1\nlast = 2\n")
    add_attempt(run, 1)
    return run


def add_attempt(run: RunDirectory, attempt: int, **fields: Any) -> None:
    write_attempt(run, attempt, start=0.0, end=30.0)
    change(run.worker_file(attempt), **{"code": "/any/place/3f1c-0123", "torch": "2.13.0", **fields})
    change_packages(run, numpy="2.0.0")


def write_code(run: RunDirectory, name: str, text: str) -> None:
    path = run.path.parent / "code" / "3f1c-0123.zip"
    path.parent.mkdir(exist_ok=True)
    files = {**(read_archive(path) if path.exists() else {}), f"seqlm/{name}": text.encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)


def change_packages(run: RunDirectory, **packages: str) -> None:
    """Let the worker have recorded these packages."""
    digest = f"{len(packages):064x}"
    make_directory(run.environment(digest).parent)
    write_json(run.environment(digest), {"driver": None, "packages": packages})
    change(run.worker_file(run.last_attempt()), environment=digest)


def change(path: Path, **fields: Any) -> None:
    write_json(path, {**(read_json(path) or {}), **fields})


def write_steps(run: RunDirectory, losses: Sequence[float], missing: int | None = None) -> None:
    rows = [(0.0, 0.0, 0.0) if step == missing else (loss, 1.0, 0.5) for step, loss in enumerate(losses)]
    run.trace_file.write_bytes(b"".join(struct.pack("<3f", *row) for row in rows))


PLANTED: dict[tuple[str, str], Callable[[RunDirectory], None]] = {
    ("data", "sha256"): lambda run: change(run.result_file, corpus_sha256="cd" * 32),
    ("code", "seqlm/step.py"): lambda run: write_code(run, "step.py", "first = 1\nlast = 3\n"),
    ("code", "seqlm/new.py"): lambda run: write_code(run, "new.py", "pass\n"),
    ("versions", "torch"): lambda run: change(run.worker_file(1), torch="2.14.0"),
    ("versions", "ray"): lambda run: change_packages(run, numpy="2.0.0", ray="2.50.0"),
    ("device", "threads"): lambda run: change(run.worker_file(1), threads=3),
    ("device", "device"): lambda run: add_attempt(run, 2, device="NVIDIA H100"),
    ("results", "test_ppl"): lambda run: change(run.result_file, test_ppl=1.0),
}


def test_two_trainings_of_one_run_do_not_differ(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    add_attempt(right, 2)
    change(right.provenance_file, launched_at="2026-03-02T09:00:00+00:00", host="node08", user="another")
    change(right.result_file, elapsed_seconds=1.0, finished_at="2026-03-02T09:00:00+00:00", attempt=2)
    assert differences(left, right) == []


@pytest.mark.parametrize("planted", PLANTED, ids=" ".join)
def test_a_planted_difference_is_found_and_nothing_else(planted: tuple[str, str], tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    PLANTED[planted](right)
    (found,) = differences(left, right)
    assert (found.kind, found.key) == planted
    (mirrored,) = differences(right, left)
    assert (mirrored.a, mirrored.b) == (found.b, found.a)


def test_a_key_of_the_configuration_differs_with_both_values(tmp_path: Path) -> None:
    (found,) = differences(a_run(tmp_path), a_run(tmp_path, lr=0.2))
    assert found == ("configuration", "optim.lr", 0.1, 0.2, None, None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, RunDirectory]:
    folder = tmp_path_factory.mktemp("pair")
    return a_run(folder / "a"), a_run(folder / "b")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 29), st.integers(1, 30), st.integers(0, 29), st.sampled_from([math.nan, 3.5]))
def test_the_first_step_whose_losses_differ(
    pair: tuple[RunDirectory, RunDirectory], at: int, length: int, later: int, other: float
) -> None:
    losses = [0.1 * step for step in range(30)]
    changed = {at, max(at, later)}
    write_steps(pair[0], losses)
    write_steps(pair[1], [other if step in changed else loss for step, loss in enumerate(losses)][:length])
    places = [(one.kind, one.epoch, one.step) for one in differences(*pair)]
    assert places == [("losses", *divmod(at, STEPS))] * (at < length)


def test_steps_that_no_run_or_one_run_has_recorded_do_not_differ(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    write_steps(left, [1.0, 2.0, 3.0])
    write_steps(right, [1.0, 2.5, 3.0], missing=1)
    assert differences(left, right) == []


def test_what_one_run_has_not_recorded_is_no_difference(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    right.worker_file(1).unlink()
    change(right.provenance_file, code={"path": "/the/working/tree"})
    assert differences(left, right) == []


def test_the_patch_turns_the_code_of_one_run_into_that_of_the_other(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    assert patch(left, left) == ""
    write_code(right, "step.py", "first = 1\nlast = 3\n")
    lines = patch(left, right).splitlines()
    assert [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")] == ["-last = 2", "+last = 3"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    left, right = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    right.config_file.write_text("{")
    (found,) = differences(left, right)
    assert found.kind == "damaged"
    assert str(right.config_file) in found.a
