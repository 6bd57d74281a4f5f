import pytest
import torch
from torch import Tensor, nn

from seqlm.architectures import ModelConfig
from seqlm.models import LanguageModel, build_model

VOCAB_SIZE = 11


def test_a_token_changes_its_own_and_later_logits_and_no_earlier_ones(model: LanguageModel, tokens: Tensor) -> None:
    state = model.eval().initial_state(4)
    before, _ = model(tokens, state)
    for t in (0, 3, 6):
        other = tokens.clone()
        other[t] = (other[t] + 1) % VOCAB_SIZE
        after, _ = model(other, state)
        torch.testing.assert_close(before[:t], after[:t], rtol=0, atol=1e-12)
        assert (before[t:] - after[t:]).abs().amax(dim=(1, 2)).min() > 1e-9


def test_sequences_of_a_batch_do_not_touch_each_other(model: LanguageModel, tokens: Tensor) -> None:
    model.eval()
    together, _ = model(tokens, model.initial_state(4))
    alone = [model(tokens[:, b : b + 1], model.initial_state(1))[0] for b in range(4)]
    torch.testing.assert_close(torch.cat(alone, dim=1), together, rtol=0, atol=1e-10)


def test_every_parameter_takes_part_in_the_loss(model: LanguageModel, tokens: Tensor) -> None:
    logits, _ = model.eval()(tokens, model.initial_state(4))
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A key's bias adds the same to all scores of a query, so its gradient is zero up to rounding.
    assert [name for name in without if "W_k.bias" not in name] == []
    assert all(p.grad is not None for p in model.parameters())


def test_the_seed_decides_the_initial_values(config: ModelConfig) -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(config, VOCAB_SIZE))
    first, same, other = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_token_outside_the_vocabulary_is_an_error(model: LanguageModel) -> None:
    with pytest.raises(IndexError):
        model(torch.full((2, 4), VOCAB_SIZE), model.initial_state(4))


def test_the_models_are_made_of_linear_layers_and_embeddings_alone(model: LanguageModel) -> None:
    from_torch = {type(module) for module in model.modules() if type(module).__module__.startswith("torch.")}
    assert from_torch - {nn.Dropout} == {nn.Linear, nn.Embedding, nn.ModuleList}
