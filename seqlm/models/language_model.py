"""What every language model of the study can do, and how one samples from it."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.models.dropout import step_masks
from seqlm.models.output_loss import CHUNK_TOKENS, fused_output_loss
from seqlm.models.products import LinearMap, linear
from seqlm.models.state import State, tensors_of

Predictor: TypeAlias = Callable[[Int[Tensor, " B"]], Float[Tensor, "B V"]]
"""Takes the next token of each sequence, remembers it, and gives the logits of the token after it."""

Draw: TypeAlias = Callable[[Float[Tensor, "B V"]], Int[Tensor, " B"]]
"""Chooses the next token of each sequence from its logits."""


class LanguageModel(nn.Module, ABC):
    """p(x_{t+1} | x_1 .. x_t) as logits, for every t of a window: what seqlm asks of every model, its own ones too.

    A subclass has :meth:`initial_state` and :meth:`forward`. It may override everything else. docs/guides/own-model.md
    is the contract in one page.
    """

    batch_axis: int = 1
    """Axis of the batch in each tensor of the state."""
    label: str | None = None
    """Name in print. ``None``: that of the class."""
    vocab_size: int
    """V. Set when the model has been built; so is ``seq_len``."""
    seq_len: int
    """Tokens of a training window. A model without a state sees as many tokens back, at most, when it generates."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """What the model remembers before the first token. Type and device are those of the parameters."""

    @abstractmethod
    def forward(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "T B V"], State]:
        """The logits of each token's successor (natural logarithm), and the state after the window.

        The state stays in the graph: detach it to cut the gradient between windows.

        Raises:
            IndexError: on the CPU, if a token is not an id of the vocabulary, 0 .. V - 1.
        """

    def loss(
        self, tokens: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
    ) -> tuple[Float[Tensor, ""], State]:
        """The sum of -log p(target) over the window, in nats, and the state after the window.

        Raises:
            IndexError, RuntimeError: on the CPU, if a token or target is not an id of the vocabulary, 0 .. V - 1.
        """
        logits, state = self(tokens, state)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), state

    def token_losses(
        self, tokens: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
    ) -> tuple[Float[Tensor, "T B"], State]:
        """-log p(target) of each token, in nats, as float64, and the state after the window."""
        logits, state = self(tokens, state)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.double().view(targets.shape), state

    def predictor(self, state: State) -> Predictor:
        """The model as a function of one token at a time, starting from ``state``.

        A model that carries a state gets windows of one token. Another one gets the last ``seq_len`` tokens each time:
        once the window slides, each token is at another position.
        """
        carries_state = any(tensor.numel() for tensor in tensors_of(state))
        window: deque[Tensor] = deque(maxlen=1 if carries_state else self.seq_len)

        def predict(tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
            nonlocal state
            window.append(tokens)
            logits, state = self._last_logits(torch.stack(tuple(window)), state)
            return logits

        return predict

    def _last_logits(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "B V"], State]:
        logits, state = self(tokens, state)
        return logits[-1], state

    def flops_per_token(self, seq_len: int) -> int | None:
        """Floating-point operations of training per predicted token. ``None``: seqlm counts the matrix products."""
        return None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def sample(self, prompt: Int[Tensor, "P B"], state: State, length: int, draw: Draw) -> Int[Tensor, "length B"]:
        """Extend ``prompt`` by ``length`` tokens: ``draw`` sees the logits, and what it chooses is the next input.

        ``state`` is what the model remembers before ``prompt``, which is not part of the result. Dropout is off and no
        graph is kept; the training flag is as before afterwards.

        Raises:
            ValueError: if ``prompt`` is empty or ``length`` is less than 1.
        """
        for name, value in (("prompt", len(prompt)), ("length", length)):
            if value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value}")
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                predict = self.predictor(state)
                for tokens in prompt:
                    logits = predict(tokens)
                drawn = [draw(logits)]
                for _ in range(length - 1):
                    drawn.append(draw(predict(drawn[-1])))
                return torch.stack(drawn)
        finally:
            self.train(was_training)

    def generate(
        self,
        tokens: Int[Tensor, " B"],
        state: State,
        length: int,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
    ) -> Int[Tensor, "length B"]:
        """Sample recursively after the first token of each sequence: each token is drawn from the model's prediction.

        ``generator`` is the source of the draws, on the device of the parameters (``None``: the device's global one).
        The logits are divided by ``temperature`` before the softmax.

        Raises:
            ValueError: if ``length`` is less than 1, or ``temperature`` is not a positive finite number.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: expected a positive finite number, got {temperature}")

        def draw(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
            probabilities = scaled(logits, temperature).softmax(dim=-1)
            return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)

        return self.sample(tokens.unsqueeze(0), state, length, draw)


def hidden_states_of(model: LanguageModel) -> list[nn.Module] | None:
    """The modules whose outputs are the hidden states, the lowest layer first; ``None`` if the model names none.

    Models name them in an optional attribute or property ``hidden_states``. Each of the modules returns a tensor
    (T, B, H), or a tuple that begins with it. All that comes later is computed from it.
    """
    named = getattr(model, "hidden_states", None)
    return None if named is None else list(named)


class FusedModel(LanguageModel):
    """A model with hand-written gradients, of which :mod:`seqlm.models.reference` has the equations.

    Its modules are those of its reference, with their initial values. The logits are a linear layer of its features.
    """

    references: ClassVar[Mapping[str, type[LanguageModel]]]
    """Architecture -> the model of its equations, whose arguments have the names of the keys of the configuration."""
    output: LinearMap
    """The output layer, H -> V."""
    mask_key: Tensor | None = None
    """Decides which word types and weights are dropped (:func:`seqlm.models.dropout.step_masks`), () int64 on the
    device of the parameters. ``None``: each forward pass draws its own from the device's generator."""

    def __init__(self, config: Any, vocab_size: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        for name, module in self.by_equations(config, vocab_size).named_children():
            self.add_module(name, module)
        self.dtype = dtype
        """Type in which products are computed. ``None``: that of the parameters."""

    @classmethod
    def by_equations(cls, config: Any, vocab_size: int) -> LanguageModel:
        """Return the model of ``config`` by its equations, with fresh initial values."""
        arguments = asdict(config)
        return cls.references[arguments.pop("arch")](vocab_size, **arguments)

    @staticmethod
    @abstractmethod
    def self_check_shapes(config: Any) -> Iterator[tuple[Any, int, int, int]]:
        """Yield small configurations whose operations are like those of ``config``, each with T and B of a window.

        Widths leave the same remainder by 8: kernels of products depend on the alignment of rows. The last number is
        that of the products in a forward pass each of which depends on the one before.
        """

    @abstractmethod
    def features(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "T B H"], State]:
        """What the output layer reads at each time step, and the state after the window."""

    def forward(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "T B V"], State]:
        hidden, state = self.features(tokens, state)
        return linear(self.output, hidden, self.dtype), state

    def _last_logits(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "B V"], State]:
        hidden, state = self.features(tokens, state)
        return linear(self.output, hidden[-1], self.dtype), state

    def loss(
        self, tokens: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
    ) -> tuple[Float[Tensor, ""], State]:
        hidden, state = self.features(tokens, state)
        return fused_output_loss(self.output, hidden, targets, self.dtype), state

    def token_losses(
        self, tokens: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
    ) -> tuple[Float[Tensor, "T B"], State]:
        hidden, state = self.features(tokens, state)
        slices = zip(hidden.flatten(0, 1).split(CHUNK_TOKENS), targets.flatten().split(CHUNK_TOKENS), strict=True)
        losses = [F.cross_entropy(self.output(h), target, reduction="none").double() for h, target in slices]
        return torch.cat(losses).view(targets.shape), state

    @abstractmethod
    def masks(self, steps: int, columns: int) -> Iterator[Tensor | None]:
        """Yield the mask of each dropout of a window, in the order of the reference's. ``None``: nothing is dropped.

        Each is drawn at its ``next``, so that no mask is in memory before its operation.
        """

    def _step_masks(self, wanted: Sequence[tuple[Sequence[int], float]]) -> list[Tensor | None]:
        """Return a mask for each (shape, keep) of what a whole step shares; ``None``: nothing is dropped."""
        if not self.training or all(keep == 1 for _, keep in wanted):
            return [None] * len(wanted)
        weight, key = self.output.weight, self.mask_key
        if key is None:
            key = torch.empty((), dtype=torch.int64, device=weight.device).random_(-(2**63), None)
        return step_masks(key, wanted, weight)


def small_like(config: Any, **sizes: int) -> Any:
    """Return ``config`` with other sizes, and with half of the units kept of whatever it drops."""
    keeps = {name: 0.5 for name, value in asdict(config).items() if name.endswith("keep") and value < 1}
    return replace(config, **keeps, **sizes)


def scaled(logits: Float[Tensor, "B V"], temperature: float) -> Float[Tensor, "B V"]:
    """The logits divided by ``temperature``, shifted so that the largest is 0: no temperature makes them overflow."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature
