"""One rank's life as its files tell it afterwards."""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from seqlm.errors import EXIT_FAILED, EXIT_RUNG, EXIT_STOPPED, EXIT_STORAGE, STORAGE_EXITS, DivergedError, FileError
from seqlm.files import read_json
from seqlm.models import products
from seqlm.rundir import RunDirectory
from seqlm.training import attempt, distributed, worker
from seqlm.training.distributed import Rank, process_group
from seqlm.training.trainer import Trainer
from tests import commands
from tests.cancelling import cancel
from tests.seqlm.training.studies import make_config, make_run, write_text

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv("SEQLM_DATA", str(write_text(tmp_path / "text")))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    monkeypatch.setattr(attempt.StopSignal, "install", lambda self: None)  # the handlers of this process stay
    return make_run(tmp_path / "study" / "run", make_config(epochs=1))


def record_of(run: RunDirectory) -> dict[str, Any]:
    return read_json(run.worker_file(1)) or {}


def ended_by(monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]) -> None:
    def train(trainer: Trainer, made: attempt.Attempt, search: Any) -> None:
        assert not made.run.end(1).has_ended, "not before the end"
        end()

    monkeypatch.setattr(worker, "train", train)


def diverge() -> None:
    raise DivergedError("the loss is nan")


def stop() -> None:
    raise attempt.StopRequested


def leave_at_a_rung() -> None:
    raise attempt.LeftAtRungError("stopped at epoch 1: 3rd of 3, keeps 2")


def fill_the_disk() -> None:
    raise FileError("cannot write last.pt: no space left on device")


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("end", "code", "outcome", "says"),
    [
        (nothing, 0, "done", ""),
        (diverge, 1, "failed", "error: the loss is nan"),
        (stop, EXIT_STOPPED, "interrupted", "stopped; run again to resume"),
        (stop, EXIT_STOPPED, "interrupted", "cancelled; `retry` resumes it"),
        (leave_at_a_rung, EXIT_RUNG, "rung", ""),
        (fill_the_disk, EXIT_STORAGE, "failed", "error: cannot write last.pt: no space left on device"),
    ],
)
def test_however_an_attempt_ends_its_worker_leaves_why_and_when_it_began_and_ended(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: Callable[[], None],
    code: int,
    outcome: str,
    says: str,
) -> None:
    def cancel_and_end() -> None:
        if says.startswith("cancelled"):
            cancel(run)
        end()

    ended_by(monkeypatch, cancel_and_end)
    assert worker.main([str(run.path)]) == code
    assert capsys.readouterr().err.splitlines()[-1:] == ([says] if says else [])
    start, end_record = record_of(run), read_json(run.end_file(1)) or {}
    assert end_record["outcome"] == outcome
    assert TIME.fullmatch(start["started_at"])
    assert TIME.fullmatch(end_record["ended_at"])
    assert start["started_at"] <= end_record["ended_at"]
    assert start["pid"] == os.getpid()


