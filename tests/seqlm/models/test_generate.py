import pytest
import torch
from torch import Tensor

from seqlm.models import LanguageModel

VOCAB_SIZE = 11
SEQ_LEN = 5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def first() -> Tensor:
    return torch.tensor([0, 3, 7, 10, 3])


def naive(
    model: LanguageModel, first: Tensor, state: Tensor, length: int, seed: int, look_back: int, temperature: float
) -> Tensor:
    """Call the model again on the last ``look_back`` tokens for each token drawn."""
    sample, generator = [first], seeded(seed)
    for _ in range(length):
        logits, _ = model(torch.stack(sample[-look_back:]), state)
        probabilities = (logits[-1] / temperature).softmax(-1)
        sample.append(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
    return torch.stack(sample[1:])


@pytest.mark.parametrize("length", [1, SEQ_LEN, 4 * SEQ_LEN])
def test_a_sample_equals_that_of_a_naive_loop_token_for_token(
    arch: str, model: LanguageModel, first: Tensor, length: int
) -> None:
    model.eval()
    state = torch.rand_like(model.initial_state(5))
    look_back = SEQ_LEN if arch == "transformer" else length + 1
    for seed, temperature in enumerate((1.0, 0.7)):
        wanted = naive(model, first, state, length, seed, look_back, temperature)
        found = model.generate(first, state, length, seeded(seed), temperature=temperature)
        assert found.shape == (length, 5)
        assert torch.equal(found, wanted)


def test_the_generator_decides_the_sample(model: LanguageModel, first: Tensor) -> None:
    state = model.initial_state(5)
    sample = model.generate(first, state, 20, seeded(1))
    assert torch.equal(sample, model.generate(first, state, 20, seeded(1)))
    assert not torch.equal(sample, model.generate(first, state, 20, seeded(2)))
    torch.manual_seed(1)
    assert torch.equal(sample, model.generate(first, state, 20))


@pytest.mark.parametrize("arch", ["rnn", "gru"])
def test_the_recurrent_models_compute_one_position_per_token(arch: str, model: LanguageModel, first: Tensor) -> None:
    positions = []
    model.embedding.register_forward_hook(lambda _module, inputs, _output: positions.append(len(inputs[0])))
    model.generate(first, model.initial_state(5), 12)
    assert positions == [1] * 12


@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_without_dropout_and_gradients_and_restores_the_training_flag(
    model: LanguageModel, first: Tensor, training: bool
) -> None:
    wanted = model.eval().generate(first, model.initial_state(5), 10, seeded(1))
    model.train(training)
    modes = []
    model.output.register_forward_hook(lambda m, _i, _o: modes.append((m.training, torch.is_grad_enabled())))
    found = model.generate(first, model.initial_state(5), 10, seeded(1))
    assert torch.equal(found, wanted)
    assert set(modes) == {(False, False)}
    assert torch.is_grad_enabled()
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize(("arch", "implementation"), [("rnn", "fused")])
def test_a_temperature_or_length_that_makes_no_sense_is_refused_in_one_line(
    model: LanguageModel, first: Tensor
) -> None:
    state = model.initial_state(5)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"^temperature: expected a positive finite number, got {temperature}$"):
            model.generate(first, state, 3, temperature=temperature)
    for length in (0, -3):
        with pytest.raises(ValueError, match=rf"^length: expected a whole number of at least 1, got {length}$"):
            model.generate(first, state, length)


def test_next_to_temperature_zero_the_most_probable_token_is_drawn(model: LanguageModel, first: Tensor) -> None:
    model.eval()
    greedy = model.sample(first.unsqueeze(0), model.initial_state(5), 9, lambda logits: logits.argmax(dim=-1))
    for temperature in (1e-3, 1e-300):
        assert torch.equal(model.generate(first, model.initial_state(5), 9, temperature=temperature), greedy)


def test_a_prompt_is_read_before_the_first_draw(arch: str, model: LanguageModel, tokens: Tensor) -> None:
    seen = []

    def draw(logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    sample = model.eval().sample(tokens, model.initial_state(4), 3, draw)
    text = torch.cat([tokens, sample])
    for t, logits in enumerate(seen, start=len(tokens)):
        start = max(0, t - SEQ_LEN) if arch == "transformer" else 0
        wanted, _ = model(text[start:t], model.initial_state(4))
        torch.testing.assert_close(logits, wanted[-1], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"^prompt: expected a whole number of at least 1, got 0$"):
        model.sample(tokens[:0], model.initial_state(4), 3, draw)
