from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.behaviour import step_losses as module
from analysis.behaviour.step_losses import step_losses
from seqlm.errors import DataError
from seqlm.models import language_model
from tests.analysis.behaviour.literal import VOCAB_SIZE, Array, Literal, make_model, nats

ARCHS = ("rnn", "gru", "transformer")


def literal_losses(literal: Literal, columns: list[list[int]], window: int, carry: bool) -> list[float]:
    sums, terms = [0.0] * window, 0
    for column in columns:
        state: list[Array] | None = None
        if literal.arch != "transformer":
            state = [0.0 * literal.p["layers.0." + ("W_h" if literal.arch == "rnn" else "U_h") + ".weight"][0]] * 2
        zero = list(state or [])
        start = 0
        while start + window < len(column):
            given = state if carry else list(zero)
            logits = literal.logits(column[start : start + window], given)
            for t in range(window):
                sums[t] += nats(logits[t], column[start + t + 1])
            terms += 1
            start += window
    return [total / terms for total in sums]


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("kind", ["fused", "reference"])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_loss_at_each_step_is_the_mean_over_windows_and_columns(
    arch: str, kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARALLEL_COLUMNS", 6)  # two windows of three columns at a time
    monkeypatch.setattr(language_model, "LOGIT_ROWS", 5)
    model = make_model(arch, kind)
    columns = torch.randint(VOCAB_SIZE, (30, 3), generator=torch.Generator().manual_seed(3))
    found = step_losses(model, columns, window)
    literal = Literal(model, arch)
    rows = columns.t().tolist()
    assert (found.windows, found.columns) == (29 // window, 3)
    assert found.zero_state == pytest.approx(literal_losses(literal, rows, window, carry=False), abs=1e-10)
    assert found.carried_state == pytest.approx(literal_losses(literal, rows, window, carry=True), abs=1e-10)
    assert np.array_equal(found.zero_state, found.carried_state) == (arch == "transformer")


def test_a_text_of_exactly_one_window_has_one_and_a_shorter_one_is_refused() -> None:
    model = make_model("rnn")
    assert step_losses(model, torch.zeros(6, 2, dtype=torch.int64), 5).windows == 1
    with pytest.raises(DataError, match=r"^valid in 2 columns of 6 tokens is too short for one window of 6, .* 7; "):
        step_losses(model, torch.zeros(6, 2, dtype=torch.int64), 6)


def test_a_stop_is_asked_for_before_each_batch() -> None:
    asked: list[int] = []
    columns = torch.zeros(11, 128, dtype=torch.int64)
    step_losses(make_model("rnn"), columns, 5, lambda: asked.append(1))
    assert len(asked) == 2 + 2, "two windows from zero, two carried"
