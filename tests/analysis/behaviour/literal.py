"""The three models for one sequence at a time, literally from their equations, in NumPy and float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model, build_reference

Array = np.ndarray[Any, np.dtype[np.float64]]

VOCAB_SIZE = 7
SEQ_LEN = 6

CONFIGS: dict[str, ModelConfig] = {
    "rnn": RecurrentConfig(arch="rnn", hidden_size=4, num_layers=2, embedding_size=3, keep=0.5),
    "gru": RecurrentConfig(arch="gru", hidden_size=4, num_layers=2, embedding_size=3, keep=0.5),
    "transformer": TransformerConfig(
        arch="transformer", hidden_size=4, num_layers=2, num_heads=2, mlp_size=5, keep=0.5, attention_keep=0.5
    ),
}


def make_model(arch: str, kind: str = "reference", seed: int = 1) -> LanguageModel:
    """In float64 and evaluation mode, its predictions far from uniform."""
    torch.manual_seed(seed)
    built = build_model(CONFIGS[arch], VOCAB_SIZE, SEQ_LEN)
    if kind == "reference":
        built = build_reference(built, CONFIGS[arch])
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.5)
        built.output.weight.mul_(1 if arch == "transformer" else 10)
    return built.double().eval()


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    result: Array = e / e.sum()
    return result


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


@dataclass
class Literal:
    """The model with the parameters of ``model``; ``nudges`` are added to the hidden state of (layer, time step)."""

    model: LanguageModel
    arch: str
    nudges: Mapping[tuple[int, int], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.p = {name: value.double().numpy() for name, value in self.model.state_dict().items()}
        self.num_layers = 2

    def logits(self, tokens: Sequence[int], state: list[Array] | None = None) -> list[Array]:
        """Of each token's successor. ``state`` (recurrent models) is changed in place to the one after the tokens."""
        if self.arch == "transformer":
            return self._transformer(tokens)
        h = [np.zeros(4) for _ in range(self.num_layers)] if state is None else state
        cell = self._rnn if self.arch == "rnn" else self._gru
        logits = []
        for t, token in enumerate(tokens):
            x = self.p["embedding.weight"][token]
            for layer in range(self.num_layers):
                x = h[layer] = cell(f"layers.{layer}", x, h[layer]) + self.nudges.get((layer, t), 0)
            logits.append(self.p["output.weight"] @ x + self.p["output.bias"])
        return logits

    def last_logits(self, tokens: Sequence[int]) -> Array:
        """Of the next token after all of ``tokens``, of which the Transformer sees the last ``SEQ_LEN``."""
        return self.logits(tokens[-SEQ_LEN:] if self.arch == "transformer" else tokens)[-1]

    def _rnn(self, name: str, x: Array, h: Array) -> Array:
        p = self.p
        result: Array = np.tanh(p[f"{name}.W_x.weight"] @ x + p[f"{name}.W_x.bias"] + p[f"{name}.W_h.weight"] @ h)
        return result

    def _gru(self, name: str, x: Array, h: Array) -> Array:
        p = self.p
        r_x, z_x, c_x = np.split(p[f"{name}.W.weight"] @ x + p[f"{name}.W.bias"], 3)
        r_h, z_h = np.split(p[f"{name}.U_rz.weight"] @ h, 2)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        c = np.tanh(c_x + p[f"{name}.U_h.weight"] @ (r * h))
        result: Array = (1 - z) * h + z * c
        return result

    def _transformer(self, tokens: Sequence[int]) -> list[Array]:
        p, width = self.p, 4
        xs = []
        for t, token in enumerate(tokens):
            angles = [t / 10_000 ** (2 * (i // 2) / width) for i in range(width)]
            position = np.array([np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(angles)])
            xs.append(p["embedding.weight"][token] * width**0.5 + position)
        for layer in range(self.num_layers):
            block = f"blocks.{layer}"
            normed = [self._norm(f"{block}.attention_norm", x) for x in xs]
            q, k, v = (
                [p[f"{block}.attention.W_{name}.weight"] @ x + p[f"{block}.attention.W_{name}.bias"] for x in normed]
                for name in "qkv"
            )
            for t in range(len(xs)):
                heads = []
                for head in (slice(0, 2), slice(2, 4)):
                    a = softmax(np.array([q[t][head] @ k[s][head] / 2**0.5 for s in range(t + 1)]))
                    heads.append(sum(a[s] * v[s][head] for s in range(t + 1)))
                x = p[f"{block}.attention.W_o.weight"] @ np.concatenate(heads) + p[f"{block}.attention.W_o.bias"]
                xs[t] = xs[t] + x
            for t, x in enumerate(xs):
                inner = p[f"{block}.mlp.W_1.weight"] @ self._norm(f"{block}.mlp_norm", x) + p[f"{block}.mlp.W_1.bias"]
                mapped = p[f"{block}.mlp.W_2.weight"] @ np.maximum(inner, 0) + p[f"{block}.mlp.W_2.bias"]
                xs[t] = x + mapped + self.nudges.get((layer, t), 0)
        return [p["output.weight"] @ self._norm("norm", x) + p["output.bias"] for x in xs]

    def _norm(self, name: str, x: Array) -> Array:
        mean = sum(x) / len(x)
        std = (sum((x - mean) ** 2) / (len(x) - 1)) ** 0.5
        result: Array = self.p[f"{name}.a"] * (x - mean) / (std + 1e-6) + self.p[f"{name}.b"]
        return result


def nats(logits: Array, target: int) -> float:
    """-log p(target)."""
    return -float(np.log(softmax(logits)[target]))
