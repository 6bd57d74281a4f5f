"""RNN, GRU and Transformer by their equations, in plain PyTorch: the file to read first.

:mod:`seqlm.models.recurrent` and :mod:`seqlm.models.transformer` train the same functions with hand-written gradients.
They are built from the modules of these classes, which give their parameters names and initial values. Tests, the
self-check and gradient norms compute with these classes.

B batch, T time, V vocabulary, H hidden units, L layers, D width of a layer's input, N heads of width K = H / N.
Tokens are (T, B), hidden states (T, B, H), logits (T, B, V). ``keep`` is the probability of keeping a unit. Products
are written for column vectors, W x; ``nn.Linear`` applies the same W to the last axis.

A model reads token_1 .. token_T and predicts token_2 .. token_{T+1}. Training minimizes the loss per token, in nats::

    loss       = - sum over t and b of log softmax(logits_t)[token_{t+1}]    of a window: LanguageModel.loss
    perplexity = exp(sum of the losses / number of predicted tokens)         of a text: seqlm.training.records

Three variants are off by default. Entries of a mask are 0 or 1 / keep; all time steps and columns share the mask:

- ``tied``: the output layer has the embedding's matrix, W_y = E (Press and Wolf, 2017). Only b_y is its own.
- ``embedding_keep``: m[token_t] E[token_t] in place of E[token_t], with a mask m (V,) of word types.
- ``weight_keep``, of RNN and GRU: M * W_h in place of W_h, with a mask M of its shape; also of U_r, U_z and U_h.
"""

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from torch import Tensor, nn

from seqlm.models.language_model import LanguageModel


class TiedOutput(nn.Module):
    """The output layer of a tied model, E h + b_y."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        self._embedding = (embedding,)  # hidden from torch, so that the matrix has one name, in checkpoints too

    @property
    def weight(self) -> Tensor:
        return self._embedding[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RNNLayer(nn.Module):
    """A layer of the tanh RNN (Elman, 1990), h_t = tanh(W_x x_t + W_h h_{t-1} + b). ``W_x`` has b as its bias."""

    def __init__(self, input_size: int, hidden_size: int, weight_keep: float) -> None:
        super().__init__()
        self.W_x = nn.Linear(input_size, hidden_size)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)
        self.weight_dropout = nn.Dropout(1 - weight_keep)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return h_1 .. h_T (T, B, H) for x_1 .. x_T (T, B, D) and h_0 (B, H)."""
        W_h = self.weight_dropout(self.W_h.weight)
        outputs = []
        for x_t in x:
            h = torch.tanh(self.W_x(x_t) + F.linear(h, W_h))
            outputs.append(h)
        return torch.stack(outputs)


class GRULayer(nn.Module):
    """A layer of gated recurrent units (Cho et al., 2014).

    From the input x and the hidden state h to the next hidden state h'::

        r = sigmoid(W_r x + U_r h + b_r)
        z = sigmoid(W_z x + U_z h + b_z)
        c = tanh(W_h x + U_h (r * h) + b_h)
        h' = (1 - z) * h + z * c

    The reset gate r acts on h *before* the product with U_h, as in the paper. ``torch.nn.GRU`` and cuDNN apply it to
    the product instead, and let z keep the old state: another function.

    ``W`` has W_r, W_z, W_h stacked along its outputs, and as its bias b_r, b_z, b_h. ``U_rz`` has U_r and U_z.
    """

    def __init__(self, input_size: int, hidden_size: int, weight_keep: float) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U_rz = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.U_h = nn.Linear(hidden_size, hidden_size, bias=False)
        self.weight_dropout = nn.Dropout(1 - weight_keep)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return h_1 .. h_T (T, B, H) for x_1 .. x_T (T, B, D) and h_0 (B, H)."""
        U_rz, U_h = self.weight_dropout(self.U_rz.weight), self.weight_dropout(self.U_h.weight)
        outputs = []
        for x_t in x:
            r_x, z_x, c_x = self.W(x_t).chunk(3, dim=-1)
            r_h, z_h = F.linear(h, U_rz).chunk(2, dim=-1)
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            c = torch.tanh(c_x + F.linear(r * h, U_h))
            h = (1 - z) * h + z * c
            outputs.append(h)
        return torch.stack(outputs)


class RecurrentModel(LanguageModel):
    """L recurrent layers between an embedding and a linear output layer.

    From the tokens of a window to the logits at each time step::

        x^0_t = dropout(embedding(token_t))
        h^l_t = layer_l(x^{l-1}_t, h^l_{t-1})        l = 1 .. L
        x^l_t = dropout(h^l_t)
        logits_t = W_y x^L_t + b_y

    Dropout lies on the embedding and on the output of each layer, never on the path from h^l_{t-1} to h^l_t, with a
    fresh mask at each time step (Zaremba et al., 2014). The state is h^1 .. h^L at the end of a window, without
    dropout. The next window continues from it.

    E and W_y start uniform in [-0.1, 0.1], b_y at zero, all else uniform in [-1/sqrt(H), 1/sqrt(H)]. ``tied`` needs
    ``embedding_size`` = ``hidden_size``.
    """

    layer: type[RNNLayer | GRULayer]

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 2,
        embedding_size: int = 200,
        keep: float = 0.35,
        embedding_keep: float = 1.0,
        weight_keep: float = 1.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        widths = [embedding_size] + [hidden_size] * (num_layers - 1)
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.layers = nn.ModuleList(self.layer(width, hidden_size, weight_keep) for width in widths)
        self.output = TiedOutput(self.embedding) if tied else nn.Linear(hidden_size, vocab_size)
        self.word_dropout, self.dropout = nn.Dropout(1 - embedding_keep), nn.Dropout(1 - keep)
        self.hidden_states = list(self.layers)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        for parameter in self.layers.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros (L, B, H)."""
        return self.output.weight.new_zeros(len(self.layers), batch_size, self.output.weight.shape[1])

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and the state after the window."""
        words = self.word_dropout(self.embedding.weight.new_ones(self.embedding.num_embeddings, 1))
        x, last = self.dropout(words[tokens] * self.embedding(tokens)), []
        for layer, h in zip(self.layers, state, strict=True):
            outputs = layer(x, h)
            last.append(outputs[-1])
            x = self.dropout(outputs)
        return self.output(x), torch.stack(last)


class RNN(RecurrentModel):
    """The stacked tanh RNN."""

    layer = RNNLayer


class GRU(RecurrentModel):
    """The stacked GRU."""

    layer = GRULayer


class LayerNorm(nn.Module):
    """Layer normalisation over the H units of each position, a * (x - mean) / (std + 1e-6) + b.

    The standard deviation is the unbiased one, so H must be at least 2. ``torch.nn.LayerNorm`` uses the biased one, and
    adds its epsilon to the variance (Ba et al., 2016): another function. Starts at a = 1, b = 0.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(hidden_size))
        self.b = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=-1, correction=1, keepdim=True)
        return self.a * (x - mean) / (std + 1e-6) + self.b


