"""The checks of a user's own model, on one processor and small windows.

Most of them are one idea: a training step under a changed condition gives what the plain step gives (:data:`VARIANTS`).
Steps are taken with perturbed parameters, since a layer that starts at zero hides what it does.
"""

import contextlib
import functools
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from seqlm.architectures import CustomConfig
from seqlm.config import DataConfig, RunConfig, TrainConfig
from seqlm.data.corpus import Corpus
from seqlm.data.source import SPLITS
from seqlm.models import LanguageModel, build_model
from seqlm.models.custom import Adapter, described
from seqlm.models.dropout import Dropout
from seqlm.models.language_model import hidden_states_of
from seqlm.models.state import map_state, tensors_of
from seqlm.optimizers import AdamConfig
from seqlm.training.checkpoint import load_checkpoint, save_checkpoint
from seqlm.training.distributed import Rank
from seqlm.training.saving import copied_checkpoint
from seqlm.training.step import numbers_of, still_step
from seqlm.training.trainer import Trainer

SEED = 1
STEPS, COLUMNS, VOCAB = 7, 4, 41
"""T, B and V of the window. All differ, so that an exchanged axis shows."""
PERTURBATION = 0.1
"""Standard deviation of what is added to each parameter."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest entry, that counts as rounding in float32."""
PARTS = 3
"""Micro-batches: the columns do not divide evenly."""
LOGITS, TOKEN_LOSSES, LOSS, GRADIENT = "a logit", "the loss of a token", "the loss", "the gradient"

Numbers: TypeAlias = dict[str, Tensor]
"""What a step computes, by name."""


class BrokenContractError(Exception):
    """The model breaks the contract. The message is one sentence for its author."""


class Note(str):
    """What a check found if no rule is broken, but the author should know it."""

    __slots__ = ()


def require(condition: object, problem: str) -> None:
    """Raise BrokenContractError unless the condition holds."""
    if not condition:
        raise BrokenContractError(problem)


