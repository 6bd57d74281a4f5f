"""Test the user's own models before a grid starts, in a process of its own, which imports torch and their files."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.plan.own_models import has_passed, keep, torch_version
from jobs.plan.planned import PlannedRun
from jobs.study.kept_code import source_tree
from seqlm.architectures import CustomConfig
from seqlm.errors import ModelError
from seqlm.model_files import ModelFiles
from seqlm.reading import exists

PROGRAM = "seqlm.check_model"
LONGEST_SECONDS = 600


def check_models(planned: Iterable[PlannedRun]) -> None:
    """Test each of the user's own models of the runs to do that has not passed here, and measure its sizes.

    Needs the facts of the runs' corpora.

    Raises:
        ModelError: a model does not keep the contract, one line for each problem.
    """
    todo: dict[tuple[CustomConfig, int, int], PlannedRun] = {}
    for item in planned:
        model, facts = item.spec.config.model, item.facts
        if isinstance(model, CustomConfig) and item.action != "skip" and facts is not None:
            sizes = (facts.vocab_size, item.spec.config.train.seq_len)
            if not has_passed(model, *sizes):
                todo.setdefault((model, *sizes), item)
    if not todo:
        return
    if torch_version() is None:
        terminal.tell("warning: your own models are not tested before they start, since torch is not installed here")
        return
    requests = []
    for (model, vocab_size, seq_len), item in todo.items():
        assert item.spec.model_files is not None, "a run with the user's own model has its files"
        requests.append((model, item.spec.model_files, vocab_size, seq_len))
    answers = ask(requests)
    problems: dict[str, list[str]] = {}
    for ((model, vocab_size, seq_len), item), answer in zip(todo.items(), answers, strict=True):
        lines = [f"{finding['subject']}: {finding['text']}" for finding in answer["findings"] if is_bad(finding)]
        for line in lines:
            problems.setdefault(line.removeprefix("import: "), []).append(item.spec.name)
        terminal.detail(answer["traceback"] or "")
        if not lines:
            keep(model, vocab_size, seq_len, answer["sizes"])
    if problems:
        who = [runs[0] if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more" for runs in problems.values()]
        lines = [f"{name}: {text}" for name, text in zip(who, problems, strict=True)]
        hint = ["--verbose shows the traceback"] if any(answer["traceback"] for answer in answers) else []
        raise ModelError("\n".join([*lines, *hint]))


def is_bad(finding: Mapping[str, str]) -> bool:
    """Whether a finding says that the model breaks the contract."""
    return finding["level"] == "bad"


def ask(requests: Sequence[tuple[CustomConfig, ModelFiles, int, int]]) -> list[dict[str, Any]]:
    """Return the answer of :mod:`seqlm.check_model` about each model: (configuration, files, V, T).

    Raises:
        ModelError: the process ended without an answer, as a file does that exits when it is imported.
    """
    names = ", ".join(dict.fromkeys(config.source for config, *_ in requests))
    terminal.tell_progress(f"testing {names} on small windows; on a busy machine this takes a minute")
    with tempfile.TemporaryDirectory(prefix="seqlm-models-") as name:
        folder = Path(name)
        models = []
        for number, (config, files, vocab_size, seq_len) in enumerate(requests):
            place = folder / str(number)
            files.keep(place)
            about = {"config": vars(config), "vocab_size": vocab_size, "seq_len": seq_len}
            models.append({"folder": str(place), **about})
        request, answer = folder / "request.json", folder / "answer.json"
        request.write_text(json.dumps(models), "utf-8")
        command = [sys.executable, "-m", PROGRAM, str(request), str(answer)]
        try:
            ended = subprocess.run(
                command, cwd=source_tree(), capture_output=True, text=True, timeout=LONGEST_SECONDS, errors="replace"
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"model.source: its test took more than {LONGEST_SECONDS // 60} minutes") from None
        terminal.detail(ended.stderr.strip() or "the models' own code printed nothing")
        if not exists(answer):
            last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
            raise ModelError(f"model.source: its test ended with exit code {ended.returncode}: {last}")
        found: list[dict[str, Any]] = json.loads(answer.read_text("utf-8"))
        return found
