import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from analysis.behaviour import step_losses as module
from analysis.behaviour.step_losses import step_losses
from seqlm.errors import DataError
from seqlm.models import LanguageModel, language_model
from tests.analysis.behaviour.models import ARCHS, VOCAB_SIZE, make_models


@torch.no_grad()
def plain_losses(model: LanguageModel, columns: Tensor, window: int, *, carry: bool) -> Tensor:
    """One window after the other, by the logits of all its tokens."""
    state, losses = model.initial_state(3), []
    for start in range(0, len(columns) - window, window):
        logits, after = model(columns[start : start + window], state)
        targets = columns[start + 1 : start + window + 1]
        losses.append(F.cross_entropy(logits.transpose(1, 2), targets, reduction="none"))
        state = after if carry else state
    return torch.stack(losses).mean(dim=(0, 2))


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_loss_at_each_step_is_the_mean_over_windows_and_columns(
    arch: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARALLEL_COLUMNS", 6)  # two windows of three columns at a time
    monkeypatch.setattr(language_model, "CHUNK_TOKENS", 5)
    fused, reference = make_models(arch)
    columns = torch.randint(VOCAB_SIZE, (30, 3), generator=torch.Generator().manual_seed(3))
    for model in (fused, reference):
        found = step_losses(model, columns, window)
        assert (found.windows, found.columns) == (29 // window, 3)
        for losses, carry in ((found.zero_state, False), (found.carried_state, True)):
            assert losses == pytest.approx(plain_losses(reference, columns, window, carry=carry).numpy(), abs=1e-10)
        assert np.array_equal(found.zero_state, found.carried_state) == (arch == "transformer")


def test_a_text_of_exactly_one_window_has_one_and_a_shorter_one_is_refused() -> None:
    model, _ = make_models("rnn")
    assert step_losses(model, torch.zeros(6, 2, dtype=torch.int64), 5).windows == 1
    with pytest.raises(DataError, match=r"^valid in 2 columns of 6 tokens is too short for one window of 6, .* 7; "):
        step_losses(model, torch.zeros(6, 2, dtype=torch.int64), 6)
