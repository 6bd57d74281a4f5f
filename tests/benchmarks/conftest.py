from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig

VOCAB_SIZE = 11
SEQ_LEN = 7
BATCH_SIZE = 4

CONFIGS: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(arch="rnn", hidden_size=6, num_layers=3, embedding_size=5, keep=0.5),
    "gru": RecurrentConfig(arch="gru", hidden_size=6, num_layers=3, embedding_size=5, keep=0.5),
    "transformer": TransformerConfig(
        arch="transformer", hidden_size=8, num_layers=2, num_heads=2, mlp_size=12, keep=0.5, attention_keep=0.8
    ),
}


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[str(request.param)]


@pytest.fixture
def double() -> Iterator[None]:
    """Models are built in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1111)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB_SIZE, (SEQ_LEN, BATCH_SIZE), generator=torch.Generator().manual_seed(1))
