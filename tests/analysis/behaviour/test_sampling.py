import dataclasses
import itertools
from array import array
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from analysis.behaviour import sampling
from analysis.behaviour.sampling import Text, draw_samples, inverse_cumulative, log_probs, pieces_of, prompt_ids
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
    lengths = [len(text.tokens) + (len(text.prompt) if prompt is None else 0) for text, *_ in found]
    assert lengths == [length for length in LENGTHS for _ in range(4)], "a random first token counts"
    for (given, tokens), entropy, log_prob in found:
        numbers = len(tokens) + (2 if prompt is None else 1)
        first, *chances = torch.rand(numbers, generator=generator, dtype=torch.float64).tolist()
        assert given == ([int(first * VOCAB_SIZE)] if prompt is None else prompt)
        logits = next_logits(reference, [*given, *tokens])[len(given) - 1 : -1]
        p = (logits / 0.7).softmax(-1)
        for token, cumulative, chance in zip(tokens, p.cumsum(-1).tolist(), chances, strict=False):
            assert token == next(number for number, total in enumerate(cumulative) if total > chance)
        assert entropy == pytest.approx(-(p * p.log()).sum(-1).numpy(), abs=1e-9)
        of_tokens = logits.log_softmax(-1)[range(len(logits)), tokens]
        assert log_prob == pytest.approx(of_tokens.numpy(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_seed_decides_the_samples_however_many_are_drawn_at_a_time(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make_models(arch)
    found = draw_samples(model, SETTINGS, None)
    texts = [sample.text for sample in found]
    assert [sample.text for sample in draw_samples(model, SETTINGS, None)] == texts
    other = draw_samples(model, dataclasses.replace(SETTINGS, seed=6), None)
    assert [sample.text for sample in other] != texts
    monkeypatch.setattr(sampling, "BATCH", 3)
    asked: list[int] = []
    again = draw_samples(model, SETTINGS, None, lambda: asked.append(1))
    assert [sample.text for sample in again] == texts
    assert len(asked) == 2 * len(LENGTHS), "a stop is possible before each batch"


def test_the_first_tokens_are_uniform() -> None:
    settings = BehaviourSettings(window=5, samples=3000, lengths=(2,), seed=1)
    counts = Counter(sample.text.prompt[0] for sample in draw_samples(make_models("rnn")[0], settings, None))
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
def test_another_model_rates_texts_given_their_prompts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BATCH", 3)
    rater, reference = make_models(arch, seed=2)
    texts = [sample.text for sample in draw_samples(make_models("rnn")[0], SETTINGS, [1, 4])]
    texts[2:2] = [Text([5], [0, 1, 2, 3, 4, 5, 6, 0, 1])]
    found = log_probs(rater, texts)
    assert len(found) == len(texts)
    for (prompt, tokens), values in zip(texts, found, strict=True):
        wanted = next_logits(reference, [*prompt, *tokens])[len(prompt) - 1 : -1].log_softmax(-1)
        assert values == pytest.approx(wanted[range(len(wanted)), tokens].numpy(), abs=1e-9)


@pytest.mark.parametrize("size", [14, 15, 100])
def test_pieces_of_a_text_are_stretches_of_it_at_even_distances(size: int) -> None:
    text = memoryview(array("i", range(size)))
    pieces = pieces_of(text, 2, [5, 12], 3)
    assert [(len(prompt), len(tokens)) for prompt, tokens in pieces] == [(2, 5)] * 3 + [(2, 12)] * 3
    for prompt, tokens in pieces:
        assert [*prompt, *tokens] == list(range(prompt[0], tokens[-1] + 1))
    starts = sorted(prompt[0] for prompt, _ in pieces)
    distances = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert (starts[0], starts[-1]) == (0, size - 14), "from the beginning to the last place of the longest"
    assert max(distances) - min(distances) <= 1


def test_a_text_that_is_shorter_than_a_sample_has_no_pieces() -> None:
    assert pieces_of(memoryview(array("i", range(13))), 2, [5, 12], 3) == []


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
