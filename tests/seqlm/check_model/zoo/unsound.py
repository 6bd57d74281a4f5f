"""Models that look like those of papers, and break the contract. Their perplexities would be wrong, or their runs."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from seqlm.models import LanguageModel


class Recurrent(nn.Module):
    """What the models below share: a GRU cell over the tokens. Sound as it is."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.cell = nn.GRUCell(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(batch_size, self.output.in_features)

    def hidden(self, tokens, h):
        outputs = []
        for x in self.embedding(tokens):
            h = self.cell(x, h)
            outputs.append(h)
        return torch.stack(outputs)

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(h), h[-1]


class Bidirectional(nn.Module):
    """A GRU in both directions, whose output layer starts at zero."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, bidirectional=True)
        self.output = nn.Linear(2 * hidden_size, vocab_size)
        nn.init.zeros_(self.output.weight)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        return self.output(self.gru(self.embedding(tokens))[0]), state


class UnmaskedAttention(nn.Module):
    """Attention without a causal mask, whose output projection starts at zero."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, 2)
        nn.init.zeros_(self.attention.out_proj.weight)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x = self.embedding(tokens)
        return self.output(x + self.attention(x, x, x)[0]), state


class LookAheadConvolution(nn.Module):
    """A convolution with padding on both sides, behind a gate that starts closed (ReZero)."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.convolution = nn.Conv1d(hidden_size, hidden_size, 3, padding="same")
        self.gate = nn.Parameter(torch.zeros(()))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x = self.embedding(tokens)
        return self.output(x + self.gate * self.convolution(x.permute(1, 2, 0)).permute(2, 0, 1)), state


class BatchNormalised(Recurrent):
    """Batch normalisation mixes columns and time steps in training."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(self.norm(h.flatten(0, 1)).view_as(h)), h[-1]


class CachedTensor(Recurrent):
    """Keeps its last hidden state in an attribute, and goes on from there: a validation starts with training's."""

    memory = None

    def forward(self, tokens, h):
        if self.memory is not None and self.memory.shape == h.shape:
            h = self.memory
        h = self.hidden(tokens, h)
        self.memory = h[-1].detach()
        return self.output(h), h[-1]


class LeaksThroughLoss(Recurrent, LanguageModel):
    """Its loss reads the hidden states that have seen the target."""

    def loss(self, tokens, targets, state):
        h = self.hidden(targets, state)
        return F.cross_entropy(self.output(h).flatten(0, 1), targets.flatten(), reduction="sum"), h[-1]


class HalfLoss(Recurrent, LanguageModel):
    """Half the negative log-likelihood: the perplexity is the square root of the true one."""

    def loss(self, tokens, targets, state):
        logits, state = self(tokens, state)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / 2, state


class LossInBits(Recurrent, LanguageModel):
    """Losses of tokens in bits."""

    def token_losses(self, tokens, targets, state):
        losses, state = super().token_losses(tokens, targets, state)
        return losses / math.log(2), state


class LabelSmoothing(Recurrent, LanguageModel):
    """Smooths labels in evaluation too."""

    def loss(self, tokens, targets, state):
        logits, state = self(tokens, state)
        arguments = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(*arguments, reduction="sum", label_smoothing=0.1), state


class OutputOffThePath(nn.Module):
    """Names a ``torch.nn.GRU`` for its hidden states: its output lies on no recurrent path."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size)
        self.hidden_states = [self.gru]
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(1, batch_size, self.output.in_features)

    def forward(self, tokens, state):
        h, state = self.gru(self.embedding(tokens), state)
        return self.output(h), state


class WritesIntoItsState(Recurrent):
    """Puts its new state in the memory of the one that it is given, which is still needed if a step is repeated."""

    def forward(self, tokens, h):
        outputs = self.hidden(tokens, h.clone())
        h.copy_(outputs[-1].detach())
        return self.output(outputs), h


class TrainedStart(Recurrent):
    """``initial_state`` returns a parameter, which no gradient reaches after the first window."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.start = nn.Parameter(torch.zeros(hidden_size))

    def initial_state(self, batch_size):
        return self.start.expand(batch_size, -1)


class ChosenByExperts(Recurrent):
    """Each expert chooses its tokens among those of the window (Zhou et al., 2022), so that later ones decide."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.gate, self.expert = nn.Linear(hidden_size, 1), nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.expert.weight)

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        scores = self.gate(h)
        chosen = scores >= scores.median(dim=0, keepdim=True).values
        return self.output(h + chosen * scores.sigmoid() * self.expert(h)), h[-1]


class BatchFirst(nn.Module):
    """Takes the axes of (T, B, H) for (B, T, H), so that columns attend to each other."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, 2, batch_first=True)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.output(x + self.attention(x, x, x, attn_mask=mask)[0]), state


class NormalisedOverTime(Recurrent):
    """Subtracts the mean over the window, scaled by a gain that starts at zero."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.gain = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(h - self.gain * h.mean(dim=0)), h[-1]


class PositionsWithinWindow(Recurrent):
    """Carries a state, but counts positions from each window's start."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.positions = nn.Parameter(torch.zeros(64, 1, hidden_size))

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(h + self.positions[: len(tokens)]), h[-1]


class AlwaysDrops(Recurrent):
    """``F.dropout`` without its flag drops in evaluation too."""

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(F.dropout(h, 0.1)), h[-1]


class NoiseOfNumPy(Recurrent):
    """Its noise comes from a generator that no checkpoint has."""

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        noise = torch.as_tensor(np.random.standard_normal(h.shape), dtype=h.dtype)
        return self.output(h + 0.1 * noise if self.training else h), h[-1]


class GeneratesOtherwise(Recurrent, LanguageModel):
    """Its own ``predictor`` forgets the state."""

    def predictor(self, state):
        return lambda tokens: self(tokens[None], state)[0][-1]


class StaysBehind(Recurrent):
    """A tensor in a plain attribute does not move to a GPU with the model."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__(vocab_size, hidden_size)
        self.scale = torch.full((hidden_size,), 2.0)

    def forward(self, tokens, h):
        h = self.hidden(tokens, h)
        return self.output(h * self.scale), h[-1]
