from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from seqlm.config import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model

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


@pytest.fixture
def config(arch: str) -> ModelConfig:
    return CONFIGS[arch]


@pytest.fixture
def model(config: ModelConfig) -> LanguageModel:
    """In float64 and in training mode; predictions sharpened, so that a wrong logit shows in the samples too."""
    torch.manual_seed(1111)
    model = build_model(config, VOCAB_SIZE, SEQ_LEN).double()
    with torch.no_grad():
        model.output.weight.mul_(10)
    return model


@pytest.fixture
def tokens() -> Tensor:
    """A window (7, 4)."""
    return torch.randint(VOCAB_SIZE, (7, 4), generator=torch.Generator().manual_seed(1))


@dataclass
class DropoutRecord:
    """The dropouts of a forward pass in the order of their calls: rate, and the factors put on the input."""

    rates: list[float] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)


@pytest.fixture
def dropout_record(monkeypatch: pytest.MonkeyPatch) -> DropoutRecord:
    """Every nn.Dropout draws its mask here, so that a literal implementation can apply the same ones."""
    record = DropoutRecord()

    def forward(self: nn.Dropout, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = (torch.rand_like(x) >= self.p).to(x.dtype) / (1 - self.p)
        record.rates.append(self.p)
        record.masks.append(mask)
        return x * mask

    monkeypatch.setattr(nn.Dropout, "forward", forward)
    return record
