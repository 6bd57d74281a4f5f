"""Whether a GPU can record the training step of a user's own model: no numbers read back, shapes that never change."""

from __future__ import annotations

import copy

import torch

from seqlm.check_model.subject import COLUMNS, STEPS, VOCAB, BrokenContractError, Subject, difference
from seqlm.models.state import map_state, tensors_of
from seqlm.training.distributed import Rank
from seqlm.training.step import TrainingStep

READS = (
    *("item()", "_local_scalar_dense", "nonzero", "copy out of meta", "meta tensors", "meta tensor"),
    *("tolist", "data-dependent", "numpy", "masked_select", "unique"),
)
"""Signs in PyTorch's message that a value of a tensor was asked for, or a shape that depends on values."""
ELSEWHERE = (
    "expected all tensors to be on the same device",
    "expected device",
    "on different devices",
    "found at least",
)


def check_capture(subject: Subject) -> str:
    """A step runs on tensors without values, and on a GPU, if there is one, as a recorded graph.

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
        raise BrokenContractError(_words(subject, error)) from error
    if not torch.cuda.is_available():
        return "reads no number back, and its shapes are fixed; not tried on a GPU, since none is here"
    _check_on_gpu(subject)
    return "recorded and replayed on this GPU"


def _words(subject: Subject, error: Exception) -> str:
    text, line = str(error).lower(), subject.line(error)
    if any(sign in text for sign in ELSEWHERE):
        return (
            f"a tensor stays on the CPU when the model moves to a GPU{line}; register it as a buffer, or make it on "
            "the device of its neighbours"
        )
    if any(sign in text for sign in READS) or isinstance(error, NotImplementedError):
        return (
            f"the step reads a number back from the device, or has a shape that depends on values{line}; a GPU would "
            "have to wait there"
        )
    return f"the step fails on tensors without values: {subject.place(error)}"


def _check_on_gpu(subject: Subject) -> None:
    device = torch.device("cuda")
    results = []
    for capture in (False, True):
        model = subject.build(VOCAB).eval().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1, device=device), fused=True)
        step = TrainingStep(
            model,
            optimizer,
            clip_norm=1.0,
            tokens_per_step=STEPS * COLUMNS,
            rank=Rank(device=device),
            capture=capture,
        )
        state = model.initial_state(COLUMNS)
        for window in (slice(0, STEPS), slice(STEPS, 2 * STEPS)):
            tokens, targets = (text[window].to(device) for text in (subject.tokens, subject.targets))
            try:
                result = step(tokens, targets, state)
            except RuntimeError as error:
                first = str(error).splitlines()[0][:120]
                raise BrokenContractError(f"a GPU cannot record the step{subject.line(error)}: {first}") from error
            state = map_state(torch.clone, result.state)
        results.append((result.loss_nats.clone(), state))
    if difference(results[1], results[0]) > 1e-3:
        raise BrokenContractError("the step gives other numbers when a GPU replays it; it may change itself in Python")
