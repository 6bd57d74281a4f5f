"""The checks of a user's own model on one processor, each on the same small window."""

import contextlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seqlm.architectures import CustomConfig
from seqlm.config import DataConfig, RunConfig, TrainConfig
from seqlm.data.corpus import Corpus
from seqlm.data.layout import own_columns
from seqlm.data.source import SPLITS
from seqlm.models import LanguageModel, build_model
from seqlm.models.custom import described
from seqlm.models.dropout import Dropout
from seqlm.models.language_model import hidden_states_of
from seqlm.models.state import State, map_state, tensors_of
from seqlm.optimizers import AdamConfig
from seqlm.training.distributed import Rank
from seqlm.training.step import numbers_of, still_step
from seqlm.training.trainer import Trainer

SEED = 1
STEPS, COLUMNS, VOCAB = 7, 4, 41
"""T, B and V of the window. All differ, so that an exchanged axis shows."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest entry, that counts as rounding in float32."""
PARTS = 3
"""Micro-batches: the columns do not divide evenly."""


class BrokenContractError(Exception):
    """The model breaks the contract. The message is one sentence for its author."""


def require(condition: object, problem: str) -> None:
    """Raise BrokenContractError unless the condition holds."""
    if not condition:
        raise BrokenContractError(problem)


@final
class Subject:
    """A model of the user's, built as often as a check needs it, always with the same initial values."""

    def __init__(self, config: CustomConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        draw = torch.Generator().manual_seed(SEED)
        self.tokens, self.targets = torch.randint(VOCAB, (2, 2 * STEPS, COLUMNS), generator=draw)
        """Two windows (2 T, B)."""

    def build(self, vocab_size: int = VOCAB, seq_len: int = STEPS) -> LanguageModel:
        """A new model with the same initial values each time."""
        torch.manual_seed(SEED)
        return build_model(self.config, vocab_size, seq_len, folder=self.folder)


@contextlib.contextmanager
def without_dropout(model: LanguageModel) -> Iterator[None]:
    """Let dropout keep every unit of ``model`` while the block runs, so that training steps can be compared.

    Covers functions of PyTorch with "dropout" in their name, which its dropout modules call, the dropout of ``nn.LSTM``
    and ``nn.MultiheadAttention``, and that of seqlm. The last two stay switched off.
    """
    for module in model.modules():
        if isinstance(module, Dropout):
            module.eval()
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            module.dropout = 0.0
    with _KeepAll():
        yield


@final
class _KeepAll(TorchFunctionMode):
    """Return the input of a dropout function, however the model has imported it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else options["input"]
        if "dropout_p" in options:  # scaled_dot_product_attention
            options = {**options, "dropout_p": 0.0}
        return func(*args, **options)


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The names whose tensors differ by more than rounding, of those that both have.

    A gradient that is zero by construction, such as that by the bias of a Transformer's keys, is nothing but rounding:
    tensors are compared on a scale of at least 1 % of the largest entry of any gradient.
    """
    gradients = [tensor for name, tensor in wanted.items() if name.startswith("the gradient") and tensor.numel()]
    least = 0.01 * max((float(tensor.abs().max()) for tensor in gradients), default=0) + 1e-12
    both = (name for name in wanted if name in found)
    return [name for name in both if difference(found[name], wanted[name], least=least) > TOLERANCE]


def difference(found: State, wanted: State, *, least: float = 1e-12) -> float:
    """The largest deviation of any entry, relative to the largest entry wanted of its tensor; infinite for NaN.

    ``least``: the smallest number that deviations are relative to.
    """
    worst = 0.0
    for one, other in zip(tensors_of(found), tensors_of(wanted), strict=True):
        if one.numel():
            scale = max(float(other.detach().abs().max()), least)
            error = float((one.detach() - other.detach()).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    return worst


def shape(tensor: Tensor) -> str:
    """``(7, 4, 41)``."""
    return f"({', '.join(map(str, tensor.shape))})"


# -- the checks ----------------------------------------------------------------------------------------------------


def shapes(subject: Subject) -> str:
    """State, logits and the state after a window have the right form, for several lengths and numbers of columns."""
    model = subject.build().eval()
    axis = model.batch_axis
    for steps, columns in ((STEPS, COLUMNS), (STEPS, 1), (1, COLUMNS)):
        state = model.initial_state(columns)
        is_state = _is_state(state)
        require(
            is_state, f"initial_state returns a {type(state).__name__}; expected a tensor, a tuple of them, or None"
        )
        for tensor in tensors_of(state):
            require(
                axis < tensor.dim() and tensor.shape[axis] == columns,
                f"initial_state({columns}) returns a tensor {shape(tensor)}; expected the batch of {columns} on axis "
                f"{axis} (batch_axis says which one)",
            )
        found = model(subject.tokens[:steps, :columns], state)
        is_pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)
        require(is_pair, "forward returns no pair: expected (logits, state)")
        logits, after = found
        wanted = f"(T, B, V) = ({steps}, {columns}, {VOCAB})"
        fits = logits.shape == (steps, columns, VOCAB)
        require(fits, f"forward returns logits of shape {shape(logits)}, expected {wanted}")
        require(logits.isfinite().all(), "forward returns logits that are not finite numbers")
        forms = [[(tensor.shape, tensor.dtype) for tensor in tensors_of(one)] for one in (state, after)]
        listed = [", ".join(map(shape, tensors_of(one))) or "None" for one in (state, after)]
        require(
            forms[0] == forms[1], f"forward turns a state of {listed[0]} into one of {listed[1]}; expected the same"
        )
    form = "no state" if listed[0] == "None" else f"a state of {listed[0]}"
    return f"{form} for {COLUMNS} columns; logits (T, B, V)"


def _is_state(value: Any) -> bool:
    return value is None or isinstance(value, Tensor) or (isinstance(value, tuple) and all(map(_is_state, value)))


@torch.no_grad()
def causality(subject: Subject) -> str:
    """A later token changes no earlier logit, and no token changes another column, in training and in evaluation."""
    model, tokens = subject.build(), subject.tokens[:STEPS]
    has_trained = _is_deterministic(subject)
    where = _where(has_trained)
    for training in (False, True) if has_trained else (False,):
        logits = _logits(model.train(training), tokens)
        mixes = False
        for later in range(1, STEPS):
            changed = tokens.clone()
            changed[later, 0] = (changed[later, 0] + 1) % VOCAB
            off = (_logits(model, changed) - logits).abs().amax(dim=2) > TOLERANCE * logits.abs().max()
            if (leaks := off[:later].any(dim=1)).any():
                raise BrokenContractError(
                    f"the model sees the future: token {later + 1} of a window changes the logits at position "
                    f"{int(leaks.nonzero()[0]) + 1}{where}"
                )
            mixes |= bool(off[:, 1:].any())
        require(not mixes, f"columns mix: the tokens of column 1 change the logits of the others{where}")
    return f"no logit depends on a later token or on another column{where}"


def _logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The logits (T, B, V) of a window, without dropout. Buffers stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits: Tensor
    with without_dropout(model):
        logits, _ = torch.func.functional_call(model, buffers, (tokens, model.initial_state(tokens.shape[1])))
    return logits


def _where(training: bool) -> str:
    return "" if training else ", in evaluation: training draws random numbers without a dropout of PyTorch or seqlm"


@torch.no_grad()
def evaluation(subject: Subject) -> str:
    """An evaluation changes no buffer and no parameter."""
    model = subject.build().eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    model(subject.tokens[:STEPS], model.initial_state(COLUMNS))
    after = {**tensors, **dict(model.named_buffers())}  # forward may have assigned another tensor
    for name, tensor in after.items():
        is_same = torch.equal(tensor, before[name])
        name = name.removeprefix("module.")
        require(is_same, f"an evaluation changes {name}; change a buffer only if self.training is True")
    return "changes no buffer"


@torch.no_grad()
def carried_state(subject: Subject) -> str:
    """Two windows with the state carried are one window of both."""
    model = subject.build().eval()
    start = model.initial_state(COLUMNS)
    if not any(tensor.numel() for tensor in tensors_of(start)):
        return "no state: each window is seen alone"
    whole, end = model(subject.tokens, start)
    first, state = model(subject.tokens[:STEPS], model.initial_state(COLUMNS))
    second, after = model(subject.tokens[STEPS:], state)
    two = "two windows with the state carried"
    is_same = difference(first, whole[:STEPS]) <= TOLERANCE
    require(is_same, "a longer window changes the logits of its first half")
    off = difference(second, whole[STEPS:])
    require(off <= TOLERANCE, f"{two} are not one long window: logits of the second differ by {off:.1g}")
    is_same = difference(after, end) <= TOLERANCE
    require(is_same, f"{two} end in another state than one long window")
    return f"{two} are one long window"


def gradients(subject: Subject) -> str:
    """The loss of a window has a gradient by every parameter."""
    model = subject.build().train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():  # a layer that starts at zero passes no gradient on
        for parameter in trained.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = model.initial_state(COLUMNS)
    for window in (slice(0, STEPS), slice(STEPS, 2 * STEPS)):
        loss, state = model.loss(subject.tokens[window], subject.targets[window], map_state(Tensor.detach, state))
        loss.backward()
    without = [name.removeprefix("module.") for name, p in trained.items() if p.grad is None or not p.grad.any()]
    names = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
    advice = "use every parameter in forward, or set its requires_grad to False"
    require(not without, f"no gradient reaches {names}; {advice}")
    for name, p in trained.items():
        is_finite = p.grad is not None and p.grad.isfinite().all()
        require(is_finite, f"the gradient by {name.removeprefix('module.')} is not finite")
    return f"reach all {len(trained)} tensors of parameters"


def hidden_states(subject: Subject) -> str:
    """The modules that the model names return hidden states, and the last logits are computed from them."""
    model = subject.build().eval()
    layers = hidden_states_of(model)
    if layers is None:
        return "none named; the report will have no gradient norms"
    outputs: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output)) for layer in layers]
    logits, _ = model(subject.tokens[:STEPS], model.initial_state(COLUMNS))
    for hook in hooks:
        hook.remove()
    found = [output[0] if isinstance(output, tuple) else output for output in outputs]
    forms = [shape(one) if isinstance(one, Tensor) else type(one).__name__ for one in found]
    are_right = (isinstance(one, Tensor) and one.dim() == 3 and one.shape[:2] == (STEPS, COLUMNS) for one in found)
    require(
        len(found) == len(layers) and all(are_right),
        f"the {len(layers)} modules of hidden_states return {', '.join(forms) or 'nothing'} in a window; expected one "
        f"tensor (T, B, H) = ({STEPS}, {COLUMNS}, H) of each",
    )
    reached = torch.autograd.grad(logits[-1].sum(), found, allow_unused=True)
    problem = "the logits are not computed from what each module of hidden_states returns"
    require(all(gradient is not None for gradient in reached), problem)
    return f"{len(layers)} layers"


