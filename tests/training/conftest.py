from __future__ import annotations

import pytest

from tests.training.graphs import Calls, on_the_cpu


@pytest.fixture
def cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Captures and replays of the test are made on the CPU."""
    return on_the_cpu(monkeypatch)
