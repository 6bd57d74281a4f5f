from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from comparison import assert_same_values_and_gradients
from torch import Tensor, nn

from seqlm.architectures import RecurrentConfig
from seqlm.models import LanguageModel, build_model

VOCAB_SIZE = 11
Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


def rnn_step(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    """h_t from column vectors, as the reference writes it."""
    return torch.tanh(layer.W_x.weight @ x + layer.W_h.weight @ h + layer.W_x.bias)


def gru_step(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    """h' from column vectors, as the reference writes it."""
    W_r, W_z, W_h = layer.W.weight.chunk(3)  # noqa: N806
    b_r, b_z, b_h = layer.W.bias.chunk(3)
    U_r, U_z = layer.U_rz.weight.chunk(2)  # noqa: N806
    U_h = layer.U_h.weight  # noqa: N806
    r = 1 / (1 + torch.exp(-(W_r @ x + U_r @ h + b_r)))
    z = 1 / (1 + torch.exp(-(W_z @ x + U_z @ h + b_z)))
    c = torch.tanh(W_h @ x + U_h @ (r * h) + b_h)
    return (1 - z) * h + z * c


STEPS: dict[str, Step] = {"rnn": rnn_step, "gru": gru_step}
recurrent_only = pytest.mark.parametrize("arch", ["rnn", "gru"])


def literal(
    step: Step, model: LanguageModel, tokens: Tensor, state: Tensor, masks: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The whole model, one sequence and one time step at a time; ``masks`` as the reference places dropout."""
    steps, batch = tokens.shape
    logits: list[list[Tensor]] = [[] for _ in range(steps)]
    last = []
    for b in range(batch):
        h = list(state[:, b])
        for t in range(steps):
            x = model.embedding.weight[tokens[t, b]]
            x = x if masks is None else masks[0][t, b] * x
            for depth, layer in enumerate(model.layers):
                h[depth] = step(layer, x, h[depth])
                x = h[depth] if masks is None else masks[depth + 1][t, b] * h[depth]
            logits[t].append(model.output.weight @ x + model.output.bias)
        last.append(torch.stack(h))
    return torch.stack([torch.stack(row) for row in logits]), torch.stack(last, dim=1)


def random_state(model: LanguageModel, batch: int) -> Tensor:
    return torch.empty_like(model.initial_state(batch)).uniform_(-1, 1).requires_grad_()


@recurrent_only
def test_a_recurrent_model_equals_its_equations_in_values_and_gradients(
    arch: str, model: LanguageModel, tokens: Tensor
) -> None:
    model.eval()
    state = random_state(model, tokens.shape[1])
    assert_same_values_and_gradients(
        model(tokens, state), literal(STEPS[arch], model, tokens, state), [state, *model.parameters()]
    )


@recurrent_only
def test_dropout_in_training_is_on_the_embedding_and_each_output_and_nowhere_else(
    arch: str, fused: LanguageModel, tokens: Tensor, dropout_record
) -> None:
    model, state = fused, random_state(fused, tokens.shape[1])
    found = model(tokens, state)
    assert [mask.shape[-1] for mask in dropout_record.masks] == [5, 6, 6, 6]
    assert dropout_record.keeps == [0.5] * 4
    wanted = literal(STEPS[arch], model, tokens, state, dropout_record.masks)
    assert_same_values_and_gradients(found, wanted, [state, *model.parameters()])


@pytest.mark.parametrize("arch", ["rnn"])
def test_the_rnn_equals_torch_nn_rnn_in_values_and_gradients(arch: str, fused: LanguageModel, tokens: Tensor) -> None:
    model = fused.eval()
    reference = nn.RNN(5, 6, num_layers=3, dtype=torch.float64)
    ours, theirs = [], []
    with torch.no_grad():
        for depth, layer in enumerate(model.layers):
            getattr(reference, f"bias_hh_l{depth}").zero_()
            names = (f"weight_ih_l{depth}", f"bias_ih_l{depth}", f"weight_hh_l{depth}")
            for name, parameter in zip(names, (layer.W_x.weight, layer.W_x.bias, layer.W_h.weight), strict=True):
                getattr(reference, name).copy_(parameter)
                ours.append(parameter)
                theirs.append(getattr(reference, name))
    state = random_state(model, tokens.shape[1])
    found = model.features(tokens, state)
    wanted = reference(model.embedding(tokens), state)
    assert_same_values_and_gradients(found, wanted, [state, *ours], [state, *theirs])


def as_torch_gru(model: LanguageModel) -> nn.GRU:
    """torch.nn.GRU with the same weights; its z keeps the old state, so ours enters negated."""
    reference = nn.GRU(5, 6, num_layers=3, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).repeat_interleave(6)
    with torch.no_grad():
        for depth, layer in enumerate(model.layers):
            recurrent = torch.cat((layer.U_rz.weight, layer.U_h.weight))
            getattr(reference, f"weight_ih_l{depth}").copy_(sign[:, None] * layer.W.weight)
            getattr(reference, f"weight_hh_l{depth}").copy_(sign[:, None] * recurrent)
            getattr(reference, f"bias_ih_l{depth}").copy_(sign * layer.W.bias)
            getattr(reference, f"bias_hh_l{depth}").zero_()
    return reference


@pytest.mark.parametrize("arch", ["gru"])
def test_the_gru_resets_before_the_product_where_torch_nn_gru_resets_after(
    arch: str, fused: LanguageModel, tokens: Tensor
) -> None:
    model = fused.eval()
    state = random_state(model, tokens.shape[1])
    ours, theirs = model.features(tokens, state), as_torch_gru(model)(model.embedding(tokens), state)
    assert (ours[0] - theirs[0]).abs().max() > 1e-3
    # With the reset gate held open the place of the reset no longer matters, and the two are one function.
    with torch.no_grad():
        for layer in model.layers:
            layer.W.bias[:6] = 1e3
    ours, theirs = model.features(tokens, state), as_torch_gru(model)(model.embedding(tokens), state)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@recurrent_only
def test_with_every_unit_dropped_the_hidden_state_still_runs_on_its_own(arch: str, tokens: Tensor) -> None:
    torch.manual_seed(3)
    config = RecurrentConfig(arch=arch, hidden_size=6, num_layers=2, embedding_size=5, keep=1e-15)
    model = build_model(config, VOCAB_SIZE).double()
    nn.init.uniform_(model.output.bias)
    state = random_state(model, tokens.shape[1])
    logits, last = model(tokens, state)
    for depth, layer in enumerate(model.layers):
        for b in range(tokens.shape[1]):
            h = state[depth, b]
            for _ in tokens:
                h = STEPS[arch](layer, h.new_zeros(6 if depth else 5), h)
            torch.testing.assert_close(last[depth, b], h, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, model.output.bias.expand_as(logits), rtol=0, atol=0)


@recurrent_only
def test_every_time_step_and_every_place_has_its_own_dropout_mask(arch: str, dropout_record) -> None:
    torch.manual_seed(4)
    config = RecurrentConfig(arch=arch, hidden_size=64, num_layers=2, embedding_size=64, keep=0.35)
    model = build_model(config, VOCAB_SIZE)
    model(torch.zeros(9, 2, dtype=torch.int64), torch.rand(2, 2, 64))
    rows = torch.cat([mask.flatten(0, 1) != 0 for mask in dropout_record.masks])
    assert len(rows) == 3 * 9 * 2
    assert len(rows.unique(dim=0)) == len(rows)
    # 3456 units, kept with probability 0.35: the share has a standard deviation of 0.008.
    assert rows.double().mean() == pytest.approx(0.35, abs=0.04)


@recurrent_only
def test_two_windows_with_the_state_carried_equal_one_long_window(
    arch: str, model: LanguageModel, tokens: Tensor
) -> None:
    model.eval()
    state = random_state(model, tokens.shape[1])
    first, middle = model(tokens[:3], state)
    second, last = model(tokens[3:], middle)
    assert_same_values_and_gradients(
        (torch.cat((first, second)), last), model(tokens, state), [state, *model.parameters()]
    )


@recurrent_only
def test_a_window_taken_in_steps_gives_the_gradient_of_the_last_loss_at_each_hidden_state(
    arch: str, fused: LanguageModel, tokens: Tensor
) -> None:
    model = fused.eval()
    state = model.initial_state(tokens.shape[1])
    hidden_states = []
    for step in tokens:
        hidden, state = model.features(step.unsqueeze(0), state)
        hidden_states.append(state)
    # The last state leads nowhere; what the output layer reads at the last step is the top h_T itself.
    hidden_states[-1] = hidden
    loss = model.output(hidden).logsumexp(-1).sum()
    *earlier, last = torch.autograd.grad(loss, hidden_states)
    assert last.abs().max() > 0
    assert all(gradient[-1].abs().max() > 0 for gradient in earlier)
    # One of them against finite differences: the top h_{T-1}, first sequence, first unit.
    with torch.no_grad():
        nudged = []
        for sign in (1, -1):
            state = hidden_states[-2].clone()
            state[-1, 0, 0] += sign * 1e-6
            nudged.append(model(tokens[-1:], state)[0].logsumexp(-1).sum())
    assert (nudged[0] - nudged[1]).item() / 2e-6 == pytest.approx(earlier[-1][-1, 0, 0].item(), rel=1e-6)


@recurrent_only
def test_the_state_starts_at_zero_with_the_type_of_the_parameters(arch: str, model: LanguageModel) -> None:
    torch.testing.assert_close(model.initial_state(4), torch.zeros(3, 4, 6, dtype=torch.float64), rtol=0, atol=0)
    assert model.float().initial_state(4).dtype == torch.float32


@recurrent_only
def test_recurrent_initial_values_fill_their_ranges(arch: str) -> None:
    torch.manual_seed(5)
    model = build_model(RecurrentConfig(arch=arch, hidden_size=64, num_layers=2, embedding_size=30), 200)
    parameters = dict(model.named_parameters())
    assert parameters.pop("output.bias").abs().max() == 0
    ranges = {name: 0.1 if name in ("embedding.weight", "output.weight") else 64**-0.5 for name in parameters}
    assert sum(bound == 0.1 for bound in ranges.values()) == 2
    for name, parameter in parameters.items():
        # The smallest has 64 values: all of them inside 85 % of the range happens once in 30,000 draws.
        assert 0.85 * ranges[name] < parameter.abs().max() <= ranges[name], name
        assert parameter.std().item() == pytest.approx(ranges[name] / 3**0.5, rel=0.2), name
        assert parameter.mean().abs() < 0.25 * ranges[name], name