def resume(subject: Subject) -> str:
    """Training that goes on from saved parameters, state and generator equals training without a stop, bit for bit."""
    whole, stopped, resumed = (_trainer(subject) for _ in range(3))
    is_same = _loss(whole, 2) == _loss(stopped, 2)
    advice = "draw all random numbers from torch's generator, not from random or numpy"
    require(is_same, f"the same seed gives another loss; {advice}")
    saved, loss = stopped.checkpoint(), _loss(whole, 4)
    resumed.restore(saved)
    is_same = _loss(resumed, 4) == loss
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    is_same = is_same and all(torch.equal(one, other) for one, other in pairs)
    advice = "keep what changes from step to step in the state, in a parameter or in a buffer"
    require(is_same, f"a resumed training is not the one without a stop; {advice}")
    return "four steps with a stop equal four steps without, bit for bit"


def _trainer(subject: Subject) -> Trainer:
    """A run that trains the model on a text of four windows."""
    config = RunConfig(
        model=subject.config,
        data=DataConfig(corpus="files"),
        optim=AdamConfig(optimizer="adam", lr=0.01),
        train=TrainConfig(batch_size=COLUMNS, seq_len=STEPS),
    )
    text = memoryview(array("i", [number**2 % VOCAB for number in range(COLUMNS * (4 * STEPS + 1))]))
    splits, vocabulary = dict.fromkeys(SPLITS, text), tuple(map(str, range(VOCAB)))
    corpus = Corpus(vocabulary=vocabulary, splits=splits, sha256="", bytes={}, lossless=True)
    return Trainer(config, corpus, rank=Rank(), model_dir=subject.folder)


