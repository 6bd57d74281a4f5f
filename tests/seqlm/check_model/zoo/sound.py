"""Models that keep the contract, as their authors would write them."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from seqlm.models import LanguageModel


class LSTM(nn.Module):
    """``torch.nn.LSTM`` of two layers with dropout. No hidden states are named: its output is not its state."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers=2, dropout=0.3)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        zeros = self.output.weight.new_zeros(2, batch_size, self.output.in_features)
        return zeros, zeros

    def forward(self, tokens, state):
        h, state = self.lstm(self.embedding(tokens), state)
        return self.output(h), state


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t c_t, where z and c depend on the input alone (Feng et al., 2024)."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size)
        self.candidate = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(batch_size, self.output.in_features)

    def forward(self, tokens, h):
        x = self.embedding(tokens)
        z, c = self.gate(x).sigmoid(), self.candidate(x)
        outputs = []
        for keep, new in zip(1 - z, z * c):
            h = keep * h + new
            outputs.append(h)
        return self.output(torch.stack(outputs)), h


class S6(nn.Module):
    """A selective state space (Gu and Dao, 2023): step size, input and output maps depend on the token."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12, state_size=4):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(hidden_size, 1))
        self.D = nn.Parameter(torch.ones(hidden_size))
        self.step = nn.Linear(hidden_size, hidden_size)
        self.maps = nn.Linear(hidden_size, 2 * state_size, bias=False)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.A_log.new_zeros(batch_size, *self.A_log.shape)

    def forward(self, tokens, h):
        x = self.embedding(tokens)
        step = F.softplus(self.step(x))  # (T, B, H)
        B, C = self.maps(x).chunk(2, dim=-1)  # (T, B, N)
        A = -self.A_log.exp()
        outputs = []
        for x_t, d_t, B_t, C_t in zip(x, step, B, C):
            h = (d_t[..., None] * A).exp() * h + (d_t * x_t)[..., None] * B_t[:, None]
            outputs.append((h * C_t[:, None]).sum(-1))
        return self.output(torch.stack(outputs) + self.D * x), h


class GatedConvolution(nn.Module):
    """Convolutions with gated linear units (Dauphin et al., 2017), padded on the left. Sees each window alone."""

    def __init__(self, vocab_size, hidden_size=12, width=3):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden_size, 2 * hidden_size, width) for _ in range(2))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x = self.embedding(tokens).permute(1, 2, 0)  # (B, H, T)
        for convolution in self.convolutions:
            x = x + F.glu(convolution(F.pad(x, (self.width - 1, 0))), dim=1)
        return self.output(x.permute(2, 0, 1)), state


class MixtureOfExperts(nn.Module):
    """An RNN whose output passes through the expert that its gate prefers; tokens are chosen by a boolean mask."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12, experts=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.cell = nn.RNNCell(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size, experts)
        self.experts = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(experts))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(batch_size, self.output.in_features)

    def forward(self, tokens, h):
        outputs = []
        for x in self.embedding(tokens):
            h = self.cell(x, h)
            outputs.append(h)
        states = torch.stack(outputs)
        weights = self.gate(states).softmax(-1)
        mixed = torch.zeros_like(states)
        for number, expert in enumerate(self.experts):
            chosen = weights.argmax(-1) == number
            mixed[chosen] = weights[chosen][:, number, None] * expert(states[chosen])
        return self.output(states + mixed), h


