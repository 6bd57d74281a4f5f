"""A small model of a user's that keeps the contract, and others that break it, each in one place."""

from pathlib import Path

SOUND = """
import random
import torch
from torch import nn

class Model(nn.Module):
    batch_axis = 0

    def __init__(self, vocab_size, hidden_size=8):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.W = nn.Linear(2 * hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocab_size)
        self.hidden_size = hidden_size
        # init

    def initial_state(self, batch_size):
        return self.output.weight.new_zeros(batch_size, self.hidden_size)

    def forward(self, tokens, state):
        outputs = []
        for x in self.embedding(tokens):
            state = torch.tanh(self.W(torch.cat((x, state), dim=-1)))
            outputs.append(state)
        h = torch.stack(outputs)
        # hidden
        logits = self.output(h)
        # logits
        return logits, state
"""

INIT, HIDDEN, LOGITS = "# init", "# hidden", "# logits"
COUNTS = (
    (
        INIT,
        "self.register_buffer('steps', torch.zeros(())); "
        "self.register_buffer('scale', torch.ones(1).expand(2), persistent=False)",
    ),
    (HIDDEN, "self.steps.add_(self.training); h = h * 0.9**self.steps * self.scale[0]"),
)
"""Changes that keep the contract: a buffer that counts the steps of the training, and one that cannot be written."""
UNRECORDABLE = {
    "reads a number back": [(HIDDEN, "h = h / max(1.0, h.abs().max().item())")],
    "has a shape that depends on values": [(LOGITS, "logits = logits + 0.0 * logits[logits > 0].sum()")],
    "makes a tensor on the processor": [(HIDDEN, "h = h + torch.arange(len(h)).to(h)[:, None, None] * 0")],
    "makes a tensor of numbers": [(HIDDEN, "h = h * torch.tensor([1.0] * 8, device=h.device)")],
    "indexes by a tensor of the processor": [(HIDDEN, "h = h[..., torch.arange(8)]")],
    "assigns another tensor to a buffer": [
        (INIT, "self.register_buffer('steps', torch.zeros(()))"),
        (HIDDEN, "self.steps = self.steps + 1 if self.training else self.steps"),
    ],
}
"""Changes that keep the contract, and with which a GPU cannot record a step."""
FAULTS: dict[str, tuple[list[tuple[str, str]], str, str]] = {
    "time and batch exchanged": (
        [(LOGITS, "logits = logits.transpose(0, 1)")],
        "shapes",
        "forward returns logits of shape (4, 7, 41), expected (T, B, V) = (7, 4, 41)",
    ),
    "state without the batch": (
        [("new_zeros(batch_size, self.hidden_size)", "new_zeros(1, self.hidden_size)")],
        "shapes",
        "initial_state(4) returns a tensor (1, 8); expected the batch of 4 on axis 0 (batch_axis says which one)",
    ),
    "drops the state": (
        [(LOGITS, "state = torch.zeros_like(state)")],
        "carried state",
        "a logit of a window differs if it is seen one token after the other, with the state carried",
    ),
    "unused parameter": (
        [(INIT, "self.unused = nn.Linear(3, 3)")],
        "gradients",
        "no gradient reaches unused.weight, unused.bias; use every parameter in forward",
    ),
    "hidden states of another form": (
        [(INIT, "self.hidden_states = [self.output, self.W]")],
        "hidden states",
        "the 2 modules of hidden_states return ",
    ),
    "counts its calls in an attribute": (
        [(HIDDEN, "self.calls = getattr(self, 'calls', 0) + self.training; h = h * 0.9**self.calls")],
        "resume",
        "a resumed training is not the one without a stop",
    ),
    "batch normalization after a dropout of its own": (
        [
            ("import random", "from torch.nn.functional import dropout"),
            (INIT, "self.norm = nn.BatchNorm1d(hidden_size)"),
            (HIDDEN, "h = self.norm(dropout(h, 0.5, self.training).flatten(0, 1)).view_as(h)"),
        ],
        "causality",
        "the model sees the future: token 2 of a window changes a logit before it",
    ),
    "a gradient that depends on the size of the batch": (
        [(LOGITS, "logits = logits / len(state) if self.training else logits")],
        "columns",
        "columns mix: a logit differs if each column is on its own",
    ),
    "a buffer that an evaluation changes": (
        [(INIT, "self.register_buffer('calls', torch.zeros(()))"), (HIDDEN, "self.calls.add_(1)")],
        "evaluation",
        "an evaluation changes calls; change a buffer only if self.training is True",
    ),
}
"""What is wrong -> replacements of texts of the sound model, the check that catches it, and how its line begins."""


def write_model(folder: Path, *changes: tuple[str, str], name: str = "model.py") -> Path:
    """Write the sound model with ``changes`` to a file of ``folder``."""
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text, "utf-8")
    return path