def _loss(trainer: Trainer, steps: int) -> float:
    """Train the first ``steps`` steps; return the sum of their losses in nats."""
    for _ in trainer.events(1):
        if trainer.step == steps:
            break
    return trainer.total.loss_nats


def micro_batches(subject: Subject) -> str:
    """A step in several parts is the step of the whole batch."""
    whole, parts = (gradients_of(subject, parts=parts) for parts in (1, PARTS))
    wrong, advice = differing(parts, whole), "the model may use statistics over the batch, or count its calls"
    require(not wrong, f"a batch in {PARTS} parts is not the whole batch: {', '.join(wrong[:1])} differs; {advice}")
    return f"a batch in {PARTS} parts is the whole batch{_where(_is_deterministic(subject))}"


def two_ranks(subject: Subject) -> str:
    """The gradients of two models, each with its share of the columns, add up to those of the whole batch."""
    shares = [own_columns(COLUMNS, rank, 2) for rank in range(2)]
    whole, *found = (gradients_of(subject, columns=slice(own.start, own.stop)) for own in (range(COLUMNS), *shares))
    sums = {name: found[0][name] + found[1][name] for name in whole if name.startswith("the gradient")}
    wrong = ", ".join(differing(sums, whole)[:1])
    require(not wrong, f"two ranks are not one: {wrong} differs; the model may use statistics over the batch")
    return "two ranks take the step of one"