class OrthogonalRNN(nn.Module):
    """Its recurrent matrix starts orthogonal. In memory, it lies by columns, as its state does (``h.t()``)."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=64):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.W = nn.Parameter(torch.linalg.qr(torch.randn(hidden_size, hidden_size))[0])
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.W.new_zeros(batch_size, len(self.W))

    def forward(self, tokens, h):
        outputs = []
        for x in self.embedding(tokens):
            h = h / (1 + h.square().mean(dim=1, keepdim=True))
            h = torch.relu(self.W @ h.t() + x.t()).t()
            outputs.append(h)
        return self.output(torch.stack(outputs)), h


class LearnedStart(nn.Module):
    """The state has a flag that is 1 before the first token; there, ``forward`` adds the learned start."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.cell = nn.GRUCell(hidden_size, hidden_size)
        self.start = nn.Parameter(torch.zeros(hidden_size))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        weight = self.output.weight
        return weight.new_zeros(batch_size, self.output.in_features), weight.new_ones(batch_size, 1)

    def forward(self, tokens, state):
        h, is_first = state
        h = h + is_first * self.start
        outputs = []
        for x in self.embedding(tokens):
            h = self.cell(x, h)
            outputs.append(h)
        return self.output(torch.stack(outputs)), (h, torch.zeros_like(is_first))


class Tied(nn.Module):
    """A stacked GRU whose output layer has the embedding's matrix, with a label and its operations."""

    label = "tied GRU"

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(nn.GRU(hidden_size, hidden_size) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def initial_state(self, batch_size):
        return self.embedding.weight.new_zeros(2, batch_size, self.embedding.embedding_dim)

    def flops_per_token(self, seq_len):
        return 6 * self.embedding.weight.numel()

    def forward(self, tokens, state):
        x, after = self.embedding(tokens), []
        for layer, h in zip(self.layers, state):
            x, h = layer(x, h[None])
            after.append(h[0])
        return F.linear(x, self.embedding.weight, self.bias), torch.stack(after)


class RotaryTransformer(nn.Module):
    """Causal attention with rotary positions (Su et al., 2021), whose residual branches start at zero."""

    def __init__(self, vocab_size, hidden_size=16, heads=2):
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.merge = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)
        nn.init.zeros_(self.merge.weight)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x = self.embedding(tokens)  # (T, B, H)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 1, 3, 0, 4)
        half = q.shape[-1] // 2
        frequencies = 10_000.0 ** (-torch.arange(half, device=tokens.device) / half)
        angles = torch.arange(len(tokens), device=tokens.device)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()

        def rotate(one):
            a, b = one.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

        attended = F.scaled_dot_product_attention(
            rotate(q), rotate(k), v, is_causal=True, dropout_p=0.1 * self.training
        )
        x = x + self.merge(attended.permute(2, 0, 1, 3).flatten(2))
        return self.output(x), state


