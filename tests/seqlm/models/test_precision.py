from collections.abc import Iterator

import pytest
import torch

from seqlm import machine
from seqlm.errors import BackendError
from seqlm.models.products import set_switches, use_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _switches_restored() -> Iterator[None]:
    yield
    set_switches("fp32")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    return found


def test_fp32_is_never_computed_in_less() -> None:
    torch.set_float32_matmul_precision("medium")
    assert use_precision("fp32", CPU) is None
    assert torch.get_float32_matmul_precision() == "highest"


def test_switches_are_those_of_the_last_precision() -> None:
    """cuDNN's recurrent layers have a TF32 switch of their own; sums of bf16 products never are bf16."""
    for precision, tf32 in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        set_switches(precision)  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False


def test_tf32_on_a_processor_is_refused() -> None:
    with pytest.raises(BackendError, match=r'^train.precision = "tf32" needs an NVIDIA GPU .*; use "fp32"$'):
        use_precision("tf32", CPU)


def test_bf16_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    with pytest.raises(BackendError, match=r"needs a processor with bf16 instructions \(avx512_bf16 or"):
        use_precision("bf16", CPU)
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    assert use_precision("bf16", CPU) is torch.bfloat16
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], indirect=True)
def test_ampere_and_later_have_both(capability: tuple[int, int]) -> None:
    assert use_precision("tf32", GPU) is None
    assert torch.get_float32_matmul_precision() == "high"
    assert use_precision("bf16", GPU) is torch.bfloat16


@pytest.mark.parametrize("capability", [(7, 5)], indirect=True)
def test_earlier_cards_have_neither(capability: tuple[int, int]) -> None:
    with pytest.raises(BackendError, match=r"compute capability 8\.0 or more, found Card"):
        use_precision("tf32", GPU)
    with pytest.raises(BackendError, match=r"compute capability 8\.0 or more, found Card"):
        use_precision("bf16", GPU)