@final
class Subject:
    """A model of the user's, built as often as a check needs it, always with the same values."""

    def __init__(self, config: CustomConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        draw = torch.Generator().manual_seed(SEED)
        self.tokens, self.targets = torch.randint(VOCAB, (2, 2 * STEPS, COLUMNS), generator=draw)
        """Two windows (2 T, B)."""

    def build(self, vocab_size: int = VOCAB, seq_len: int = STEPS) -> LanguageModel:
        """Return a new model with initial values."""
        torch.manual_seed(SEED)
        return build_model(self.config, vocab_size, seq_len, folder=self.folder)

    def perturbed(self, *, training: bool) -> LanguageModel:
        """Return a new model with perturbed parameters."""
        return perturb(self.build()).train(training)

    @functools.cached_property
    def draws(self) -> bool:
        """Whether training draws random numbers without dropout. Steps are then compared in evaluation alone."""
        logits = []
        for seed in (1, 2):
            model = self.perturbed(training=True)
            torch.manual_seed(seed)
            with without_dropout(model), torch.no_grad():
                logits.append(model(self.tokens, model.initial_state(COLUMNS))[0])
        return not torch.equal(*logits)


@torch.no_grad()
def perturb(model: LanguageModel) -> LanguageModel:
    """Move every parameter away from its initial value."""
    torch.manual_seed(SEED)
    for parameter in model.parameters():
        parameter.add_(PERTURBATION * torch.randn_like(parameter))
    return model


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


def shape(tensor: Tensor) -> str:
    """``(7, 4, 41)``."""
    return f"({', '.join(map(str, tensor.shape))})"


# -- the plain step and its variants -------------------------------------------------------------------------------


def take(
    subject: Subject,
    training: bool,
    *,
    tokens: Tensor | None = None,
    columns: slice = slice(None),
    parts: int = 1,
    with_own_loss: bool = True,
) -> Numbers:
    """Take a step without dropout on the second of two windows (2 T, B), from the state that the first has left.

    Return the logits (T, B, V), the loss of each token (T, B), the loss, the state and the gradients.
    ``with_own_loss=False``: the losses are those of :class:`LanguageModel`, the cross-entropy of the logits in nats.
    """
    model = subject.perturbed(training=training)
    if not with_own_loss:
        for name in ("loss", "token_losses"):
            setattr(model, name, getattr(LanguageModel, name).__get__(model))
    first, window = (subject.tokens if tokens is None else tokens)[:, columns].split(STEPS)
    targets = subject.targets[STEPS:, columns]
    with without_dropout(model):
        with torch.no_grad():
            _, state = model(first, model.initial_state(first.shape[1]))
            logits, _ = model(window, map_state(Tensor.clone, state))
            losses, _ = model.token_losses(window, targets, map_state(Tensor.clone, state))
        step = still_step(model, STEPS * COLUMNS, micro_batches=parts)
        numbers = numbers_of(step, window, targets, map_state(Tensor.clone, state))
    return {LOGITS: logits, TOKEN_LOSSES: losses, **numbers}


@functools.lru_cache(maxsize=2)
def plain_step(subject: Subject, training: bool) -> Numbers:
    """Take the plain step. Several checks compare with it."""
    return take(subject, training)


def later_tokens(subject: Subject, training: bool, position: int) -> Numbers:
    """Change the token at ``position`` and those after it. What is before them stays."""
    tokens = subject.tokens.clone()
    tokens[STEPS + position :, 0] = (tokens[STEPS + position :, 0] + 1) % VOCAB
    numbers = take(subject, training, tokens=tokens)
    return {name: numbers[name][:position] for name in (LOGITS, TOKEN_LOSSES)}


def single_columns(subject: Subject, training: bool) -> Numbers:
    """Take the step with each column on its own, as ranks would. Losses and gradients add up."""
    steps = [take(subject, training, columns=slice(column, column + 1)) for column in range(COLUMNS)]
    numbers = {name: torch.cat([step[name] for step in steps], dim=1) for name in (LOGITS, TOKEN_LOSSES)}
    summed = [name for name in steps[0] if name == LOSS or name.startswith(GRADIENT)]
    return numbers | {name: torch.stack([step[name] for step in steps]).sum(dim=0) for name in summed}


@torch.no_grad()
def token_by_token(subject: Subject, training: bool) -> Numbers:
    """Predict both windows one token after the other, as a model generates; without a state, the second one alone."""
    model = subject.perturbed(training=training)
    start = model.initial_state(COLUMNS)
    tokens = subject.tokens if any(tensor.numel() for tensor in tensors_of(start)) else subject.tokens[STEPS:]
    with without_dropout(model):
        predict = model.predictor(start)
        return {LOGITS: torch.stack([predict(row) for row in tokens])[-STEPS:]}


class Variant(NamedTuple):
    """A changed condition under which a step gives what the plain step gives."""

    check: str
    changed: Callable[[Subject, bool], Numbers]
    """Takes the step in training or in evaluation; returns the leading part of what has to be the same, by name."""
    problem: str
    """What to report. ``{name}`` is what differs first."""


BATCH = "the model may use statistics over the batch, or count its calls"
VARIANTS = (
    *(
        Variant(
            "causality",
            functools.partial(later_tokens, position=position),
            f"the model sees the future: token {position + 1} of a window changes {{name}} before it",
        )
        for position in range(1, STEPS)
    ),
    Variant("columns", single_columns, f"columns mix: {{name}} differs if each column is on its own; {BATCH}"),
    Variant(
        "carried state",
        token_by_token,
        "{name} of a window differs if it is seen one token after the other, with the state carried",
    ),
    Variant(
        "micro-batches",
        functools.partial(take, parts=PARTS),
        f"a batch in {PARTS} parts is not the whole batch: {{name}} differs; {BATCH}",
    ),
)
"""The checks that compare steps. ``resume`` and ``loss`` do so too, in their own way."""


def compare(check: str, holds: str, subject: Subject) -> str:
    """Compare the variants of a check with the plain step, in evaluation and in training. Return what then holds."""
    where = ", in evaluation: training draws random numbers without a dropout of PyTorch or seqlm"
    for training in (False,) if subject.draws else (False, True):
        plain = plain_step(subject, training)
        for variant in VARIANTS:
            if variant.check == check:
                name = differing(variant.changed(subject, training), plain)
                require(name is None, variant.problem.format(name=name) + where * subject.draws)
    return holds + where * subject.draws


def differing(found: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> str | None:
    """Return the first name whose tensor is not, up to rounding, the leading part of that of the plain step.

    A gradient that is zero by construction, such as that by the bias of a Transformer's keys, is nothing but rounding:
    gradients are compared on a scale of at least 1 % of the largest entry of any gradient.
    """
    largest = {name: float(tensor.double().abs().max()) for name, tensor in plain.items() if tensor.numel()}
    least = 0.01 * max((size for name, size in largest.items() if name.startswith(GRADIENT)), default=0.0)
    for name in (name for name in largest if name in found):
        wanted = plain[name][tuple(map(slice, found[name].shape))]
        scale = max(largest[name], least if name.startswith(GRADIENT) else 0.0, 1e-12)
        error = float((found[name].double() - wanted.double()).abs().max())
        if not error <= TOLERANCE * scale:  # NaN differs
            return name
    return None


# -- checks of their own -------------------------------------------------------------------------------------------


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
            require(
                not tensor.requires_grad,
                "initial_state returns a parameter, or what is computed from one. No gradient passes between windows, "
                "so it would not be trained; add it in forward (docs/guides/own-model.md, a learned start)",
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
def evaluation(subject: Subject) -> str:
    """An evaluation gives the same the second time, and changes no state, buffer or parameter."""
    model, tokens = subject.perturbed(training=False), subject.tokens
    state = model.initial_state(COLUMNS)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held |= {f"the state ({number})": tensor for number, tensor in enumerate(tensors_of(state), start=1)}
    before = {name: tensor.clone() for name, tensor in held.items()}
    logits, _ = model(tokens, state)
    held |= dict(model.named_buffers())  # forward may have assigned another tensor
    for name, tensor in held.items():
        is_same = name in before and torch.equal(tensor, before[name])
        advice = "change a buffer only if self.training is True, and return a new state (h = h + x, not h += x)"
        require(is_same, f"an evaluation changes {name.removeprefix('module.')}; {advice}")
    is_same = differing({LOGITS: model(tokens, state)[0]}, {LOGITS: logits}) is None
    advice = "it draws random numbers (F.dropout needs training=self.training), or keeps something from call to call"
    require(is_same, f"an evaluation gives other logits the second time; {advice}")
    return "repeats itself, and changes no state, buffer or parameter"


def loss(subject: Subject) -> str:
    """The model's own losses are the cross-entropy of its logits in nats. In training, ``loss`` may add to it."""
    name = differing(plain_step(subject, False), take(subject, False, with_own_loss=False))
    require(name is None, f"{name} differs from the cross-entropy of forward in nats, which the report would not see")
    own, plain = plain_step(subject, True), take(subject, True, with_own_loss=False)
    if not subject.draws and differing(own, plain) is not None:
        more = float(own[LOSS] - plain[LOSS]) / (STEPS * COLUMNS)
        return Note(f"in training, a regulariser adds {more:.3g} nats per token here to the cross-entropy of forward")
    model = subject.build()
    if isinstance(model, Adapter) and hasattr(model.module, "loss"):
        return Note("the method loss is not used; a subclass of seqlm.models.LanguageModel may override it")
    return "the summed cross-entropy of forward, in nats"


def gradients(subject: Subject) -> str:
    """The loss of two windows in one has a gradient by every parameter."""
    model = subject.perturbed(training=True)
    trained = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    total, _ = model.loss(subject.tokens, subject.targets, model.initial_state(COLUMNS))
    total.backward()
    found = {name: torch.zeros(()) if p.grad is None else p.grad for name, p in trained.items()}
    without = [name for name, gradient in found.items() if not gradient.any()]
    names = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
    advice = "use every parameter in forward, or set its requires_grad to False"
    require(not without, f"no gradient reaches {names}; {advice}")
    for name, gradient in found.items():
        require(gradient.isfinite().all(), f"the gradient by {name} is not finite")
    return f"reach all {len(trained)} tensors of parameters"


def hidden_states(subject: Subject) -> str:
    """The modules that the model names return hidden states, from which the logits and the carried state follow.

    A model that carries a state gets one token at a time, so that gradients by earlier outputs pass through the state.
    """
    model = subject.perturbed(training=False)
    layers = hidden_states_of(model)
    if layers is None:
        return "none named; the report will have no gradient norms"
    state = model.initial_state(COLUMNS)
    carries = any(tensor.numel() for tensor in tensors_of(state))
    outputs: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output)) for layer in layers]
    windows = subject.tokens[:STEPS].split(1 if carries else STEPS)
    for window in windows:
        logits, state = model(window, state)
    for hook in hooks:
        hook.remove()
    found = [output[0] if isinstance(output, tuple) else output for output in outputs]
    wanted = (len(windows[0]), COLUMNS)
    forms = [shape(one) if isinstance(one, Tensor) else type(one).__name__ for one in found[: len(layers)]]
    are_right = (isinstance(one, Tensor) and one.dim() == 3 and one.shape[:2] == wanted for one in found)
    require(
        len(found) == len(layers) * len(windows) and all(are_right),
        f"the {len(layers)} modules of hidden_states return {', '.join(forms) or 'nothing'} in a window; expected one "
        f"tensor (T, B, H) = ({wanted[0]}, {wanted[1]}, H) of each, in their order",
    )
    error = nn.functional.cross_entropy(logits[-1], subject.targets[STEPS - 1], reduction="sum")
    reached = torch.autograd.grad(error, found, allow_unused=True, materialize_grads=True)
    problem = "the logits are not computed from what each module of hidden_states returns"
    require(all(gradient.any() for gradient in reached[-len(layers) :]), problem)
    if carries:
        earlier = [reached[number : -len(layers) : len(layers)] for number in range(len(layers))]
        problem = (
            "the carried state is not computed from what each module of hidden_states returns, so that the report "
            "would show a model without memory; name modules whose output is carried on, or none"
        )
        require(all(any(gradient.any() for gradient in of_layer) for of_layer in earlier), problem)
    return f"{len(layers)} layers"