def gradients_of(subject: Subject, *, parts: int = 1, columns: slice = slice(0, COLUMNS)) -> dict[str, Tensor]:
    """What a step in ``parts`` on these columns of the first window gives: loss, state, gradients, without dropout."""
    model = subject.build().train(mode=_is_deterministic(subject))
    step = still_step(model, STEPS * COLUMNS, micro_batches=parts)
    tokens, targets = subject.tokens[:STEPS, columns], subject.targets[:STEPS, columns]
    with without_dropout(model):
        return numbers_of(step, tokens, targets, model.initial_state(tokens.shape[1]))


@torch.no_grad()
def _is_deterministic(subject: Subject) -> bool:
    """Whether training draws no random numbers without dropout. Otherwise windows are compared in evaluation."""
    model = subject.build().train()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(_logits(model, subject.tokens[:STEPS]))
    return torch.equal(*found)


def capture(subject: Subject) -> str:
    """A step runs on tensors without values, so that a GPU can record it: no numbers read back, and fixed shapes.

    Tensors of the device ``meta`` have shapes and no values. Whatever needs a value fails on them, as it would stop a
    GPU; so does a tensor that does not move with the model.
    """
    model = subject.build().train().to("meta")
    tokens, targets = (text[:STEPS].to("meta") for text in (subject.tokens, subject.targets))
    try:
        loss, _ = model.loss(tokens, targets, model.initial_state(COLUMNS))
        loss.backward()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise BrokenContractError(
            "a GPU cannot record the step, which reads a number back, has a shape that depends on values, or uses a "
            "tensor that does not move with the model (initial_state may make one, if not by weight.new_zeros): "
            f"{described(error, subject.config.file)}"
        ) from error
    return "reads no number back, and its shapes are fixed"
