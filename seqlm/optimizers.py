"""The optimizers: their configurations, the learning rate of each step, and the objects that take the steps.

A new optimizer is a class here, listed in :data:`OPTIMIZERS`: its names, the class that takes its steps, and its keys.
Launchers read configurations, so nothing here imports PyTorch but :func:`build_optimizer`, by the name of the class.
"""

import importlib
import inspect
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from seqlm.errors import CheckpointError
from seqlm.schema import Count, Positive, Section, Valid, listing, show

Schedule: TypeAlias = Literal["constant", "compounding", "per_epoch", "cosine", "linear"]

PUBLISHED: tuple[Schedule, ...] = ("compounding", "per_epoch")
"""The schedules of the published study, which divide the rate by ``decay``."""
_PUBLISHED_SGD = "sgd_schedule"
"""The published form of SGD, which has published schedules only."""
ANNEALED: tuple[Schedule, ...] = ("cosine", "linear")
"""The schedules that reach 0 after ``decay_epochs``."""

_NEEDED_BY = {"decay": PUBLISHED, "flat_epochs": PUBLISHED, "decay_epochs": ANNEALED}
"""Keys that belong to some schedules only."""

_NotNegative = Annotated[float, Valid("a finite number of at least 0", least=0)]
_Average = Annotated[float, Valid("a number of at least 0 and below 1", least=0, below=1)]
"""The factor of a running average."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section, ABC):
    """What all optimizers have: a learning rate with its schedule, and weight decay."""

    NAME = "optim"
    CLASS: ClassVar[str]
    """Module and name of the class that takes the steps, such as ``torch.optim:Adam``. It has a fused form."""
    IS_DECOUPLED: ClassVar[bool] = False
    """Whether weight decay is no penalty, but for matrices and embeddings alone and outside of the gradient."""

    optimizer: str
    """Optimizer."""
    lr: Positive
    """Learning rate: the largest one of the schedule."""
    schedule: Schedule | None = None
    """Learning rate over time. ``constant``. ``compounding`` (the published runs): epoch e multiplies the *current*
    rate by decay^-(e - flat + 1). ``per_epoch`` (the published text): each epoch divides it by ``decay``. ``cosine``,
    ``linear``: it falls to 0 over ``decay_epochs``, step by step. Default: ``compounding`` for sgd_schedule, else
    ``constant``."""
    decay: Annotated[float, Valid("a number greater than 1", above=1)] | None = None
    """``compounding``, ``per_epoch``: divisor of the rate; default 1.15."""
    flat_epochs: Count | None = None
    """``compounding``, ``per_epoch``: epochs at the given rate before it falls; default 15 for ``compounding``, 1 for
    ``per_epoch``."""
    decay_epochs: Count | None = None
    """``cosine``, ``linear``: epochs after which the rate is 0, at least ``train.epochs``. A run can be extended up to
    it."""
    warmup_steps: Annotated[int, Valid("a whole number of at least 0", least=0)] = 0
    """Steps in which the schedule's rate is multiplied by a factor that rises linearly to 1 (Goyal et al., 2017)."""
    weight_decay: _NotNegative = 0.0
    """L2 penalty: this times the parameters is added to the clipped gradients, for all parameters."""

    @property
    def kind(self) -> str:
        """The optimizer as reports group it, a key of ``LABELS``."""
        return self.optimizer

    @property
    @abstractmethod
    def moments(self) -> int:
        """Values per parameter that the optimizer keeps from step to step."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the class besides ``lr`` and ``weight_decay``."""
        return {}

    def __post_init__(self) -> None:
        if self.schedule is None:
            object.__setattr__(self, "schedule", "compounding" if self.optimizer == _PUBLISHED_SGD else "constant")
        if self.schedule in PUBLISHED:
            if self.decay is None:
                object.__setattr__(self, "decay", 1.15)
            if self.flat_epochs is None:
                object.__setattr__(self, "flat_epochs", 15 if self.schedule == "compounding" else 1)
        super().__post_init__()

    def _conditions(self) -> Iterator[str]:
        if self.optimizer == _PUBLISHED_SGD and self.schedule not in PUBLISHED:
            yield (
                f"optim.schedule: expected one of {listing(PUBLISHED)} with optimizer = {show(self.optimizer)}, "
                f'got {show(self.schedule)}; optimizer = "sgd" has the other schedules'
            )
        elif self.schedule in ANNEALED and self.decay_epochs is None:
            yield (
                f"optim.decay_epochs: missing, expected a positive whole number: epochs after which schedule = "
                f"{show(self.schedule)} has reached 0"
            )
        for key, schedules in _NEEDED_BY.items():
            if getattr(self, key) is not None and self.schedule not in schedules:
                names = " and ".join(map(show, schedules))
                yield f"optim.{key}: applies to schedule = {names} only, got schedule = {show(self.schedule)}"

    def values(self) -> dict[str, Any]:
        """Return the keys that apply with their values: those of other schedules are left out."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Return the learning rate of a step, a pure function: ``train.epochs`` has no influence.

        With f flat epochs and n = max(0, epoch - (f - 1)), t = (epoch + step / steps) / decay_epochs and at most 1:

        - ``per_epoch``: lr decay^-n, one division after each epoch past the flat ones;
        - ``compounding``: in each epoch past the flat ones the *current* rate is multiplied by decay^-n, so that
          lr decay^-(1 + 2 + ... + n) = lr decay^-(n (n + 1) / 2). This is what produced the published numbers;
        - ``cosine``: lr (1 + cos(pi t)) / 2 (Loshchilov and Hutter, 2017a, without restarts);
        - ``linear``: lr (1 - t).

        The first ``warmup_steps`` steps, counted over all epochs, have 1/w, 2/w, ... of it.

        Args:
            epoch: counted from 0.
            step: of the epoch, counted from 0.
            steps: steps of an epoch.
        """
        rate = self.lr
        if self.decay is not None and self.flat_epochs is not None:  # a published schedule has both, no other has one
            falls = max(0, epoch - (self.flat_epochs - 1))
            exponent = falls * (falls + 1) / 2 if self.schedule == "compounding" else falls
            rate = float(rate * self.decay**-exponent)
        elif self.decay_epochs is not None:
            t = min(1.0, (epoch + step / steps) / self.decay_epochs)
            rate *= (1 + math.cos(math.pi * t)) / 2 if self.schedule == "cosine" else 1 - t
        return rate * min(1.0, (epoch * steps + step + 1) / self.warmup_steps) if self.warmup_steps else rate


