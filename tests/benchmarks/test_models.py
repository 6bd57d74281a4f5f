import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import main
from benchmarks.peak_memory import measure_peak_memory
from benchmarks.shapes import tiny

pytestmark = pytest.mark.process

ONCE = ["--seconds", "0", "--rounds", "2", "--warmup-rounds", "1", "--no-peak-memory"]
QUICK = [*ONCE, "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def is_spread(value: dict[str, float]) -> bool:
    return 0 < value["min"] <= value["median"] <= value["max"]


def test_json_is_one_document_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    argv = ["--shapes", "tiny", "--precision", "fp32", *QUICK, "--json", "--out", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert json.loads(out.read_text()) == document
    assert document["schema_version"] == 2
    assert [shape["name"] for shape in document["shapes"]] == ["rnn-2x16-b4", "gru-2x16-b4", "transformer-2x16-b4"]
    for shape in document["shapes"]:
        assert shape["rounds"] == 2
        assert list(shape["step_ms"]) == ["reference", "torch.nn-fp32", "ours-fp32"]
        assert list(shape["speedup"]["ours-fp32"]) == ["reference", "torch.nn-fp32"]
        spreads = [*shape["step_ms"].values(), *shape["speedup"]["ours-fp32"].values()]
        of_peak = [shape[key]["fp32"] for key in ("gemm_peak_gflops", "share_of_gemm_peak")]
        assert all(map(is_spread, [*spreads, *of_peak]))
        assert all(2 < loss < 6 for loss in shape["last_loss"].values())
    assert "[3/3] transformer-2x16-b4: " in printed.err


def test_peak_memory_is_that_of_the_step_and_not_of_the_process() -> None:
    peak = measure_peak_memory("torch.nn-fp32", tiny()[0], torch.device("cpu"))
    assert 0 <= peak.bytes < 50_000_000
