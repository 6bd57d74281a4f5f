from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqlm.models.output_loss import fused_output_loss


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gives, and how often each operation is called."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def plain_loss(output: nn.Linear, h: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output(h).flatten(0, 1), targets.flatten(), reduction="sum")


def layer_and_input(tokens: int, batch: int, hidden: int, vocab: int) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(1)
    output = nn.Linear(hidden, vocab).double()
    h = torch.randn(tokens, batch, hidden, dtype=torch.float64, requires_grad=True)
    return output, h, torch.randint(vocab, (tokens, batch))


def with_gradients(loss: Tensor, output: nn.Linear, h: Tensor) -> list[Tensor]:
    return [loss, *torch.autograd.grad(0.3 * loss, [h, output.weight, output.bias])]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.integers(1, 12)),
    chunk_tokens=st.integers(1, 40),
)
def test_any_chunk_gives_the_loss_and_gradients_of_the_plain_loss(
    shape: tuple[int, int, int, int], chunk_tokens: int
) -> None:
    output, h, targets = layer_and_input(*shape)
    found = with_gradients(fused_output_loss(output, h, targets, chunk_tokens=chunk_tokens), output, h)
    wanted = with_gradients(plain_loss(output, h, targets), output, h)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    output, h, targets = layer_and_input(40, 5, 3, 96)
    found = {}
    for chunk_tokens in (200, 50, 10):
        with Largest() as largest:
            fused_output_loss(output, h, targets, chunk_tokens=chunk_tokens).backward()
        found[chunk_tokens] = largest.numbers
    assert found == {200: 200 * 96, 50: 50 * 96, 10: 10 * 96}
    with Largest() as largest:
        plain_loss(output, h, targets).backward()
    assert largest.numbers == 200 * 96


SORTS = {
    "scatter_add",
    "scatter_add_",
    "scatter_reduce_",
    "index_add_",
    "index_put_",
    "_index_put_impl_",
    "index_copy_",
}
"""Operations that are a sort on a GPU if PyTorch is deterministic. Some versions copy to the device in it, or wait for
the device, so a CUDA graph cannot hold them."""


def test_the_loss_needs_nothing_that_is_a_sort_in_deterministic_mode() -> None:
    output, h, targets = layer_and_input(4, 2, 3, 5)
    with Largest() as operations:
        fused_output_loss(output, h, targets).backward()
    assert "mm" in operations.calls or "addmm" in operations.calls
    assert not operations.calls.keys() & SORTS


def test_logits_far_apart_lose_nothing() -> None:
    """A target of probability e^-3000 has a loss of 3000, not of infinity; the largest logit is 1e30 away from 0."""
    output, h, targets = layer_and_input(1, 2, 1, 2)
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.tensor([0.0, 3000.0]))
        targets.copy_(torch.tensor([[0, 1]]))
    assert fused_output_loss(output, h, targets).item() == pytest.approx(3000, rel=1e-12)
    with torch.no_grad():
        output.bias.fill_(1e30)
    assert fused_output_loss(output.float(), h.float(), targets).item() == pytest.approx(0, abs=1e30 * 1e-6)


def test_a_second_backward_pass_says_what_to_use_instead() -> None:
    output, h, targets = layer_and_input(2, 2, 3, 4)
    loss = fused_output_loss(output, h, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"one backward pass; use seqlm\.models\.reference"):
        loss.backward()


def test_a_target_outside_the_vocabulary_is_an_error() -> None:
    output, h, _ = layer_and_input(2, 2, 3, 4)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        fused_output_loss(output, h, torch.full((2, 2), 4))
