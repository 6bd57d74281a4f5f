"""One training step: forward, backward, clipping and update of one window, without waiting for the device.

Nothing in a step reads a number back from the device, and all shapes are the same in every step. So a GPU works
through steps without a gap, and on one GPU the whole step is captured once as a CUDA graph and replayed with a single
launch; on a CPU or with several ranks the same lines run each time.

Every step of a captured run is a replay, the first one too: what PyTorch asks to run before a capture runs with the
update switched off. So a run that is resumed computes its steps as one that was not. For the same reason, several ranks
take a step with the update switched off before their first one (:meth:`TrainingStep.prepare`).

Several ranks reduce their gradients by DistributedDataParallel, or in one flat buffer after the backward pass
(``SEQLM_CAPTURE_RANKS``). With a flat buffer, on GPUs, forward and backward pass are the graph, and clipping and update
run after the reduction; nothing depends on which step of a process is the first one.

Micro-batches are a rank's columns in several parts, one after the other, so that a step needs less memory. A part is
whole columns with their carried state, since columns are independent texts. Losses and gradients are added up, so the
result is the same up to rounding. Dropout masks are drawn part by part: they differ from those of an undivided step.
"""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.data.layout import own_columns
from seqlm.environment import MICRO_BATCHES
from seqlm.models import LanguageModel
from seqlm.models.state import State, join_states, map_state, split_state, tensors_of
from seqlm.training.capture import Captured, undone
from seqlm.training.distributed import Rank

CLIP_EPSILON = 1e-6
"""Added to the norm by which clipped gradients are divided, as in ``torch.nn.utils.clip_grad_norm_``."""
GPU_STEPS = 32
"""Most steps between two readings on a GPU, which has to finish all of them first; on a CPU each step is read."""
READING_SECONDS = 2.0
"""Time between two readings on a GPU, if a step takes less: a signal is obeyed, and progress is shown, after one."""


@final
@dataclass(frozen=True)
class StepResult:
    """What one step gave, on the device; a captured step overwrites it in the next one."""

    loss_nats: Float[Tensor, ""]
    """Summed over this rank's tokens of the window."""
    grad_norm: Float[Tensor, ""]
    """Over all parameters and ranks, before clipping. If it or the loss is not finite, no parameter has moved."""
    state: State
    """The state after the window, cut off from the graph."""


