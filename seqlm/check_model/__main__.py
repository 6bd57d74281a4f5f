"""Test user's own models: ``python -m seqlm.check_model REQUEST ANSWER``, two JSON files.

The request is a list of models, each with ``folder``, ``config``, ``vocab_size``, ``seq_len`` and ``ranks`` (whether to
test two ranks as well). The answer has an object for each model: ``findings``, each with a ``level`` (``ok``, ``bad``,
or ``note`` for what could not be tested), ``sizes`` (``None`` if they cannot be measured) and ``traceback`` (of the
first error of the user's code, or ``None``).

A program of its own: a launcher does not import torch, and code of a user's cannot disturb it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from seqlm.architectures import CustomConfig
from seqlm.check_model import checks
from seqlm.check_model.checks import BrokenContractError, Subject
from seqlm.check_model.ranks import check_ranks
from seqlm.check_model.sizes import sizes_of
from seqlm.errors import SeqlmError
from seqlm.models.custom import described
from seqlm.training.distributed import run_program


def _build(subject: Subject) -> str:
    subject.build()
    arguments = ", ".join(f"{name}={value!r}" for name, value in subject.config.arguments.items())
    return f"{subject.config.class_name}({arguments}) can be made"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "import": _build,
    "shapes": checks.shapes,
    "causality": checks.causality,
    "evaluation": checks.evaluation,
    "carried state": checks.carried_state,
    "gradients": checks.gradients,
    "hidden states": checks.hidden_states,
    "resume": checks.resume,
    "micro-batches": checks.micro_batches,
    "GPU recording": checks.capture,
}
"""Each returns what it found to be right. It raises BrokenContractError, or whatever the model's code raises."""
LARGEST = 500_000_000
"""Parameters of a model that is tried on this machine. Of a larger one only the sizes are measured."""


def answers(requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the answer about each model. Of those that are alike only the first is tested and measured."""
    known: dict[str, dict[str, Any]] = {}
    for request in requests:
        subject = Subject(CustomConfig(**request["config"]), Path(request["folder"]))
        kind = _kind(subject, request["vocab_size"], request["seq_len"])
        if kind not in known:
            known[kind] = _answer(subject, request["vocab_size"], request["seq_len"], ranks=request["ranks"])
        yield known[kind]


def _kind(subject: Subject, vocab_size: int, seq_len: int) -> str:
    """What models have in common for which one answer is enough: all but numbers that change no shape, such as 0.7.

    0.0 and 1.0 may switch something off, and a model that cannot be built without values is like no other.
    """
    built, arguments = None, dict(subject.config.arguments)
    with contextlib.suppress(Exception), torch.device("meta"):
        model = subject.build(vocab_size, seq_len)
        built = [model.label, [tuple(parameter.shape) for parameter in model.parameters()]]
        arguments = {
            name: "a number" if isinstance(value, float) and value not in (0, 1) else value
            for name, value in arguments.items()
        }
    return repr([vocab_size, seq_len, {**vars(subject.config), "arguments": arguments}, built])


def _answer(subject: Subject, vocab_size: int, seq_len: int, *, ranks: bool) -> dict[str, Any]:
    sizes = _sizes(subject, vocab_size, seq_len)
    if sizes is not None and sizes["parameters"] > LARGEST:
        text = f"{sizes['parameters']:,} parameters are too many to try here"
        return {"findings": [{"level": "note", "subject": "import", "text": text}], "sizes": sizes, "traceback": None}
    return {**examine(subject, ranks=ranks), "sizes": sizes}


def examine(subject: Subject, *, ranks: bool) -> dict[str, Any]:
    """Test everything and return the findings. Without a model of the right shapes, nothing else is tested."""
    findings: list[dict[str, str]] = []
    first: str | None = None
    for name, check in {**CHECKS, **({"two ranks": check_ranks} if ranks else {})}.items():
        cause: BaseException | None = None
        try:
            level, text = "ok", check(subject)
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
    """The sizes of the model, built without values where it can be."""
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                return sizes_of(subject.build(vocab_size, seq_len), seq_len)
        except Exception:
            continue
    return None


def main() -> int:
    """Answer a request; returns the exit code."""
    request_file, answer = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # small windows
    request = json.loads(request_file.read_text("utf-8"))
    answer.write_text(json.dumps([*answers(request)]), "utf-8")
    return 0


if __name__ == "__main__":
    run_program(main)
