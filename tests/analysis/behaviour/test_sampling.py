import dataclasses
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from analysis.behaviour import sampling
from analysis.behaviour.sampling import draw_samples, inverse_cumulative, prompt_ids
from seqlm.errors import DataError, DivergedError
from seqlm.records.behaviour import BehaviourSettings
from tests.analysis.behaviour.models import ARCHS, SEQ_LEN, VOCAB_SIZE, make_models, next_logits

LENGTHS = [2, SEQ_LEN, SEQ_LEN + 1, 2 * SEQ_LEN]
SETTINGS = BehaviourSettings(window=5, samples=4, lengths=LENGTHS, temperature=0.7, seed=5)


@pytest.mark.parametrize("prompt", [None, [3], [1, 2, 3, 4, 5, 6, 0, 1]], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_sample_equals_one_that_computes_every_token_anew(arch: str, prompt: list[int] | None) -> None:
    fused, reference = make_models(arch)
    found = draw_samples(fused, SETTINGS, prompt)
    generator = torch.Generator().manual_seed(5)
    lengths = [len(sample.tokens) + (len(sample.prompt) if prompt is None else 0) for sample in found]
    assert lengths == [length for length in LENGTHS for _ in range(4)], "a random first token counts"
    for sample in found:
        numbers = len(sample.tokens) + (2 if prompt is None else 1)
        first, *chances = torch.rand(numbers, generator=generator, dtype=torch.float64).tolist()
        assert sample.prompt == ([int(first * VOCAB_SIZE)] if prompt is None else prompt)
        text = [*sample.prompt, *sample.tokens]
        logits = next_logits(reference, text)[len(sample.prompt) - 1 : -1]
        p = (logits / 0.7).softmax(-1)
        for token, cumulative, chance in zip(sample.tokens, p.cumsum(-1).tolist(), chances, strict=False):
            assert token == next(number for number, total in enumerate(cumulative) if total > chance)
        assert sample.entropy == pytest.approx(-(p * p.log()).sum(-1).numpy(), abs=1e-9)
        of_tokens = logits.log_softmax(-1)[range(len(logits)), sample.tokens]
        assert sample.log_prob == pytest.approx(of_tokens.numpy(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_seed_decides_the_samples_however_many_are_drawn_at_a_time(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make_models(arch)
    found = draw_samples(model, SETTINGS, None)
    texts = [(sample.prompt, sample.tokens) for sample in found]
    assert [(sample.prompt, sample.tokens) for sample in draw_samples(model, SETTINGS, None)] == texts
    other = draw_samples(model, dataclasses.replace(SETTINGS, seed=6), None)
    assert [(sample.prompt, sample.tokens) for sample in other] != texts
    monkeypatch.setattr(sampling, "BATCH", 3)
    asked: list[int] = []
    again = draw_samples(model, SETTINGS, None, lambda: asked.append(1))
    assert [(sample.prompt, sample.tokens) for sample in again] == texts
    assert len(asked) == 2 * len(LENGTHS), "a stop is possible before each batch"


def test_the_first_tokens_are_uniform() -> None:
    settings = BehaviourSettings(window=5, samples=3000, lengths=(2,), seed=1)
    counts = Counter(sample.prompt[0] for sample in draw_samples(make_models("rnn")[0], settings, None))
    assert chisquare([counts[token] for token in range(VOCAB_SIZE)]).pvalue > 1e-3


def test_a_chance_falls_to_the_token_whose_share_of_the_line_it_is_in() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    wanted = {0.0: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, 1 - 2**-53: 4}
    for chance, token in wanted.items():
        assert inverse_cumulative(p, torch.tensor([chance], dtype=torch.float64)).tolist() == [token]


def test_predictions_that_are_no_numbers_are_not_drawn_from() -> None:
    model, _ = make_models("rnn")
    with torch.no_grad():
        model.output.bias[3] = float("nan")
    with pytest.raises(DivergedError, match="are not finite numbers"):
        draw_samples(model, SETTINGS, None)


@pytest.mark.parametrize("arch", ARCHS)
def test_another_model_rates_a_text_given_its_prompt(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BATCH", 3)
    judge, reference = make_models(arch, seed=2)
    for sample in draw_samples(make_models("rnn")[0], SETTINGS, [1, 4], judge=judge):
        log_probs = next_logits(reference, [1, 4, *sample.tokens])[1:-1].log_softmax(-1)
        assert sample.rating == pytest.approx(log_probs[range(len(log_probs)), sample.tokens].numpy(), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "level", "ids"),
    [
        ("the  cat", "word", [0, 1]),
        ("the dog", "word", [0, 2]),
        ("the cat\n", "word", [0, 1, 3]),
        ("the\ncat", "word", [0, 3, 1]),
        ("\n", "word", [3]),
        ("b a", "char", [5, 6, 4]),
        ("<unk>a\n", "char", [2, 4, 3]),
    ],
)
def test_a_prompt_is_cut_like_the_corpus(text: str, level: str, ids: list[int]) -> None:
    vocabulary = ("the", "cat", "<unk>", "<eos>", "a", "b", " ")
    unknown = ["dog"] if "dog" in text else []
    assert prompt_ids(text, vocabulary, level) == (ids, unknown)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected at least one word"),
        ("  ", "expected at least one word"),
        ("a dog", '"dog" is not in the'),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(DataError, match=f"^prompt: {words}"):
        prompt_ids(text, ("a", "<eos>"), "word")
