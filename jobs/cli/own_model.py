"""``check-model``: whether a user's own model keeps the contract, in words for its author."""

import tomllib
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.tables import FINDINGS, show
from jobs.launch.own_models import ask, is_bad
from seqlm.architectures import CLASS_SEPARATOR, CustomConfig
from seqlm.errors import ConfigError, ModelError, UsageError
from seqlm.model_files import read_model_files
from seqlm.schema import read

VOCAB_SIZE, SEQ_LEN = 10_000, 35
"""For the sizes: those of the Penn Treebank, and the default window."""


def check_model(arguments: Arguments) -> tuple[Any, int]:
    """Print what each check found. Exit code 2: the model breaks the contract."""
    file, _, name = arguments.source.rpartition(CLASS_SEPARATOR)
    path = Path(file)
    source = f"{path.name}{CLASS_SEPARATOR}{name}" if file else arguments.source
    raw = {
        **{"arch": next(iter(CustomConfig.LABELS)), "source": source},
        **{"arguments": _table(arguments.arguments), "files": list(arguments.files)},
    }
    try:
        config = read(CustomConfig, raw)
    except ConfigError as error:
        raise UsageError("; ".join(error.problems)) from None
    files = read_model_files(config, path.parent)
    (answer,) = ask([(config, files, VOCAB_SIZE, SEQ_LEN)])
    findings = answer["findings"]
    show(FINDINGS, findings)
    if (sizes := answer["sizes"]) is not None:
        words = f"{sizes['parameters']:,} parameters, {terminal.short_number(sizes['flops_per_token'])}FLOP per token"
        terminal.say(f"\nwith {VOCAB_SIZE:,} words and windows of {SEQ_LEN}: {words}")
    if answer["traceback"]:
        terminal.detail(answer["traceback"])
        if not arguments.verbose:
            terminal.tell("-v prints the traceback")
    return answer, ModelError.exit_code if any(map(is_bad, findings)) else 0


def _table(text: str | None) -> dict[str, Any]:
    """Return the arguments typed after ``--arguments``: ``hidden_size = 64, keep = 0.5``, with or without braces."""
    if text is None:
        return {}
    inner = text.strip().removeprefix("{").removesuffix("}")
    try:
        found: dict[str, Any] = tomllib.loads(f"arguments = {{ {inner} }}")["arguments"]
    except tomllib.TOMLDecodeError:
        raise UsageError(f"--arguments: expected NAME = VALUE, ..., such as 'hidden_size = 64', got {text}") from None
    return found
