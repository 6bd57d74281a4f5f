"""An optimizer, a metric and an architecture are added in one or two files each: real changes to a copy of seqlm."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.load import load_manifest
from tests import commands
from tests.docs_blocks import ROOT, read_blocks
from tests.training.studies import write_text

MANIFEST = """
[study]
name = "new"
data = "text"

[[run]]
model.arch = "rnn"
model.hidden_size = 8
data.corpus = "files"
train.batch_size = 4
train.seq_len = 5
optim.optimizer = "adam"
optim.lr = 0.01
"""

PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path

import torch

import launch
from jobs.manifests.load import load_manifest
from seqlm.models import build_model
from seqlm.training.optimizers import build_optimizer
from seqlm.training.step import TrainingStep

found = {}
for setting in ("seed=1111", *sys.argv[1:]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = launch.main(["plan", "new.toml", "--backend", "local", "--json", "--set", setting])
    (planned,) = json.loads(printed.getvalue())["data"]["runs"]
    (run,) = load_manifest(Path("new.toml"), [setting]).runs
    torch.manual_seed(0)
    model = build_model(run.config.model, 9, 5)
    optimizer = build_optimizer(run.config.optim, model.parameters())
    step = TrainingStep(model, optimizer, clip_norm=1.0, tokens_per_step=20)
    tokens = torch.arange(25).view(5, 5) % 9
    losses = [float(step(tokens, tokens, model.initial_state(5)).loss_nats) for _ in range(10)]
    kept = optimizer.state[model.output.weight].values()
    found[setting] = {
        "code": code, "name": planned["name"], "fingerprint": run.fingerprint, "losses": losses,
        "memory": planned["memory_bytes"],
        "parameters": [run.config.built_in.parameter_count(9), sum(p.numel() for p in model.parameters())],
        "moments": [run.config.optim.moments, sum(tensor.dim() > 0 for tensor in kept)],
    }
print(json.dumps(found))
"""
CHANGES = {
    "optim.optimizer=rmsprop": "rnn-rmsprop",
    "model.arch=lstm": "lstm-adam",
}
"""Setting -> the name of its run."""
FILES = [
    ["seqlm/optimizers.py"],
    ["analysis/study/columns.py", "seqlm/training/records.py"],
    ["seqlm/architectures.py", "seqlm/models/lstm.py"],
]
"""What each change touches."""


def diffs() -> list[str]:
    """The changes in the order of ``FILES``."""
    blocks = read_blocks(ROOT / "docs/project/contributing.md")
    shown = [block.text for block in blocks if block.language == "diff" and block.kind == "elsewhere"]
    return [*shown, (ROOT / "tests/added_lstm.diff").read_text("utf-8")]


def test_each_change_touches_one_or_two_files() -> None:
    touched = [re.findall(r"^\+\+\+ b/(\S+)$", diff, re.M) for diff in diffs()]
    assert touched == FILES


@pytest.mark.process
def test_what_the_changes_add_is_planned_identified_and_trained(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for package in ("analysis", "jobs", "seqlm", "slurm"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", tree)
    for number, diff in enumerate(diffs()):
        (tmp_path / f"{number}.diff").write_text(diff, "utf-8")
        commands.run(["git", "apply", tmp_path / f"{number}.diff"], cwd=tree, check=True)
    write_text(tmp_path / "text", train_lines=20)
    (tmp_path / "new.toml").write_text(MANIFEST)
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    answer = commands.run([sys.executable, "-c", PROGRAM, *CHANGES], cwd=tmp_path, env=env, check=True, cold=True)
    runs: dict[str, Any] = json.loads(answer.stdout)
    (before,) = load_manifest(tmp_path / "new.toml").runs
    assert runs["seed=1111"]["fingerprint"] == before.fingerprint, "runs of before are the same runs"
    assert len({run["fingerprint"] for run in runs.values()}) == 3
    assert [(runs[setting]["code"], runs[setting]["name"]) for setting in CHANGES] == [
        (0, name) for name in CHANGES.values()
    ]
    for run in runs.values():
        assert run["memory"] > 0
        assert run["parameters"][0] == run["parameters"][1]
        assert run["moments"][0] == run["moments"][1], "as many tensors as the estimate counts"
        assert run["losses"][-1] < run["losses"][0]
