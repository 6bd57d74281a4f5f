"""One training step: forward, backward, clipping and update of one window, without waiting for the device.

Nothing in a step reads a number back from the device, and all shapes are the same in every step. So a GPU works
through steps without a gap, and on one GPU the whole step is captured once as a CUDA graph and replayed with a single
launch; on a CPU or with several ranks the same lines run each time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.models import LanguageModel
from seqlm.training.distributed import Rank
from seqlm.training.micro_batches import split_columns

WARM_UP_STEPS = 3
"""Steps before the capture: libraries set up their workspaces in them. They are steps like all others."""


@final
@dataclass(frozen=True)
class StepResult:
    """What one step gave, on the device; a captured step overwrites it in the next one."""

    loss_nats: Float[Tensor, ""]
    """Summed over this rank's tokens of the window."""
    grad_norm: Float[Tensor, ""]
    """Over all parameters and ranks, before clipping. If it or the loss is not finite, no parameter has moved."""
    state: Tensor
    """The recurrent state after the window, cut off from the graph."""


@final
class TrainingStep:
    """Takes one step on a window; all steps of a run have windows of one shape.

    Gradients are those of the mean loss over ``tokens_per_step``, the tokens of the *global* window.
    DistributedDataParallel averages over ranks; each rank's summed loss is therefore divided by the tokens of the whole
    window and multiplied by the number of ranks, however unevenly the columns are shared.

    Args:
        model: trained in place.
        optimizer: of :func:`seqlm.training.optimizers.build_optimizer`, over the model's parameters.
        clip_norm: largest gradient norm over all parameters.
        tokens_per_step: predicted tokens of a window over all ranks.
        rank: this process; several ranks need their process group.
        bucket_mb: gradients of several ranks are reduced in buckets of this size (MiB), while backward goes on.
        capture: replay the step as a CUDA graph; for one rank on a GPU.
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
        capture: bool = False,
        micro_batches: int = 1,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.scale = rank.world_size / tokens_per_step
        self.micro_batches = micro_batches
        self._objective: nn.Module = _Objective(model)
        if rank.world_size > 1:
            devices = [rank.device] if rank.device.type == "cuda" else None
            self._objective = nn.parallel.DistributedDataParallel(
                self._objective, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb
            )
        self._capture = _Capture(self._eager) if capture else None

    def __call__(
        self,
        inputs: Int[Tensor, "T B"],
        targets: Int[Tensor, "T B"],
        state: Tensor,
        until_update: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> StepResult:
        """Forward, backward, clip, update.

        Until the update nothing has changed but the device's generator and the gradients, which no step looks at
        again: who leaves by an exception in ``until_update``, a context around that part, can begin the step anew. A
        captured step has no such part.
        """
        if self._capture is not None:
            return self._capture(inputs, targets, state)
        return self._eager(inputs, targets, state, until_update)

    def _eager(
        self,
        inputs: Int[Tensor, "T B"],
        targets: Int[Tensor, "T B"],
        state: Tensor,
        until_update: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> StepResult:
        losses, states = [], []
        with until_update():
            self.optimizer.zero_grad(set_to_none=True)
            columns = (split_columns(tensor, self.micro_batches) for tensor in (inputs, targets, state))
            for number, part in enumerate(zip(*columns, strict=True), start=1):
                with self._reduction(is_last=number == self.micro_batches):
                    loss_nats, state = self._objective(*part)
                    (loss_nats * self.scale).backward()
                losses.append(loss_nats.detach())
                states.append(state.detach())
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
        loss_nats = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        # Fused optimizers leave all parameters alone where this is 1; GradScaler of torch.amp uses it the same way.
        self.optimizer.found_inf = (~torch.isfinite(loss_nats + norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return StepResult(loss_nats, norm, torch.cat(states, dim=1) if len(states) > 1 else states[0])

    def _reduction(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradients of all parts but the last are kept on this rank: each reduction would cost as much as one."""
        if is_last or not isinstance(self._objective, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._objective.no_sync()


@final
class _Objective(nn.Module):
    """The loss as a module's forward: DistributedDataParallel reduces the gradients of what its forward computed."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: Int[Tensor, "T B"], targets: Int[Tensor, "T B"], state: Tensor
    ) -> tuple[Float[Tensor, ""], Tensor]:
        return self.model.loss(inputs, targets, state)


@final
class _Capture:
    """A step on the current GPU, run as it is :data:`WARM_UP_STEPS` times, then recorded and replayed."""

    def __init__(self, step: Callable[[Tensor, Tensor, Tensor], StepResult]) -> None:
        self._step = step
        self._steps_seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._arguments: tuple[Tensor, ...] = ()
        self._result: StepResult | None = None

    def __call__(self, *arguments: Tensor) -> StepResult:
        if self._steps_seen < WARM_UP_STEPS:
            self._steps_seen += 1
            return self._on_a_side_stream(arguments)
        if self._graph is None:
            self._arguments = tuple(argument.clone() for argument in arguments)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # records, computes nothing
                self._result = self._step(*self._arguments)
        for static, argument in zip(self._arguments, arguments, strict=True):
            static.copy_(argument)
        self._graph.replay()
        assert self._result is not None
        return self._result

    def _on_a_side_stream(self, arguments: tuple[Tensor, ...]) -> StepResult:
        """As PyTorch asks of what is captured later: gradients must not be made on the default stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._step(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        return result