@final
class TrainingStep:
    """Takes one step on a window; all steps of a run have windows of one shape.

    The update is by the gradients of the mean loss over ``tokens_per_step``, the tokens of the *global* window. Each
    rank computes those of its summed loss. They are averaged (DistributedDataParallel) or added up (flat) over ranks,
    and the optimizer divides them by the tokens of the whole window, however unevenly the columns are shared.

    Args:
        optimizer: of :func:`seqlm.optimizers.build_optimizer`, over the model's parameters.
        clip_norm: largest gradient norm over all parameters.
        tokens_per_step: predicted tokens of a window over all ranks.
        bucket_mb: gradients of several ranks are reduced in buckets of this size (MiB), while backward goes on.
        flat: reduce them in one buffer instead, after the backward pass.
        capture: replay the step as a CUDA graph, from the first one on; on a GPU, several ranks need ``flat``.
        micro_batches: parts into which the columns of this rank are cut; gradients are added up over them, and several
            ranks reduce them once, with the last part.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        tokens_per_step: int,
        rank: Rank = Rank(),  # noqa: B008 -- immutable
        bucket_mb: float = 25,
        flat: bool = False,
        capture: bool = False,
        micro_batches: int = 1,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.micro_batches = micro_batches
        self._rank = rank
        self.scale = (1 if flat else rank.world_size) / tokens_per_step
        self._objective: nn.Module = _Objective(model)
        self._flat: Tensor | None = None
        if flat and rank.world_size > 1:
            self._flat = _flat_gradients([parameter for parameter in model.parameters() if parameter.requires_grad])
            _share(*model.parameters())
        elif rank.world_size > 1:
            devices = [rank.device] if rank.device.type == "cuda" else None
            self._objective = nn.parallel.DistributedDataParallel(
                self._objective, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb
            )
        self._captured: Captured[Any] | None = None
        if capture:
            whole = Captured(self._eager, model, self._warm_up)
            self._captured = whole if self._flat is None else Captured(self._gradients, model)

    def prepare(self, *window: State) -> None:
        """Have the first step of this process computed as the others, on windows and states of these shapes.

        Captures the step, if steps are captured. DistributedDataParallel takes a step that changes nothing: it reduces
        all gradients of its first backward pass in one bucket, in the order of the parameters; then it fills its
        buckets in the order in which the gradients became ready. The place in a bucket decides in which order three or
        more ranks are added up.

        Raises:
            CaptureError, torch.cuda.OutOfMemoryError, RuntimeError: see :meth:`Captured.record`.
        """
        if self._captured is not None:
            self._captured.record(*window)
        elif isinstance(self._objective, nn.parallel.DistributedDataParallel):
            with undone(self.model):
                self._warm_up(*map_state(Tensor.clone, window))

    def never_capture(self) -> None:
        """Launch each operation of the steps on its own from now on."""
        self._captured = None

    def communication_seconds(self) -> float | None:
        """Return the mean time in which the ranks reduced the gradients of a step, with waiting for each other.

        DistributedDataParallel times some of its steps. ``None``: there is one rank, or gradients are reduced in a flat
        buffer, which is not timed.
        """
        if isinstance(self._objective, nn.parallel.DistributedDataParallel):
            nanoseconds = self._objective._get_ddp_logging_data().get("avg_backward_comm_time")
            return nanoseconds / 1e9 if nanoseconds else None
        return None

    def __call__(self, inputs: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State) -> StepResult:
        """Forward, backward, clip, update."""
        if self._flat is None:
            result: StepResult = (self._captured or self._eager)(inputs, targets, state)
            return result
        _share(*self.model.buffers())
        loss_nats, after = (self._captured or self._gradients)(inputs, targets, state)
        self._rank.sum(self._flat)
        return StepResult(loss_nats, self._update(loss_nats), after)

    def _eager(self, *window: State, moves: bool = True) -> StepResult:
        """``moves=False``: all of the step is computed, and the update leaves parameters and moments as they are."""
        loss_nats, after = self._gradients(*window)
        return StepResult(loss_nats, self._update(loss_nats, moves=moves), after)

    def _gradients(
        self, inputs: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
    ) -> tuple[Float[Tensor, ""], State]:
        """Forward and backward pass: return the summed loss and the state after the window."""
        losses, states = [], []
        if self._flat is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._flat.zero_()
        windows = split_state((inputs, targets), self.micro_batches, axis=1)
        parts = zip(windows, split_state(state, self.micro_batches, self.model.batch_axis), strict=True)
        for number, (window, before) in enumerate(parts, start=1):
            with self._reduction(is_last=number == self.micro_batches):
                loss_nats, after = self._objective(*window, before)
                loss_nats.backward()
            losses.append(loss_nats.detach())
            states.append(map_state(lambda tensor: tensor.detach().contiguous(), after))  # as after a resume
        loss_nats = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        return loss_nats, join_states(states, self.model.batch_axis)

    def _update(self, loss_nats: Float[Tensor, ""], *, moves: bool = True) -> Float[Tensor, ""]:
        """Clip the gradients and move the parameters, if all is finite. Return the norm before clipping."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients) * self.scale
        found_inf = ~torch.isfinite(loss_nats + norm) if moves else torch.ones_like(norm)
        # Fused optimizers divide each gradient by grad_scale as they read it, and leave all parameters alone where
        # found_inf is 1. GradScaler of torch.amp uses both the same way. Scale and clipping thus cost no pass.
        self.optimizer.grad_scale = ((norm + CLIP_EPSILON) / self.clip_norm).clamp_(min=1).float() / self.scale  # type: ignore[attr-defined]
        self.optimizer.found_inf = found_inf.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return norm

    def _warm_up(self, *window: State) -> None:
        """Compute a step that moves no parameter and no moment. No gradient is left: a capture makes its own set."""
        self._eager(*window, moves=False)
        self.optimizer.zero_grad(set_to_none=True)

    def _reduction(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradients of all parts but the last are kept on this rank: each reduction would cost as much as one."""
        if is_last or not isinstance(self._objective, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._objective.no_sync()


def _flat_gradients(parameters: list[nn.Parameter]) -> Float[Tensor, " P"]:
    """Return a buffer in which the parameters, all of one type, have their gradients from now on.

    Each gradient has the strides of its parameter: fused optimizers read both in one order.
    """
    flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.as_strided(parameter.shape, torch.empty_like(parameter).stride())
    return flat


def _share(*tensors: Tensor) -> None:
    """Give all ranks the tensors of the first one, as DistributedDataParallel does. Constants may be views."""
    for tensor in tensors:
        if tensor.is_contiguous():
            torch.distributed.broadcast(tensor.detach(), src=0)


@final
class _Objective(nn.Module):
    """The loss as a module's forward: DistributedDataParallel reduces the gradients of what its forward computed."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *window: State) -> tuple[Float[Tensor, ""], State]:
        return self.model.loss(*window)


@final
class StepResults:
    """What the steps since the last reading gave, in float64: one step at first, then those of :data:`READING_SECONDS`.

    ``most`` is the largest number of steps between two readings. On a GPU a reading has to wait for all of them.
    """

    def __init__(self, rank: Rank, *, most: int = 1) -> None:
        self._rank = rank
        self._kept = torch.zeros(most, 2, dtype=torch.float64, device=rank.device)
        self._count, self._wanted = 0, 1
        self._read_at = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Copy a step's numbers, on the device."""
        self._kept[self._count, 0] = result.loss_nats
        self._kept[self._count, 1] = result.grad_norm
        self._count += 1

    @property
    def are_full(self) -> bool:
        return self._count == self._wanted

    def read(self, *flags: bool) -> tuple[list[tuple[float, float]], list[bool]]:
        """(loss in nats summed over the ranks, gradient norm) of each step since the last reading.

        Also return for each of ``flags`` whether any rank has it set, so ranks agree without an extra collective. Every
        rank must read after the same steps, with as many flags; all get the same answer. The time of the steps, from
        which the number until the next reading follows, is the mean over the ranks.
        """
        kept = self._kept[: self._count].clone()
        kept[:, 1] /= self._rank.world_size  # the norm is the same on every rank, the loss is a share
        if self._rank.device.type == "cuda":
            torch.cuda.synchronize(self._rank.device)
        now = time.perf_counter()
        own = torch.tensor([*map(float, flags), now - self._read_at], dtype=kept.dtype, device=kept.device)
        *numbers, seconds = self._rank.sum(torch.cat([kept.flatten(), own])).tolist()
        steps_per_second = self._count * self._rank.world_size / seconds
        self._wanted = max(1, min(len(self._kept), int(READING_SECONDS * steps_per_second)))
        self._count, self._read_at = 0, now
        end = len(numbers) - len(flags)
        return list(zip(numbers[:end:2], numbers[1:end:2], strict=True)), [count > 0 for count in numbers[end:]]


# -- micro-batches -------------------------------------------------------------------------------------------------


def micro_batches_from(env: Mapping[str, str], batch_size: int, world_size: int) -> int:
    """Return the number of parts from ``SEQLM_MICRO_BATCHES``.

    Raises:
        UsageError: it is not a whole number above 0, or some rank has fewer columns.
    """
    most = len(own_columns(batch_size, world_size - 1, world_size))  # the last rank has the fewest
    expected = f"a whole number from 1 to {most}, the columns of a rank"
    return MICRO_BATCHES.read(env, is_valid=lambda parts: parts <= most, expected=expected)


# -- checks --------------------------------------------------------------------------------------------------------


def still_step(model: LanguageModel, tokens_per_step: int, **options: Any) -> TrainingStep:
    """Return a training step that leaves the parameters as they are, with the ``options`` of :class:`TrainingStep`."""
    lr = torch.tensor(0.0, device=model.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, fused=True)
    return TrainingStep(model, optimizer, clip_norm=math.inf, tokens_per_step=tokens_per_step, **options)


def numbers_of(
    step: TrainingStep, inputs: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: State
) -> dict[str, Tensor]:
    """Take a step and return what it computes by name: the loss, the state after the window, and the gradients."""
    result = step(inputs, targets, state)
    states = enumerate(tensors_of(result.state), start=1)
    found = {"the loss": result.loss_nats}
    found |= {f"the state ({number})": tensor for number, tensor in states if tensor.numel()}
    named = ((name.removeprefix("module."), p.grad) for name, p in step.model.named_parameters())
    return found | {f"the gradient by {name}": grad for name, grad in named if grad is not None}