def test_a_worker_that_cannot_record_its_failure_ends_as_one_whose_disk_failed(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileError("cannot write end.json: Input/output error")

    ended_by(monkeypatch, diverge)
    monkeypatch.setattr(RunDirectory, "write_end", refuse)
    assert worker.main([str(run.path)]) == EXIT_STORAGE


class Group:
    """A process group of another rank that never answers: nothing but the calls that begin and end it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.options: dict[str, Any] = {}
        self.has_ended = False
        monkeypatch.setenv("SEQLM_RENDEZVOUS", str(folder / "meeting"))
        monkeypatch.setattr(distributed, "_offer_port", lambda *_: dist.HashStore())
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(dist, "init_process_group", lambda **options: self.options.update(options))
        monkeypatch.setattr(dist, "destroy_process_group", lambda: setattr(self, "has_ended", True))


@pytest.mark.parametrize(
    ("end", "leaves"),
    [(nothing, True), (stop, True), (leave_at_a_rung, True), (diverge, False), (fill_the_disk, False)],
)
def test_a_rank_that_fails_stays_in_its_group_until_its_process_ends(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], leaves: bool
) -> None:
    """The others cannot notice the failure before it is on disk, and leaving could mean waiting for them."""
    group = Group(monkeypatch, run.path)
    rank = Rank(world_size=2)

    def work() -> None:
        with process_group(rank):
            end()

    attempt.Attempt(run=run, rank=rank, number=1).make(work)
    assert group.has_ended == leaves


def test_nccl_knows_its_device_before_the_first_collective_and_gloo_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(monkeypatch, tmp_path)
    for device, expected in (("cuda:1", ("nccl", torch.device("cuda:1"))), ("cpu", ("gloo", None))):
        with process_group(Rank(world_size=2, device=torch.device(device))):
            pass
        assert (group.options["backend"], group.options["device_id"]) == expected


def test_a_deterministic_worker_does_not_fill_memory_that_is_about_to_be_written(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_DETERMINISTIC", "1")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[Any] = []

    def look() -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        seen.append(torch.utils.deterministic.fill_uninitialized_memory)
        seen.append(os.environ["CUBLAS_WORKSPACE_CONFIG"])

    ended_by(monkeypatch, look)
    try:
        assert worker.main([str(run.path)]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert seen == [True, False, ":4096:8"]


def test_a_record_that_cannot_be_completed_changes_nothing_about_the_end(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_folder() -> None:
        run.attempt_dir(1).rename(run.path / "lost")

    ended_by(monkeypatch, lose_the_folder)
    assert worker.main([str(run.path)]) == 0


def test_a_configuration_that_cannot_be_read_just_now_is_trouble_with_the_disk(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, number = os.open, errno.ESTALE

    def fails(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == run.config_file.name:
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fails)
    assert worker.main([str(run.path)]) == 74
    assert capsys.readouterr().err == f"error: cannot read {run.config_file}: {os.strerror(number)}\n"


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json is missing" in line


def test_a_fault_of_onednn_is_a_line_in_the_log_and_the_record_says_what_multiplies(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEQLM_MATMUL", "onednn")
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    caches = products.onednn_fault, products.fp32_library
    try:
        for cached in caches:
            cached.cache_clear()
        assert worker.main([str(run.path)]) == 0
    finally:
        for cached in caches:
            cached.cache_clear()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "oneDNN" in line]
    assert "blas" in line
    assert "_reorder_linear_weight" in line
    assert record_of(run)["matmul"] == "blas"


def test_a_gpu_is_recorded_with_its_multiprocessors(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's generator gives its numbers to places in a tensor by them: a MIG instance has a part of the card's."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=14))
    for rank, expected in ((Rank(device=torch.device("cuda")), 14), (Rank(), 0)):
        attempt.Attempt(run=run, rank=rank, number=1).record_start()
        assert record_of(run)["multiprocessors"] == expected


@pytest.mark.parametrize("changed", [True, False])
def test_a_resume_with_another_library_of_products_is_a_line_in_the_log(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: bool
) -> None:
    monkeypatch.setattr(products, "fp32_library", lambda: "blas")
    monkeypatch.setattr(distributed, "fp32_library", lambda: "blas")
    assert worker.main([str(run.path)]) == 0
    assert "float32 matrix products on" in capsys.readouterr().out
    make_run(run.path, make_config(epochs=2))
    if changed:
        monkeypatch.setattr(products, "fp32_library", lambda: "onednn")
        monkeypatch.setattr(distributed, "fp32_library", lambda: "onednn")
    assert worker.main([str(run.path)]) == 0
    log = capsys.readouterr().out
    assert "resumed after 1 of 2 epochs" in log
    assert ("now matmul onednn instead of blas: the result is equal" in log) == changed


@pytest.mark.process
def test_a_program_that_cannot_print_its_error_ends_as_after_an_error_of_a_disk() -> None:
    code = "from seqlm.training.distributed import run_program; run_program(lambda: 1 // 0)"
    on_a_full_disk = commands.run(["sh", "-c", '"$0" -c "$1" >/dev/full 2>&1', sys.executable, code])
    assert on_a_full_disk.returncode in STORAGE_EXITS
    answer = commands.run([sys.executable, "-c", code])
    assert answer.returncode == EXIT_FAILED
    assert "ZeroDivisionError" in answer.stderr


@pytest.mark.process
def test_an_error_of_a_disk_that_nobody_has_caught_ends_a_program_as_one() -> None:
    code = (
        "import errno; from seqlm.training.distributed import run_program\n"
        "def main(): raise OSError(errno.ENOSPC, 'no space left')\n"
        "run_program(main)"
    )
    answer = commands.run([sys.executable, "-c", code])
    assert answer.returncode in STORAGE_EXITS, answer.stderr
