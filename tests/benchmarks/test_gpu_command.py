"""``python -m benchmarks.gpu``, rehearsed on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.folder import Results
from benchmarks.gpu.study import Pace
from benchmarks.shapes import published
from jobs.attempt.supervisor import start_rank


def read(folder: Path, part: str) -> dict[str, Any]:
    return Results(folder).read(part)


def test_the_pace_comes_from_measured_steps_and_memory() -> None:
    shapes = {shape.name: shape.config for shape in published()}
    small, large = shapes["rnn-2x512-b20"], shapes["rnn-2x2000-b128"]
    steps = {"rnn-2x512-b20": {"step_ms": {"ours-fp32": {"median": 2.0}}, "peak_memory_mb": {"ours-fp32": 1000.0}}}
    pace = Pace(steps=steps, at_once=4, card_bytes=80 * 10**9, precision="fp32")
    windows = (929_589 // 20 - 1) // 35
    assert pace.seconds(small, 929_589, 10_000) == pytest.approx(40 * windows * 2e-3)
    assert pace.seconds(large, 929_589, 10_000) > pace.seconds(small, 929_589, 10_000)
    assert pace.share(small, 10_000) == 0.25
    tight = Pace(steps=steps, at_once=4, card_bytes=4 * 10**9, precision="fp32")
    assert tight.share(small, 10_000) == 0.51, "a gigabyte and a half, and what CUDA takes"
    assert Pace(steps={}, at_once=1, card_bytes=None, precision="fp32").share(large, 10_000) == 0


@pytest.mark.process
def test_a_case_whose_process_dies_ends_alone_and_is_measured_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(argv: list[str], *words: Any) -> Any:
        started.append(argv[argv.index("--case") + 1])
        dies = len(started) == 2
        return start_rank(["sh", "-c", "kill -ABRT $$"] if dies else ["sh", "-c", f"exit {main(argv[3:])}"], *words)

    monkeypatch.setattr("benchmarks.gpu.__main__._device", lambda **_: {"name": "here", "precisions": ["fp32"]})
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setattr("benchmarks.gpu.steps.cases", lambda *_: dict.fromkeys(("one", "two", "three"), dict))
    monkeypatch.setattr("benchmarks.gpu.__main__.start_rank", start)
    argv = ["--rehearse", "--out", str(tmp_path), "--parts", "synchronisations"]
    assert main(argv) == 1
    found = read(tmp_path, "synchronisations")
    errors = [record["error"] for record in found["cases"].values()]
    assert len(errors) == len(started) > 2
    assert [error is None for error in errors] == [place != 1 for place in range(len(errors))]
    assert not found["complete"]
    failed = started[1]
    started[:] = ["", ""]
    assert main(argv) == 0
    assert started[2:] == [failed]
    assert read(tmp_path, "synchronisations")["complete"]
