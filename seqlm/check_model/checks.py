"""The checks of a user's own model on one processor, each on the same small window."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seqlm.architectures import CustomConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.custom import described
from seqlm.models.dropout import Dropout
from seqlm.models.language_model import hidden_states_of
from seqlm.models.state import State, map_state, tensors_of
from seqlm.training.distributed import Rank
from seqlm.training.optimizers import restore_optimizer
from seqlm.training.step import TrainingStep, numbers_of, still_step

SEED = 1
STEPS, COLUMNS, VOCAB = 7, 4, 41
"""T, B and V of the window. All differ, so that an exchanged axis shows."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest entry, that counts as rounding in float32."""
PARTS = 3
"""Micro-batches: the columns do not divide evenly."""


class BrokenContractError(Exception):
    """The model breaks the contract. The message is one sentence for its author."""


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

    Covers dropout modules, the dropout of ``nn.LSTM`` and ``nn.MultiheadAttention``, and functions of PyTorch with
    "dropout" in their name. The modules stay switched off.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | Dropout):
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
    for steps, columns in ((STEPS, COLUMNS), (1, COLUMNS), (STEPS, 1)):
        state = model.initial_state(columns)
        _require_state(model, state, columns)
        found = model(subject.tokens[:steps, :columns], state)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
            raise BrokenContractError("forward returns no pair: expected (logits, state)")
        logits, after = found
        if logits.shape != (steps, columns, VOCAB):
            wanted = f"(T, B, V) = ({steps}, {columns}, {VOCAB})"
            raise BrokenContractError(f"forward returns logits of shape {shape(logits)}, expected {wanted}")
        if not logits.isfinite().all():
            raise BrokenContractError("forward returns logits that are not finite numbers")
        forms = [[(tensor.shape, tensor.dtype) for tensor in tensors_of(one)] for one in (state, after)]
        if forms[0] != forms[1]:
            listed = [", ".join(map(shape, tensors_of(one))) or "None" for one in (state, after)]
            raise BrokenContractError(
                f"forward turns a state of {listed[0]} into one of {listed[1]}; expected the same"
            )
    listed = [shape(tensor) for tensor in tensors_of(model.initial_state(COLUMNS))]
    form = f"a state of {', '.join(listed)}" if listed else "no state"
    return f"{form} for {COLUMNS} columns; logits (T, B, V)"


def _require_state(model: LanguageModel, state: Any, columns: int) -> None:
    if not _is_state(state):
        raise BrokenContractError(
            f"initial_state returns a {type(state).__name__}; expected a tensor, a tuple of tensors, or None"
        )
    for tensor in tensors_of(state):
        axis = model.batch_axis
        if not axis < tensor.dim() or tensor.shape[axis] != columns:
            raise BrokenContractError(
                f"initial_state({columns}) returns a tensor {shape(tensor)}; expected the batch of {columns} on axis "
                f"{axis} (batch_axis says which one)"
            )


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
        scale = float(logits.abs().max())
        leaks: dict[int, int] = {}
        for later in range(1, STEPS):
            off = (_logits(model, _changed(tokens, later))[:later] - logits[:later]).abs().amax(dim=(1, 2))
            if (leaky := (off > TOLERANCE * scale).nonzero()).numel():
                leaks.setdefault(int(leaky[0]), later)
        if leaks:
            first = min(leaks)
            raise BrokenContractError(
                f"the model sees the future: token {leaks[first] + 1} of a window changes the logits at position "
                f"{first + 1}{where}"
            )
        if difference(_logits(model, _changed(tokens, slice(None), 0))[:, 1:], logits[:, 1:]) > TOLERANCE:
            raise BrokenContractError(f"columns mix: the tokens of column 1 change the logits of the others{where}")
    return f"no logit depends on a later token or on another column{where}"