class MultiHeadAttention(nn.Module):
    """Causal self-attention with N heads of width K (Vaswani et al., 2017, section 3.2).

    Head i sees its K columns of q = W_q x + b_q, k = W_k x + b_k, v = W_v x + b_v (assignment, equations 10-12)::

        s_i = q_i k_i^T / sqrt(K),  with -1e9 where the key's position is later than the query's
        a_i = dropout(softmax(s_i))
        attention(x) = W_o [a_1 v_1, .., a_N v_N] + b_o

    Biases start uniform in [-1/sqrt(H), 1/sqrt(H)].
    """

    def __init__(self, hidden_size: int, num_heads: int, keep: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.dropout = nn.Dropout(1 - keep)
        for linear in (self.W_q, self.W_k, self.W_v, self.W_o):
            nn.init.uniform_(linear.bias, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)  # (B, N, T, K)
            for linear in (self.W_q, self.W_k, self.W_v)
        )
        later = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
        s = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -1e9)
        heads = self.dropout(s.softmax(dim=-1)) @ v
        mapped: Tensor = self.W_o(heads.permute(2, 0, 1, 3).flatten(2))
        return mapped


class MLP(nn.Module):
    """W_2 dropout(relu(W_1 x + b_1)) + b_2, the same for each position."""

    def __init__(self, hidden_size: int, inner_size: int, keep: float) -> None:
        super().__init__()
        self.W_1, self.W_2 = nn.Linear(hidden_size, inner_size), nn.Linear(inner_size, hidden_size)
        self.dropout = nn.Dropout(1 - keep)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.W_2(self.dropout(torch.relu(self.W_1(x))))
        return mapped


class Block(nn.Module):
    """A pre-norm block (Xiong et al., 2020): two residual steps, of attention and of an MLP."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, keep: float, attention_keep: float) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, num_heads, attention_keep)
        self.mlp_norm = LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size, mlp_size, keep)
        self.dropout = nn.Dropout(1 - keep)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        mapped: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return mapped


class Transformer(LanguageModel):
    """L blocks between an embedding with positions and a linear output layer.

    From the tokens of a window to the logits at each position::

        x_t = dropout(sqrt(H) embedding(token_t) + p_t)        p: sinusoids, t = 0 .. T - 1
        x   = block_L( .. block_1(x))
        logits = W_y norm(x) + b_y

    Each window is seen alone, so the state is empty, (0, B, H), and returned as it came. Every matrix starts
    Xavier-uniform (Glorot and Bengio, 2010).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 2,
        num_heads: int = 16,
        mlp_size: int = 2048,
        keep: float = 0.9,
        attention_keep: float = 0.9,
        embedding_keep: float = 1.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, mlp_size, keep, attention_keep) for _ in range(num_layers)
        )
        self.norm = LayerNorm(hidden_size)
        self.output = TiedOutput(self.embedding) if tied else nn.Linear(hidden_size, vocab_size)
        self.word_dropout, self.dropout = nn.Dropout(1 - embedding_keep), nn.Dropout(1 - keep)
        self.hidden_states = list(self.blocks)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def initial_state(self, batch_size: int) -> Tensor:
        """Return nothing, (0, B, H)."""
        return self.output.weight.new_zeros(0, batch_size, self.embedding.embedding_dim)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and ``state`` itself."""
        words = self.word_dropout(self.embedding.weight.new_ones(self.embedding.num_embeddings, 1))
        embedded = words[tokens] * self.embedding(tokens) * self.embedding.embedding_dim**0.5
        positions = torch.arange(len(tokens), dtype=embedded.dtype, device=embedded.device)
        x = self.dropout(embedded + sinusoids(positions, embedded.shape[-1])[:, None])
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x)), state


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the fixed vectors (T, H) of positions (T,) (Vaswani et al., 2017, section 3.5).

    One row for each position t::

        p[t, 2i] = sin(t / 10000^(2i/H))        p[t, 2i+1] = cos(t / 10000^(2i/H))
    """
    even = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device)
    angles = positions[:, None] * 10_000 ** (-even / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
