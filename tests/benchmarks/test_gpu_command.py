"""``python -m benchmarks.gpu``, rehearsed on the CPU."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.folder import Results
from benchmarks.gpu.study import Pace
from benchmarks.gpu.summary import as_markdown
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


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": median, "most": median}


def concluded(folder: Path, part: str, *records: dict[str, Any]) -> str:
    """Return the line of the summary that names a choice."""
    cases = {str(number): {"name": str(number), "error": None, **record} for number, record in enumerate(records)}
    known = {"device": {"name": "card"}, "cores": 1, "processor": "cpu", "versions": {}, "rehearsal": False}
    known |= {"git": {"commit": "c", "dirty": False}, "command": "", "date": "", "complete": True}
    Results(folder).write(part, {**known, "cases": cases})
    (line,) = (line for line in as_markdown(Results(folder)).splitlines() if line.startswith("To choose"))
    return line


@pytest.mark.parametrize(
    ("small", "large", "taken"),
    [
        ((1.0, 1.2), (1.3, 0.8), "Take 1,100"),
        ((1.0, 1.2), (1.3, 1.0), "Take 8,192"),
        ((1.01, 1.0), (1.3, 0.9), "Keep 1,024"),
    ],
)
def test_what_is_slower_somewhere_is_not_chosen(
    tmp_path: Path, small: tuple[float, float], large: tuple[float, float], taken: str
) -> None:
    records = [
        {
            "choice": "chunks",
            "today": "1,024 tokens",
            "ms": dict.fromkeys(("1,024 tokens", "1,100 tokens", "8,192 tokens"), 1.0),
            "times_as_fast": {"1,100 tokens": spread(one), "8,192 tokens": spread(other)},
        }
        for one, other in zip(small, large, strict=True)
    ]
    assert taken in concluded(tmp_path, "choices", *records)


@pytest.mark.parametrize(("ratios", "default"), [((1.4, 1.0), 1), ((1.4, 0.9), 0), ((1.0, 1.01), 0)])
def test_one_buffer_is_the_default_of_ranks_where_it_wins_and_nowhere_loses(
    tmp_path: Path, ratios: tuple[float, ...], default: int
) -> None:
    records = [
        {
            "milliseconds": {name: spread(1.0) for name in ("reduced-25", "flat", "not-reduced", "one-rank")},
            "flat_times_as_fast": {"reduced-25": spread(ratio)},
            "speed_of_one_rank_with_all_threads": {"reduced-25": spread(0.8), "flat": spread(1.7)},
        }
        for ratio in ratios
    ]
    line = concluded(tmp_path, "ranks", *records)
    assert f"`SEQLM_CAPTURE_RANKS` should be {default}" in line
    assert ("1.70" if default else "0.80") in line


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
