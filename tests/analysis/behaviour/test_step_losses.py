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


@torch.no_grad()
def losses_by_context(model: LanguageModel, text: Tensor, window: int, tokens: int) -> Tensor:
    """One token and one length of context after the other: (tokens, window)."""
    rows = []
    for place in range(window, window + tokens):
        row = []
        for context in range(1, window + 1):
            logits, _ = model(text[place - context : place, None], model.initial_state(1))
            row.append(F.cross_entropy(logits[-1], text[place, None]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.fixture
def text() -> Tensor:
    return torch.randint(VOCAB_SIZE, (92,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("arch", ARCHS)
def test_each_step_predicts_the_same_tokens_from_as_many_tokens_as_it_says(
    arch: str, window: int, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARALLEL_COLUMNS", 7)
    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(language_model, "CHUNK_TOKENS", 5)
    fused, reference = make_models(arch)
    columns = text[:90].view(3, 30).t()
    wanted = losses_by_context(reference, text, window, len(text) - window)
    blocks = wanted[: len(wanted) // 10 * 10].unflatten(0, (-1, 10)).mean(dim=1)
    for model in (fused, reference):
        found = step_losses(model, text, columns, window)
        assert (found.tokens, found.windows, found.columns) == (len(text) - window, 29 // window, 3)
        assert found.zero_state == pytest.approx(wanted.mean(dim=0).numpy(), abs=1e-10)
        assert found.blocks == pytest.approx(blocks.numpy(), abs=1e-6)
        if arch == "transformer":
            assert np.array_equal(found.zero_state, found.carried_state)
        else:
            carried = plain_losses(reference, columns, window, carry=True)
            assert found.carried_state == pytest.approx(carried.numpy(), abs=1e-10)


def test_a_long_text_is_read_as_far_as_is_needed(text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = make_models("gru")
    monkeypatch.setattr(module, "MOST_TOKENS", 20)
    monkeypatch.setattr(module, "BLOCK", 6)
    found = step_losses(model, text, text[:90].view(3, 30).t(), 4)
    assert found.tokens == 20
    assert found.blocks is not None
    assert found.blocks.shape == (3, 4), "the last two tokens fill no block"
    assert found.zero_state == pytest.approx(losses_by_context(reference, text, 4, 20).mean(dim=0).numpy(), abs=1e-10)
    monkeypatch.setattr(module, "MOST_READ", 4 * 10)
    assert step_losses(model, text, text[:90].view(3, 30).t(), 4).tokens == 10, "of long windows there are fewer"


def test_a_text_of_exactly_one_window_has_one_and_a_shorter_one_is_refused() -> None:
    model, _ = make_models("rnn")
    text, columns = torch.zeros(12, dtype=torch.int64), torch.zeros(6, 2, dtype=torch.int64)
    found = step_losses(model, text, columns, 5)
    assert (found.windows, found.tokens) == (1, 7)
    assert found.blocks is not None
    assert found.blocks.shape == (0, 5)
    with pytest.raises(DataError, match=r"^valid in 2 columns of 6 tokens is too short for one window of 6, .* 7; "):
        step_losses(model, text, columns, 6)