def resume(subject: Subject) -> str:
    """Training that goes on from the file of a checkpoint equals training without a stop, bit for bit."""
    whole, stopped, resumed = (_trainer(subject) for _ in range(3))
    is_same = _train(whole, 2) == _train(stopped, 2)
    advice = "draw all random numbers from torch's generator, not from random or numpy"
    require(is_same, f"the same seed gives another loss; {advice}")
    with tempfile.TemporaryDirectory(prefix="seqlm-resume-") as folder:
        file = Path(folder) / "last.pt"
        save_checkpoint(file, copied_checkpoint(stopped.checkpoint(), {}))
        total = _train(whole, 4)  # all draw from one generator, which restore sets
        resumed.restore(load_checkpoint(file, resumed.config.fingerprint()))
    is_same = _train(resumed, 4) == total
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    is_same = is_same and all(torch.equal(one, other) for one, other in pairs)
    advice = "keep what changes from step to step in the state, in a parameter or in a buffer"
    require(is_same, f"a resumed training is not the one without a stop; {advice}")
    return "four steps with a stop equal four steps without, bit for bit"


def _trainer(subject: Subject) -> Trainer:
    """A run that trains the perturbed model on a text of four windows."""
    config = RunConfig(
        model=subject.config,
        data=DataConfig(corpus="files"),
        optim=AdamConfig(optimizer="adam", lr=0.01),
        train=TrainConfig(batch_size=COLUMNS, seq_len=STEPS),
    )
    text = memoryview(array("i", [number**2 % VOCAB for number in range(COLUMNS * (4 * STEPS + 1))]))
    splits, vocabulary = dict.fromkeys(SPLITS, text), tuple(map(str, range(VOCAB)))
    corpus = Corpus(vocabulary=vocabulary, splits=splits, sha256="", bytes={}, lossless=True)
    trainer = Trainer(config, corpus, rank=Rank(), model_dir=subject.folder)
    perturb(trainer.model)
    return trainer


