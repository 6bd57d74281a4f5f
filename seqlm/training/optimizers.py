"""Optimizers from their configurations, and the key of the masks of a step."""

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch

from seqlm.errors import CheckpointError
from seqlm.optimizers import OptimConfig, SgdConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration, in its fused form if it has one: one pass over a group's parameters.

    A decoupled decay applies to parameters of two and more axes only: matrices and embeddings, but no gains and biases.
    So these optimizers have two groups, and the others have one.

    On a GPU the learning rate is a tensor on the device, so that a captured step follows its schedule. Velocities exist
    from the start, as zeros: PyTorch would make them in the first step, and a captured step would repeat that.

    ``step()`` changes nothing if ``optimizer.found_inf`` is 1, as torch.amp.GradScaler uses it.
    """
    parameters = list(parameters)
    device = parameters[0].device
    module, _, name = config.CLASS.partition(":")
    kind: Any = getattr(importlib.import_module(module), name)
    known, options = inspect.signature(kind).parameters, config.arguments()
    groups: list[Any] = parameters
    if config.IS_DECOUPLED:
        groups = _by_decay(parameters, config.weight_decay)
    elif config.weight_decay:
        options["weight_decay"] = config.weight_decay
    if "fused" in known:
        options["fused"] = True
    else:
        kind = type(name, (_SkipsSteps, kind), {})
    on_gpu = device.type == "cuda"
    if "capturable" in known:
        options["capturable"] = on_gpu
    lr = torch.tensor(config.lr, device=device) if on_gpu and "fused" in known else config.lr
    optimizer: torch.optim.Optimizer = kind(groups, lr=lr, **options)
    if isinstance(config, SgdConfig) and config.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class _SkipsSteps:
    """Makes an optimizer without a fused form look at ``found_inf``, and at ``grad_scale``, which divides gradients.

    On a GPU, each step waits for the device, and is not captured.
    """

    param_groups: list[dict[str, Any]]
    found_inf: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None

    def step(self, closure: None = None) -> None:
        if self.found_inf is not None and self.found_inf:
            return
        for group in self.param_groups if self.grad_scale is not None else ():
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(self.grad_scale)
        super().step(closure)  # type: ignore[misc]


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of the optimizer waits for nothing, so that it can be part of a CUDA graph."""
    return not isinstance(optimizer, _SkipsSteps)


def _by_decay(parameters: Iterable[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Return the groups of a decoupled decay, none of them empty."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in parameters:
        groups[0 if parameter.ndim > 1 else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put ``lr`` into every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def step_key(seed: int, epoch: int, step: int) -> int:
    """Return the key of a step's masks, from -2^63 to 2^63 - 1: SplitMix64 of one number after the other."""
    key = 0
    for number in (seed, epoch, step):
        key = (key ^ number) + 0x9E3779B97F4A7C15 & 2**64 - 1
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        key = (key ^ key >> 27) * 0x94D049BB133111EB & 2**64 - 1
        key ^= key >> 31
    return key - 2**64 if key >= 2**63 else key