class GPT(nn.Module):
    """PyTorch's own encoder layers with a causal mask and learned positions."""

    def __init__(self, vocab_size, hidden_size=16, longest=64):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Parameter(torch.randn(longest, 1, hidden_size))
        layer = nn.TransformerEncoderLayer(hidden_size, 2, 24, dropout=0.1, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        mask = nn.Transformer.generate_square_subsequent_mask(len(tokens), device=tokens.device)
        x = self.embedding(tokens) + self.positions[: len(tokens)]
        return self.output(self.encoder(x, mask=mask, is_causal=True)), state


class LinearAttention(nn.Module):
    """Attention without a softmax, whose state is a matrix of each column (Katharopoulos et al., 2020)."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        size = self.output.in_features
        zeros = self.output.weight.new_zeros
        return zeros(batch_size, size, size), zeros(batch_size, size)

    def forward(self, tokens, state):
        x = self.embedding(tokens)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = state[0][None] + (k[..., :, None] * v[..., None, :]).cumsum(0)
        norms = state[1][None] + k.cumsum(0)
        attended = torch.einsum("tbi,tbij->tbj", q, sums) / (q * norms).sum(-1, keepdim=True)
        return self.output(x + attended), (sums[-1], norms[-1])


class LongConvolution(nn.Module):
    """A filter as long as the window, by Fourier transforms (as in Hyena; Poli et al., 2023)."""

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.decay = nn.Parameter(torch.rand(hidden_size))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return None

    def forward(self, tokens, state):
        x, steps = self.embedding(tokens), len(tokens)
        taps = torch.exp(-self.decay * torch.arange(steps, device=tokens.device)[:, None])
        spectrum = torch.fft.rfft(x, 2 * steps, dim=0) * torch.fft.rfft(taps, 2 * steps, dim=0)[:, None]
        return self.output(torch.fft.irfft(spectrum, 2 * steps, dim=0)[:steps]), state


class NGram(nn.Module):
    """A neural n-gram model (Bengio et al., 2003): the last tokens are its state, which is made of ids."""

    batch_axis = 1

    def __init__(self, vocab_size, hidden_size=12, order=3):
        super().__init__()
        self.order = order
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.hidden = parametrizations.weight_norm(nn.Linear(order * hidden_size, hidden_size))
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return torch.zeros(self.order - 1, batch_size, dtype=torch.int64, device=self.output.weight.device)

    def forward(self, tokens, past):
        seen = torch.cat((past, tokens))
        window = torch.stack([seen[k : k + len(tokens)] for k in range(self.order)], dim=-1)
        h = torch.tanh(self.hidden(self.embedding(window).flatten(2)))
        return self.output(h), seen[len(tokens) :].clone()


class Regularised(LanguageModel):
    """An RNN whose training adds a penalty on its activations (Merity et al., 2017), by column."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.cell = nn.RNNCell(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(batch_size, self.output.in_features)

    def hidden(self, tokens, h):
        outputs = []
        for x in self.embedding(tokens):
            h = self.cell(x, h)
            outputs.append(h)
        return torch.stack(outputs)

    def forward(self, tokens, state):
        h = self.hidden(tokens, state)
        return self.output(h), h[-1]

    def loss(self, tokens, targets, state):
        h = self.hidden(tokens, state)
        loss = F.cross_entropy(self.output(h).flatten(0, 1), targets.flatten(), reduction="sum")
        return loss + (0.01 * h.square().sum() if self.training else 0.0), h[-1]


class MixtureOfSoftmaxes(LanguageModel):
    """Its logits are the logarithms of mixed probabilities (Yang et al., 2018), and its losses are its own."""

    def __init__(self, vocab_size, hidden_size=12, experts=3):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size)
        self.prior = nn.Linear(hidden_size, experts)
        self.experts = nn.ModuleList(nn.Linear(hidden_size, vocab_size) for _ in range(experts))

    def initial_state(self, batch_size):
        return self.prior.weight.new_zeros(1, batch_size, self.prior.in_features)

    def forward(self, tokens, state):
        h, state = self.gru(self.embedding(tokens), state)
        prior = self.prior(h).log_softmax(-1)
        mixed = [prior[..., k, None] + expert(h).log_softmax(-1) for k, expert in enumerate(self.experts)]
        return torch.logsumexp(torch.stack(mixed), dim=0), state

    def token_losses(self, tokens, targets, state):
        logits, state = self(tokens, state)
        return -logits.gather(2, targets[..., None])[..., 0].double(), state

    def loss(self, tokens, targets, state):
        losses, state = self.token_losses(tokens, targets, state)
        return losses.float().sum(), state


class WordDropout(nn.Module):
    """Word types and recurrent weights are dropped for a whole window, and the logits are bounded."""

    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=12, keep=0.8):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.W = nn.Linear(hidden_size, hidden_size, bias=False)
        self.words, self.weights = nn.Dropout(1 - keep), nn.Dropout(1 - keep)
        self.output = nn.Linear(hidden_size, vocab_size)

    def initial_state(self, batch_size):
        return self.W.weight.new_zeros(batch_size, len(self.W.weight))

    def forward(self, tokens, h):
        x = self.words(self.embedding.weight)[tokens] * math.sqrt(len(self.W.weight))
        W, outputs = self.weights(self.W.weight), []
        for x_t in x:
            h = torch.tanh(x_t + h @ W.t())
            outputs.append(h)
        return 20 * torch.tanh(self.output(torch.stack(outputs)) / 20), h