def _train(trainer: Trainer, steps: int) -> float:
    """Train the first ``steps`` steps; return the sum of their losses in nats."""
    for _ in trainer.events(1):
        if trainer.step == steps:
            break
    return trainer.total.loss_nats


def recording(subject: Subject) -> str:
    """A step runs on tensors without values, so that a GPU can record it: no numbers read back, and fixed shapes.

    Tensors of the device ``meta`` have shapes and no values. Whatever needs a value fails on them. A model whose step
    cannot be recorded trains on a GPU without a recording.
    """
    model = subject.build().train().to("meta")
    tokens, targets = (text[STEPS:].to("meta") for text in (subject.tokens, subject.targets))
    buffers = dict(model.named_buffers())
    try:
        with _NoTransfers():
            total, _ = model.loss(tokens, targets, model.initial_state(COLUMNS))
            total.backward()
        for name, buffer in model.named_buffers():
            if buffer is not buffers.get(name):
                raise RuntimeError(
                    f"forward assigns another tensor to the buffer {name.removeprefix('module.')}; change it in place"
                )
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = described(error, subject.config.file)
        advice = "register it as a buffer; in initial_state, use weight.new_zeros"
        require("expected device" not in reason, f"a tensor does not move with the model; {advice}: {reason}")
        return Note(
            "a GPU cannot record the step, which reads a number back, has a shape that depends on values, copies from "
            f"the processor or assigns a buffer; it would launch its operations one by one, which is slower: {reason}"
        )
    return "reads no number back, and its shapes are fixed"


@final
class _NoTransfers(TorchFunctionMode):
    """Refuse functions that copy from the processor's memory to the device of the model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_meta:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_meta]
            is_copy = func in (Tensor.to, Tensor.type_as, Tensor.copy_)
            is_large = any(tensor.dim() for tensor in inputs)  # a kernel takes a single number as an argument
            if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) or (inputs and (is_copy or is_large)):
                name = func.__name__
                raise RuntimeError(f"{name} copies from the processor; make tensors with device=tokens.device")
        return made
