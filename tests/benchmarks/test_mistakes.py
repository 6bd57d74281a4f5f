from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.gpu import __main__ as gpu


@pytest.mark.parametrize(
    ("main", "argv", "line"),
    [
        (gpu.main, ["--minutes", "soon"], "argument --minutes: expected a number of at least 0, got soon"),
        (gpu.main, ["--parts", "stepps"], "argument --parts: invalid choice: 'stepps'"),
        (gpu.main, ["--reherse"], "unrecognized arguments: --reherse"),
        (gpu.main, ["--ptb", "nowhere.zip"], "nowhere.zip does not exist; expected a folder or a zip file with"),
        (
            models.main,
            ["--shapes", "gru-2x1500-b2"],
            '--shapes: unknown shape "gru-2x1500-b2"; did you mean "gru-2x1500-b20"?',
        ),
        (models.main, ["--rounds", "0"], "argument --rounds: expected a positive whole number, got 0"),
        (models.main, ["--out", "result.txt"], "--out: expected a file name that ends in .json, got result.txt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    main: Callable[[list[str]], int],
    argv: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"error: {line}")
    assert not list(tmp_path.iterdir())
