"""Workers that are certainly not done yet when a test disturbs them, however fast the machine and slow the test."""

import os
from pathlib import Path


def crawl_env() -> dict[str, str]:
    """Variables with which Python programs load ``sitecustomize.py``, and begin cold if this test run does."""
    cold = {name: os.environ[name] for name in ["SEQLM_TEST_COLD"] if name in os.environ}
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), **cold}


def blank_figures() -> dict[str, str]:
    """Variables with which Python programs leave the figures of reports blank: most of a small report's time."""
    return {**crawl_env(), "SEQLM_TEST_BLANK_FIGURES": "1"}


class Crawl:
    """After ``epochs`` epochs, each step of a worker takes ``step_seconds`` longer until :meth:`end`.

    It counts them in ``metrics.jsonl``, which is written while the next epoch trains: with tiny epochs it may begin two
    or three later, so the run needs some more. For every worker that is started with :attr:`env`. It goes on, so it
    hears signals and gives signs of life.
    """

    def __init__(self, folder: Path, *, epochs: int, step_seconds: float = 0.2) -> None:
        self._ended = folder / "crawl-ended"
        self.env = {**crawl_env(), "SEQLM_TEST_CRAWL": f"{epochs}:{step_seconds}:{self._ended}"}

    def end(self) -> None:
        self._ended.touch()
