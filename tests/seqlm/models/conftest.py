from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model, build_reference


def assert_same_values_and_gradients(
    found: Sequence[Tensor], wanted: Sequence[Tensor], inputs: list[Tensor], wanted_inputs: list[Tensor] | None = None
) -> None:
    """Outputs agree to 1e-10, and so do the gradients of one random weighting of them, not all zero.

    ``wanted_inputs`` are the inputs of ``wanted`` where they are not those of ``found``.
    """
    torch.testing.assert_close(list(found), list(wanted), rtol=0, atol=1e-10)
    weights = [torch.randn_like(output) for output in wanted]

    def gradients(outputs: Sequence[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(list(outputs), leaves, grad_outputs=weights))

    of_found, of_wanted = gradients(found, inputs), gradients(wanted, wanted_inputs or inputs)
    assert sum(gradient.abs().max().item() for gradient in of_wanted) > 0
    torch.testing.assert_close(of_found, of_wanted, rtol=0, atol=1e-10)


VOCAB_SIZE = 11
SEQ_LEN = 5

CONFIGS: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(arch="rnn", hidden_size=6, num_layers=3, embedding_size=5, keep=0.5),
    "gru": RecurrentConfig(arch="gru", hidden_size=6, num_layers=3, embedding_size=5, keep=0.5),
    "transformer": TransformerConfig(
        arch="transformer", hidden_size=8, num_layers=2, num_heads=2, mlp_size=12, keep=0.5, attention_keep=0.8
    ),
}


@pytest.fixture(params=list(CONFIGS))
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["fused", "reference"])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(arch: str) -> ModelConfig:
    return CONFIGS[arch]


@pytest.fixture
def fused(config: ModelConfig) -> LanguageModel:
    """In float64 and in training mode; predictions sharpened, so that a wrong logit shows in the samples too."""
    torch.manual_seed(1111)
    model = build_model(config, VOCAB_SIZE, SEQ_LEN).double()
    with torch.no_grad():
        model.output.weight.mul_(10)
    return model


@pytest.fixture
def reference(config: ModelConfig, fused: LanguageModel) -> LanguageModel:
    """The reference with the parameters of ``fused``."""
    return build_reference(fused, config)


@pytest.fixture
def model(implementation: str, fused: LanguageModel, reference: LanguageModel) -> LanguageModel:
    """Each of both."""
    return fused if implementation == "fused" else reference


@pytest.fixture
def tokens() -> Tensor:
    """A window (7, 4)."""
    return torch.randint(VOCAB_SIZE, (7, 4), generator=torch.Generator().manual_seed(1))
