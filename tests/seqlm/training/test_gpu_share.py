from types import SimpleNamespace

import pytest
import torch

from seqlm.errors import BackendError
from seqlm.machine import CUDA_BYTES
from seqlm.training.distributed import Rank, limit_memory
from seqlm.training.failure import describe_failure

GIB = 2**30
ON_GPU = Rank(device=torch.device("cuda", 0))
NO_MEMORY = "CUDA out of memory. Tried to allocate 9.00 GiB."


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, torch.device]]:
    """The limits that PyTorch is given on a card of 80 GiB."""
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=80 * GIB)
    asked: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *words: asked.append(words))
    return asked


def test_a_share_is_limited_to_its_memory_without_cudas_own(limits: list[tuple[float, torch.device]]) -> None:
    limit_memory(ON_GPU, {"SEQLM_GPU_SHARE": "0.25"})
    ((fraction, device),) = limits
    assert fraction * 80 * GIB == pytest.approx(20 * GIB - CUDA_BYTES)
    assert device == ON_GPU.device


@pytest.mark.parametrize(("rank", "share"), [(ON_GPU, "1"), (ON_GPU, ""), (Rank(), "0.25")])
def test_a_whole_card_and_a_processor_have_no_limit(
    limits: list[tuple[float, torch.device]], rank: Rank, share: str
) -> None:
    limit_memory(rank, {"SEQLM_GPU_SHARE": share})
    assert limits == []


@pytest.mark.parametrize("share", ["0.25", "1"])
def test_a_run_over_its_share_is_short_of_memory_and_names_the_share(
    share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_GPU_SHARE", share)
    failure = describe_failure(torch.OutOfMemoryError(NO_MEMORY), rank=0)
    assert failure.kind == "oom"
    assert NO_MEMORY in failure.message
    assert ("its share of 0.25 of the GPU" in failure.message) == (share == "0.25")


def test_a_share_that_cuda_itself_fills_is_refused(limits: list[object]) -> None:
    expected = (
        r"^its share of 0\.005 of NVIDIA H100 80GB HBM3, 0\.4 GiB, is no more than CUDA itself takes \(0\.5 GiB\)"
    )
    with pytest.raises(BackendError, match=expected):
        limit_memory(ON_GPU, {"SEQLM_GPU_SHARE": "0.005"})
    assert limits == []


@pytest.mark.gpu
def test_pytorch_refuses_what_goes_beyond_the_share() -> None:
    card = torch.cuda.get_device_properties(0)
    torch.cuda.empty_cache()
    share = (CUDA_BYTES + torch.cuda.memory_reserved() + GIB) / card.total_memory
    try:
        limit_memory(ON_GPU, {"SEQLM_GPU_SHARE": f"{share:.6f}"})
        torch.empty(GIB // 2, dtype=torch.uint8, device=ON_GPU.device)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2 * GIB, dtype=torch.uint8, device=ON_GPU.device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, ON_GPU.device)
        torch.cuda.empty_cache()
