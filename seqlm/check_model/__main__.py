"""Test user's own models: ``python -m seqlm.check_model REQUEST ANSWER``, two JSON files.

The request is a list of models, each with ``folder``, ``config``, ``vocab_size`` and ``seq_len``. The answer has an
object for each model: ``findings``, each with a ``level`` (``ok``, ``bad``, or ``note`` for what breaks no rule, and
for what could not be tested), ``sizes`` (``None`` if they cannot be measured) and ``traceback`` (of the first error of
the user's code, or ``None``).

A program of its own: a launcher does not import torch, and code of a user's cannot disturb it.
"""

import contextlib
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from seqlm.architectures import CustomConfig
from seqlm.check_model import checks
from seqlm.check_model.checks import BrokenContractError, Subject
from seqlm.errors import SeqlmError
from seqlm.models import LanguageModel
from seqlm.models.custom import described
from seqlm.training.distributed import run_program


def _build(subject: Subject) -> str:
    subject.build()
    arguments = ", ".join(f"{name}={value!r}" for name, value in subject.config.arguments.items())
    return f"{subject.config.class_name}({arguments}) can be made"


def _variants(check: str, holds: str) -> Callable[[Subject], str]:
    return functools.partial(checks.compare, check, holds)


CHECKS: dict[str, Callable[[Subject], str]] = {
    "import": _build,
    "shapes": checks.shapes,
    "evaluation": checks.evaluation,
    "causality": _variants("causality", "no logit depends on a later token"),
    "columns": _variants("columns", "each column on its own, as on several ranks, gives the same"),
    "carried state": _variants("carried state", "one token after the other, with the state carried, gives the same"),
    "loss": checks.loss,
    "gradients": checks.gradients,
    "hidden states": checks.hidden_states,
    "resume": checks.resume,
    "micro-batches": _variants("micro-batches", f"a batch in {checks.PARTS} parts is the whole batch"),
    "GPU recording": checks.recording,
}
"""Each returns what it found to be right. It raises BrokenContractError, or whatever the model's code raises."""
LARGEST = 500_000_000
"""Parameters of a model that is tried on this machine. Of a larger one only the sizes are measured."""


def answers(requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the answer about each model. Of those that are alike only the first is tested and measured.

    Alike are models that differ only in numbers that change no shape, such as 0.7. 0.0 and 1.0 may switch something
    off, and a model that cannot be built without values is like no other.
    """
    known: dict[str, dict[str, Any]] = {}
    for request in requests:
        subject = Subject(CustomConfig(**request["config"]), Path(request["folder"]))
        built, arguments, window = None, dict(subject.config.arguments), (request["vocab_size"], request["seq_len"])
        with contextlib.suppress(Exception), torch.device("meta"):
            model = subject.build(*window)
            built = [model.label, [tuple(parameter.shape) for parameter in model.parameters()]]
            for name, value in subject.config.arguments.items():
                arguments[name] = "a number" if isinstance(value, float) and value not in (0, 1) else value
        kind = repr([window, {**vars(subject.config), "arguments": arguments}, built])
        if kind not in known:
            sizes = _sizes(subject, *window)
            if sizes is not None and sizes["parameters"] > LARGEST:
                text = f"{sizes['parameters']:,} parameters are too many to try here"
                note = {"level": "note", "subject": "import", "text": text}
                known[kind] = {"findings": [note], "traceback": None, "sizes": sizes}
            else:
                known[kind] = {**examine(subject), "sizes": sizes}
        yield known[kind]


def examine(subject: Subject) -> dict[str, Any]:
    """Test everything and return the findings. Without a model of the right shapes, nothing else is tested."""
    findings: list[dict[str, str]] = []
    first: str | None = None
    for name, check in CHECKS.items():
        cause: BaseException | None = None
        try:
            text = check(subject)
            level = "note" if isinstance(text, checks.Note) else "ok"
        except (SeqlmError, BrokenContractError) as error:
            level, text, cause = "bad", str(error), error.__cause__
        except Exception as error:  # of the user's code
            level, text, cause = "bad", f"fails: {described(error, subject.config.file)}", error
        findings.append({"level": level, "subject": name, "text": text})
        first = first or (None if cause is None else "".join(traceback.format_exception(cause)))
        if level == "bad" and name in ("import", "shapes"):
            break
    return {"findings": findings, "traceback": first}


def _sizes(subject: Subject, vocab_size: int, seq_len: int) -> dict[str, Any] | None:
    """Measure the parameters, operations and memory of a model for windows of ``seq_len`` tokens.

    On tensors without values (the device ``meta``), which take no memory; on such ones the model is built too, if it
    can be. ``flops_per_token`` counts matrix products of forward and backward pass, the backward pass as twice the
    forward pass, unless the model says it itself. ``saved_bytes`` is what autograd keeps of a window with no column,
    and ``saved_bytes_per_column`` what each column adds; both include the logits.
    """
    for device in ("meta", "cpu"):
        with contextlib.suppress(Exception), torch.device(device):
            model = subject.build(vocab_size, seq_len).to("meta").train()
            one, two = (_saved_bytes(model, seq_len, columns) for columns in (1, 2))
            own = model.flops_per_token(seq_len)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                _loss(model, seq_len, 2)
            return {
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "flops_per_token": 3 * counter.get_total_flops() // (2 * seq_len) if own is None else int(own),
                "saved_bytes": max(0, 2 * one - two),
                "saved_bytes_per_column": two - one,
                "label": None if model.label is None else str(model.label),
            }
    return None


def _loss(model: LanguageModel, seq_len: int, columns: int) -> None:
    tokens = torch.zeros(seq_len, columns, dtype=torch.int64, device="meta")
    model.loss(tokens, tokens, model.initial_state(columns))


def _saved_bytes(model: LanguageModel, seq_len: int, columns: int) -> int:
    kept: dict[int, Any] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(model, seq_len, columns)
    return sum(storage.nbytes() for storage in kept.values())


def main() -> int:
    """Answer a request; returns the exit code."""
    request_file, answer = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # small windows
    request = json.loads(request_file.read_text("utf-8"))
    answer.write_text(json.dumps([*answers(request)]), "utf-8")
    return 0


if __name__ == "__main__":
    run_program(main)
