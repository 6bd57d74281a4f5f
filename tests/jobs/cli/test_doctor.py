from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.backends.base import MARK
from jobs.cli.doctor import _devices, _torch, examine
from seqlm import machine
from seqlm.machine import Card, Gpu

GPUS = [
    Gpu("GPU-082b5928-f417-d18b-2e66-7ac8725d2eef", "Quadro P1000"),
    Gpu("MIG-7839bf6f-ba33-59f0-89eb-01c8d8c4134d", "NVIDIA H100 NVL MIG 2g.24gb"),
]


def test_doctor_lists_the_gpus_for_runs() -> None:
    found = [f"{finding.level} {finding.subject}: {finding.text}" for finding in _devices(GPUS)]
    assert found == ["ok GPU-082b5928: Quadro P1000", "ok MIG-7839bf6f: NVIDIA H100 NVL MIG 2g.24gb"]
    assert [finding.text for finding in _devices([])] == ["none; runs will train on the CPU"]


@pytest.mark.parametrize(
    ("answer", "level", "text"),
    [
        (["2.13", ["Tesla V100"]], "ok", "2.13, sees Tesla V100"),
        (["2.13", []], "bad", "2.13 sees no CUDA device, yet the machine has 2; install a CUDA build of torch"),
        (["RuntimeError: no kernel image"], "bad", "cannot be used (RuntimeError: no kernel image); install"),
    ],
)
def test_doctor_tries_torch_on_each_gpu(
    monkeypatch: pytest.MonkeyPatch, answer: list[object], level: str, text: str
) -> None:
    printed = json.dumps([MARK, *answer])
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: SimpleNamespace(stdout=printed))
    found = _torch(GPUS)
    assert found.level == level
    assert found.text.startswith(text)


@pytest.mark.process
def test_a_wrong_choice_of_gpus_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cards", lambda: [Card(index=0, whole=GPUS[0])])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (found,) = [finding for finding in examine(tmp_path, None) if finding.subject == "GPU"]
    assert found.level == "bad"
    assert found.text.startswith('CUDA_VISIBLE_DEVICES: found "7", and 7 names no GPU of this machine')
