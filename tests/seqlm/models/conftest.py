from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model, build_reference

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
