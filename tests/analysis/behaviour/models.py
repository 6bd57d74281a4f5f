"""Tiny models of each architecture in float64, and what they predict when they read a text from its start."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model, build_reference

VOCAB_SIZE = 7
SEQ_LEN = 6
SIZES = {"hidden_size": 4, "num_layers": 2, "keep": 0.5}
CONFIGS: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(arch="rnn", embedding_size=3, **SIZES),
    "gru": RecurrentConfig(arch="gru", embedding_size=3, **SIZES),
    "transformer": TransformerConfig(arch="transformer", num_heads=2, mlp_size=5, attention_keep=0.5, **SIZES),
}
ARCHS = tuple(CONFIGS)


def make_models(arch: str, seed: int = 1) -> tuple[LanguageModel, LanguageModel]:
    """Return the model that trains and its reference, in evaluation mode, their predictions far from uniform."""
    torch.manual_seed(seed)
    fused = build_model(CONFIGS[arch], VOCAB_SIZE, SEQ_LEN)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.mul_(1.5)
        fused.output.weight.mul_(1 if arch == "transformer" else 10)
    fused = fused.double().eval()
    return fused, build_reference(fused, CONFIGS[arch]).eval()


@torch.no_grad()
def next_logits(model: LanguageModel, text: Sequence[int]) -> Tensor:
    """Return those of each token's successor (T, V); a model without a state sees the last ``SEQ_LEN`` tokens."""
    tokens, state = torch.tensor(text)[:, None], model.initial_state(1)
    if state.numel():
        return model(tokens, state)[0][:, 0]
    return torch.stack([model(tokens[max(0, t - SEQ_LEN) : t], state)[0][-1, 0] for t in range(1, len(text) + 1)])