@dataclass(frozen=True, kw_only=True)
class _Adam(OptimConfig):
    """What both forms of Adam have (Kingma and Ba, 2015). Epsilon is PyTorch's, 1e-8."""

    beta1: _Average = 0.9
    """Factor of the running average of gradients."""
    beta2: _Average = 0.999
    """Factor of the running average of squared gradients."""

    @property
    def moments(self) -> int:
        """The two running averages."""
        return 2

    def arguments(self) -> dict[str, Any]:
        return {"betas": (self.beta1, self.beta2)}


@dataclass(frozen=True, kw_only=True)
class AdamConfig(_Adam):
    """Adam."""

    LABELS: ClassVar[Mapping[str, str]] = {"adam": "Adam"}
    CLASS = "torch.optim:Adam"

    optimizer: Literal["adam"]
    """Optimizer."""


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(_Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    LABELS: ClassVar[Mapping[str, str]] = {"adamw": "AdamW"}
    CLASS = "torch.optim:AdamW"
    IS_DECOUPLED = True

    optimizer: Literal["adamw"]
    """Optimizer."""
    weight_decay: _NotNegative = 0.01
    """Decoupled decay, scaled as in PyTorch: each step subtracts this times learning rate times parameters, for those
    of two and more axes (matrices and embeddings, no gains and biases)."""


@dataclass(frozen=True, kw_only=True)
class SgdConfig(OptimConfig):
    """Stochastic gradient descent, plain or with momentum.

    ``sgd_schedule`` is its published form, SGD with one of the published schedules. ``sgd`` with such a schedule is the
    same run, and is resolved to it.
    """

    LABELS: ClassVar[Mapping[str, str]] = {
        "sgd": "SGD",
        "sgd_schedule": "SGD schedule",
        "sgd_momentum": "SGD momentum",
        "sgd_nesterov": "SGD Nesterov",
        "sgd_schedule_momentum": "SGD schedule momentum",
        "sgd_schedule_nesterov": "SGD schedule Nesterov",
    }
    CLASS = "torch.optim:SGD"

    optimizer: Literal["sgd", "sgd_schedule"]
    """Optimizer."""
    momentum: _Average = 0.0
    """Factor m of the velocity: v <- m v + g, p <- p - lr v (Sutskever et al., 2013, in PyTorch's form)."""
    nesterov: bool = False
    """Nesterov's momentum: p <- p - lr (g + m v)."""

    @property
    def kind(self) -> str:
        """The optimizer; with momentum, its name says so."""
        return f"{self.optimizer}_{'nesterov' if self.nesterov else 'momentum'}" if self.momentum else self.optimizer

    @property
    def moments(self) -> int:
        """The velocity, if there is momentum."""
        return 1 if self.momentum else 0

    def arguments(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    def __post_init__(self) -> None:
        if self.optimizer == "sgd" and self.schedule in PUBLISHED:
            object.__setattr__(self, "optimizer", "sgd_schedule")
        super().__post_init__()

    def _conditions(self) -> Iterator[str]:
        yield from super()._conditions()
        if self.nesterov and not self.momentum:
            yield f"optim.nesterov: expected optim.momentum above 0 with it, got momentum = {self.momentum}"


OPTIMIZERS: tuple[type[OptimConfig], ...] = (AdamConfig, SgdConfig, AdamWConfig)
"""All of them, in the order of reports."""


def foreign_keys(optimizer: str | None, own: Mapping[str, Any], shared: Mapping[str, Any]) -> set[str]:
    """Return the keys of ``shared``, values for many runs, that do not apply to one run.

    A published schedule among them is meant for ``sgd_schedule``, any other for the other optimizers. ``decay``,
    ``flat_epochs`` and ``decay_epochs`` follow the schedule that the run has in the end. ``own`` are the values that
    the run itself gives, which have no say for keys of ``shared``.
    """
    foreign = set()
    schedule = shared.get("schedule", own.get("schedule"))
    known = schedule in typing.get_args(Schedule)
    if known and schedule != own.get("schedule") and (schedule in PUBLISHED) != (optimizer == _PUBLISHED_SGD):
        foreign.add("schedule")
        schedule = own.get("schedule")
    if schedule is None:
        schedule = "compounding" if optimizer == _PUBLISHED_SGD else "constant"
    return foreign | {key for key, schedules in _NEEDED_BY.items() if key in shared and schedule not in schedules}


# -- what takes the steps ------------------------------------------------------------------------------------------


def build_optimizer(config: OptimConfig, parameters: Iterable[Any]) -> Any:
    """Return the ``torch.optim.Optimizer`` of a configuration, in its fused form: one pass over a group's parameters.

    A decoupled decay applies to parameters of two and more axes only: matrices and embeddings, but no gains and biases.
    So these optimizers have two groups, and the others have one.

    On a GPU the learning rate is a tensor on the device, so that a captured step follows its schedule. Velocities exist
    from the start, as zeros: PyTorch would make them in the first step, and a captured step would repeat that.

    ``step()`` divides each gradient by ``optimizer.grad_scale``, and changes nothing if ``optimizer.found_inf`` is 1,
    as torch.amp.GradScaler uses both.
    """
    parameters = list(parameters)
    on_gpu = parameters[0].device.type == "cuda"
    module, _, name = config.CLASS.partition(":")
    kind = getattr(importlib.import_module(module), name)
    options = {**config.arguments(), "fused": True}
    groups = parameters
    if config.IS_DECOUPLED:
        groups = _by_decay(parameters, config.weight_decay)
    elif config.weight_decay:
        options["weight_decay"] = config.weight_decay
    if "capturable" in inspect.signature(kind).parameters:
        options["capturable"] = on_gpu
    lr = parameters[0].new_tensor(config.lr) if on_gpu else config.lr
    optimizer = kind(groups, lr=lr, **options)
    if isinstance(config, SgdConfig) and config.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone().zero_()
    return optimizer


def _by_decay(parameters: Iterable[Any], decay: float) -> list[dict[str, Any]]:
    """Return the groups of a decoupled decay, none of them empty."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in parameters:
        groups[0 if parameter.ndim > 1 else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def restore_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Take over the moments and step counts of ``optimizer.state_dict()``, and nothing else.

    Learning rate and form of the optimizer follow from the configuration and the device, which may be another one.

    Raises:
        CheckpointError: the parameters of ``state`` are in other groups. It numbers them group by group, so moments
            would go to wrong parameters.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups]:
        raise CheckpointError(
            "the checkpoint is of another version of seqlm, whose optimizer decays other parameters; finish this run "
            "with that version, or move its checkpoints/ away to start it again from its first epoch"
        )
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():  # earlier versions wrote them row by row
        for name, tensor in moments.items():
            if tensor.shape == parameter.shape and tensor.stride() != parameter.stride():
                moments[name] = parameter.detach().clone().copy_(tensor)


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """Put ``lr`` into every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            group["lr"] = lr
        else:  # a tensor on a GPU
            group["lr"].fill_(lr)
