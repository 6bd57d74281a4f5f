import errno
from pathlib import Path

import pytest
import torch

from seqlm.ends import end_of, verdict
from seqlm.errors import CheckpointError, DivergedError, FileError
from seqlm.training import failure
from seqlm.training.failure import describe_failure, failure_kind, failure_text, making_weights

NCCL_SAYS = "(run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalid"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DivergedError("the loss of a step is nan"), "diverged"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            "oom",
        ),
        (RuntimeError("Read error [127.0.0.1]:11423: Connection reset by peer"), "node"),
        (RuntimeError("Connection closed by peer [127.0.0.1]"), "node"),
        (RuntimeError("Wait timeout"), "node"),
        (torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0"), "node"),
        (torch.distributed.DistNetworkError("The client socket has timed out after 600000ms"), "node"),
        (FileError("cannot write x: No space left on device"), "node"),
        (OSError(errno.ENOSPC, "No space left on device"), "node"),
        (OSError(errno.ESTALE, "Stale file handle"), "node"),
        (CheckpointError("last.pt is truncated"), "code"),
        (ValueError("a bug"), "code"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (torch.distributed.DistBackendError("ncclUnhandledCudaError: Cuda failure 2 'out of memory'"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "oom"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (RuntimeError("std::bad_alloc"), "oom"),
        (torch.distributed.DistBackendError("NCCL error: unhandled system error"), "node"),
        (torch.distributed.DistBackendError(f"NCCL error in: x.cpp:1, invalid usage {NCCL_SAYS}Usage: ..."), "code"),
        (
            torch.distributed.DistBackendError(f"NCCL error in: x.cpp:1, invalid argument {NCCL_SAYS}Argument: ..."),
            "code",
        ),
        (RuntimeError("[1] is setting up NCCL communicator ... Broken pipe"), "node"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node"),
        (RuntimeError("Unable to determine the device handle for GPU0: GPU has fallen off the bus"), "node"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "node"),
        (RuntimeError("CUDA error: device-side assert triggered"), "code"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "code"),
        (RuntimeError("CUDA error: unspecified launch failure"), "code"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "node"),
        (RuntimeError("CUDA error: MPS client has been terminated by the server"), "node"),
        (RuntimeError("CUDA error: MPS server is not ready to accept new MPS client requests"), "node"),
        (KeyError("CUDA out of memory"), "code"),
        (KeyboardInterrupt(), "preempted"),
    ],
)
def test_a_failure_has_the_kind_that_its_policy_needs(error: BaseException, kind: str) -> None:
    assert failure_kind(error, ranks=2) == kind


@pytest.mark.parametrize("text", ["the request timed out", "Broken pipe", "Connection reset by peer"])
def test_a_run_of_one_rank_has_lost_no_other_rank(text: str) -> None:
    failure = describe_failure(RuntimeError(text), rank=0, ranks=1)
    assert (failure.kind, failure.peer_lost) == ("code", False)
    assert failure.message == f"RuntimeError: {text}"


@pytest.mark.parametrize("says", ["device-side assert triggered", "an illegal memory access was encountered"])
def test_under_mps_a_fault_may_be_that_of_another_run(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    error = RuntimeError(f"CUDA error: {says}")
    assert failure_kind(error) == "code", "no daemon is there"
    (tmp_path / "control").touch()
    failure = describe_failure(error, rank=0)
    assert failure.kind == "node"
    assert says in failure.message
    assert "MPS" in failure.message
    assert failure_kind(ValueError(says)) == "code"


def test_two_ranks_on_one_card_are_told_what_to_do() -> None:
    says = f"NCCL error in: x.cpp:1, invalid usage {NCCL_SAYS}Usage: ...\nDuplicate GPU detected : rank 0 and rank 1"
    failure = describe_failure(torch.distributed.DistBackendError(says), rank=0)
    assert failure.kind == "code"
    assert failure.message.startswith("two ranks are on one card")
    assert "resources.ranks = 1" in failure.message


def test_a_failure_is_one_line_with_its_place() -> None:
    try:
        raise ValueError("first line\nsecond line")
    except ValueError as error:
        failure = describe_failure(error, rank=1)
        text = failure_text(error)
    assert failure.message == "ValueError: first line"
    assert failure.where.startswith("test_failure.py:")
    assert failure.outcome == "failed"
    assert "Traceback" in text, "a fault of the code shows where it lies"
    assert failure_text(DivergedError("the loss is nan")) == "error: the loss is nan"


def test_a_lost_rank_is_named_before_the_words_of_the_library() -> None:
    failure = describe_failure(RuntimeError("Connection reset by peer. GLHF!"), rank=0, ranks=2)
    assert failure.message.startswith("rank 0 lost another rank of the run, which ended or whose machine is gone")


def raised(first: BaseException, second: BaseException, *, how: str = "while handling") -> BaseException:
    """``second`` as it is after it was raised because of ``first``."""
    try:
        try:
            raise first
        except BaseException as error:
            if how == "while handling":
                raise second  # noqa: B904 -- as the end of a capture does
            raise second from (error if how == "from" else None)
    except BaseException as error:
        return error


NO_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
INVALIDATED = "CUDA error: operation failed due to a previous error during capture"


@pytest.mark.parametrize("how", ["while handling", "from"])
def test_memory_that_runs_out_in_a_capture_is_named_not_the_capture(how: str) -> None:
    error = raised(NO_MEMORY, RuntimeError(INVALIDATED), how=how)
    failure = describe_failure(error, rank=0)
    assert failure.kind == "oom"
    assert failure.message == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert failure.where.endswith(" in raised")


def test_memory_that_ran_out_before_is_not_to_blame_for_what_was_raised_apart_from_it() -> None:
    assert failure_kind(raised(NO_MEMORY, ValueError("a bug"), how="from None")) == "code"
    assert failure_kind(raised(MemoryError(), DivergedError("the loss is nan"))) == "diverged"
    assert failure_kind(raised(OSError(errno.ENOMEM, "memory"), FileError("cannot write x"))) == "node"
    assert failure_kind(raised(ValueError("a bug"), RuntimeError(INVALIDATED))) == "code"


def test_a_cause_that_is_its_own_cause_has_an_end() -> None:
    error = ValueError("a bug")
    error.__cause__ = error
    assert failure_kind(error) == "code"


def test_code_that_was_deleted_under_a_run_is_no_fault_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ModuleNotFoundError("No module named 'seqlm.training.records'")
    assert failure_kind(error) == "code"
    monkeypatch.setattr(failure, "__file__", str(tmp_path / "gone" / "failure.py"))
    record = describe_failure(error, rank=0)
    assert record.kind == "node"
    assert "deleted" in record.message


@pytest.mark.parametrize("error", [MemoryError("8 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_allocation_that_fails_before_the_first_batch_is_not_tried_in_smaller_parts(error: Exception) -> None:
    with pytest.raises(type(error)), making_weights():
        raise error
    failure = describe_failure(error, rank=0)
    assert (failure.kind, failure.before_batch) == ("oom", True)
    end = end_of(1, [failure], [])
    assert verdict({"oom": 3, "max_stalled_retries": 9}, [end], most_micro_batches=64).delay is None
    assert describe_failure(MemoryError(), rank=0).before_batch is None


def test_another_error_before_the_first_batch_is_not_one_of_memory() -> None:
    with pytest.raises(ValueError, match="a bug") as raised, making_weights():
        raise ValueError("a bug")
    assert describe_failure(raised.value, rank=0).before_batch is None