def _changed(tokens: Tensor, *place: int | slice) -> Tensor:
    """The window with other tokens at ``place``."""
    changed = tokens.clone()
    changed[place] = (changed[place] + 1) % VOCAB
    return changed


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
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    if changed:
        raise BrokenContractError(
            f"an evaluation changes {changed[0].removeprefix('module.')}; change a buffer only if self.training is True"
        )
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
    if difference(first, whole[:STEPS]) > TOLERANCE:
        raise BrokenContractError("a longer window changes the logits of its first half")
    if (off := difference(second, whole[STEPS:])) > TOLERANCE:
        raise BrokenContractError(
            f"two windows with the state carried are not one long window: logits of the second differ by {off:.1g}"
        )
    if difference(after, end) > TOLERANCE:
        raise BrokenContractError("two windows with the state carried end in another state than one long window")
    return "two windows with the state carried are one long window"


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
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    if without:
        names = ", ".join(name.removeprefix("module.") for name in without[:3])
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise BrokenContractError(
            f"no gradient reaches {names}{more}; use every parameter in forward, or set its requires_grad to False"
        )
    wrong = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    if wrong:
        raise BrokenContractError(f"the gradient by {wrong[0].removeprefix('module.')} is not finite")
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
    if len(found) != len(layers) or any(
        not isinstance(one, Tensor) or one.shape[:2] != (STEPS, COLUMNS) or one.dim() != 3 for one in found
    ):
        raise BrokenContractError(
            f"the {len(layers)} modules of hidden_states return {', '.join(forms) or 'nothing'} in a window; expected "
            f"one tensor (T, B, H) = ({STEPS}, {COLUMNS}, H) of each"
        )
    reached = torch.autograd.grad(logits[-1].sum(), found, allow_unused=True)
    if any(gradient is None for gradient in reached):
        raise BrokenContractError("the logits are not computed from what each module of hidden_states returns")
    return f"{len(layers)} layers"


def resume(subject: Subject) -> str:
    """Training that goes on from saved parameters, state and generator equals training without a stop, bit for bit."""
    whole, end = _train(subject, range(4))
    losses, saved = _train(subject, range(2))
    if losses != whole[:2]:
        raise BrokenContractError(
            "the same seed gives another loss; draw all random numbers from torch's generator, not from random or numpy"
        )
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    losses, resumed = _train(subject, range(2, 4), torch.load(file, weights_only=True))  # noqa: TID251
    ours, theirs = end["model"], resumed["model"]
    if losses != whole[2:] or not all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()):
        raise BrokenContractError(
            "a resumed training is not the one without a stop; keep what changes from step to step in the state, in a "
            "parameter or in a buffer"
        )
    return "four steps with a stop equal four steps without, bit for bit"


def _train(subject: Subject, steps: range, saved: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
    """Take these steps as a run does, the first of them or from what is ``saved``. Return their losses and the end."""
    model = subject.build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    step = TrainingStep(model, optimizer, clip_norm=1.0, tokens_per_step=STEPS * COLUMNS)
    state: State = model.initial_state(COLUMNS)
    torch.manual_seed(5)
    if saved is not None:
        model.load_state_dict(saved["model"])
        restore_optimizer(optimizer, saved["optimizer"])
        state = saved["state"]
        torch.set_rng_state(saved["generator"])
    losses = []
    for number in steps:
        window = slice(STEPS * (number % 2), STEPS * (number % 2 + 1))
        result = step(subject.tokens[window], subject.targets[window], state)
        state = result.state
        losses.append(float(result.loss_nats))
    tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return losses, {**tensors, "state": state, "generator": torch.get_rng_state()}


def micro_batches(subject: Subject) -> str:
    """A step in several parts is the step of the whole batch."""
    whole, parts = (gradients_of(subject, parts=parts) for parts in (1, PARTS))
    if wrong := differing(parts, whole):
        raise BrokenContractError(
            f"a batch in {PARTS} parts is not the whole batch: {wrong[0]} differs; the model may use statistics over "
            "the batch, or count its calls"
        )
    return f"a batch in {PARTS} parts is the whole batch{_where(_is_deterministic(subject))}"


def gradients_of(
    subject: Subject, *, parts: int = 1, columns: slice = slice(0, COLUMNS), rank: Rank | None = None
) -> dict[str, Tensor]:
    """What a step on these columns of the first window gives: loss, state and gradients, without dropout.

    Args:
        subject: the model.
        parts: micro-batches.
        columns: those of ``rank``.
        rank: one of several that take the step together. ``None``: the only one.
    """
    model = subject.build().train(mode=_is_deterministic(subject))
    step = still_step(model, STEPS * COLUMNS, micro_batches=parts, rank=rank or Rank())
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
    model = copy.deepcopy(subject.build().train()).to("meta")
    tokens, targets = (text[:STEPS].to("meta") for text in (subject.tokens, subject.targets))
    try:
        state = model.initial_state(COLUMNS)
        for tensor in tensors_of(state):
            if tensor.device.type != "meta":
                raise BrokenContractError(
                    "initial_state makes tensors on the CPU wherever the model is; use the device of a parameter, as "
                    "weight.new_zeros does"
                )
        loss, _ = model.loss(tokens, targets, state)
        loss.backward()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise BrokenContractError(
            "a GPU cannot record the step, which reads a number back, has a shape that depends on values, or uses a "
            f"tensor that does not move with the model: {described(error, subject.config.file)}"
        ) from error
    return "reads no number back, and its shapes are fixed"
