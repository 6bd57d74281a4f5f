from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from comparison import assert_same_values_and_gradients
from torch import Tensor

from seqlm.models.reference import MultiHeadAttention
from seqlm.models.transformer import attention as fused_attention


@pytest.fixture
def attention() -> MultiHeadAttention:
    """H = 6 in N = 2 heads of K = 3, on the scale at which weights are far from equal."""
    torch.manual_seed(1)
    attention = MultiHeadAttention(hidden_size=6, num_heads=2, keep=1.0).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()


def literal(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    """One sequence, one head, one query, one key at a time."""
    steps, batch, _ = x.shape
    outputs = [[x.new_zeros(0)] * batch for _ in range(steps)]
    for b in range(batch):
        q, k, v = (
            [linear.weight @ x[t, b] + linear.bias for t in range(steps)]
            for linear in (attention.W_q, attention.W_k, attention.W_v)
        )
        for t in range(steps):
            heads = []
            for head in (slice(0, 3), slice(3, 6)):
                scores = torch.stack([q[t][head] @ k[s][head] / math.sqrt(3) for s in range(t + 1)])
                weights = scores.exp() / scores.exp().sum()
                heads.append(sum(weights[s] * v[s][head] for s in range(t + 1)))
            outputs[t][b] = attention.W_o.weight @ torch.cat(heads) + attention.W_o.bias
    return torch.stack([torch.stack(row) for row in outputs])


def test_attention_equals_its_equations_in_values_and_gradients(attention: MultiHeadAttention, x: Tensor) -> None:
    assert_same_values_and_gradients([attention(x)], [literal(attention, x)], [x, *attention.parameters()])


def test_attention_equals_torchs_causal_scaled_dot_product_attention(attention: MultiHeadAttention, x: Tensor) -> None:
    q, k, v = (
        linear(x).view(5, 3, 2, 3).permute(1, 2, 0, 3) for linear in (attention.W_q, attention.W_k, attention.W_v)
    )
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted = attention.W_o(attended.permute(2, 0, 1, 3).reshape(5, 3, 6))
    assert_same_values_and_gradients([attention(x)], [wanted], [x, *attention.parameters()])


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_the_last_positions_attend_as_they_do_among_all(attention: MultiHeadAttention, x: Tensor, queries: int) -> None:
    qkv = torch.cat([linear(x) for linear in (attention.W_q, attention.W_k, attention.W_v)], dim=-1)
    found = attention.W_o(fused_attention(qkv, None, 2, queries=queries))
    torch.testing.assert_close(found, attention(x)[-queries:], rtol=0, atol=1e-10)


def test_dropout_acts_on_the_attention_weights_after_the_softmax(attention: MultiHeadAttention, x: Tensor) -> None:
    attention.dropout.p = 0.4
    seen = []
    attention.dropout.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    found = attention(x)
    ((weight, dropped),) = seen
    torch.testing.assert_close(weight.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert weight.triu(1).abs().max() == 0
    v = attention.W_v(x).view(5, 3, 2, 3)
    wanted = torch.einsum("bnts,sbnk->tbnk", dropped, v).reshape(5, 3, 6)
    torch.testing.assert_close(found, attention.W_o(wanted), rtol=0, atol=1e-10)


def test_masked_scores_are_minus_1e9_and_not_infinite(attention: MultiHeadAttention) -> None:
    # A first query whose own score is far below -1e9 tells the two apart: it then prefers the masked keys.
    with torch.no_grad():
        for linear in (attention.W_q, attention.W_k):
            linear.weight.zero_()
        attention.W_q.bias.fill_(1.0)
        attention.W_k.bias.fill_(-1e12)
    weights = []
    attention.dropout.register_forward_hook(lambda _module, inputs, _output: weights.append(inputs[0]))
    attention(torch.zeros(3, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(
        weights[0][0, 0, 0], torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_attention_biases_start_uniform_within_one_over_the_root_of_the_width() -> None:
    torch.manual_seed(3)
    attention = MultiHeadAttention(hidden_size=256, num_heads=16, keep=0.9)
    for linear in (attention.W_q, attention.W_k, attention.W_v, attention.W_o):
        assert 0.95 / 16 < linear.bias.abs().max() <= 1 / 16
        assert linear.bias.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.15)
