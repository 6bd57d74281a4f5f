from __future__ import annotations

import dataclasses
import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from analysis.behaviour import sampling
from analysis.behaviour.sampling import draw_samples, inverse_cumulative, prompt_ids
from analysis.study.behaviour import Settings
from seqlm.errors import DataError, DivergedError
from tests.analysis.behaviour.literal import SEQ_LEN, VOCAB_SIZE, Array, Literal, make_model, softmax

ARCHS = ("rnn", "gru", "transformer")
LENGTHS = [2, SEQ_LEN - 1, SEQ_LEN, SEQ_LEN + 1, 3 * SEQ_LEN]
SETTINGS = Settings(window=5, samples=4, lengths=LENGTHS, temperature=0.7, seed=5)


def cumulative_draw(probabilities: Array, chance: float) -> int:
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if total > chance:
            return token
    raise AssertionError(chance)


@pytest.mark.parametrize("prompt", [None, [3], [3, 0, 6], [1, 2, 3, 4, 5, 6, 0, 1]], ids=str)
@pytest.mark.parametrize("kind", ["fused", "reference"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_sample_equals_one_that_computes_every_token_anew(arch: str, kind: str, prompt: list[int] | None) -> None:
    model = make_model(arch, kind)
    literal = Literal(model, arch)
    found = draw_samples(model, SETTINGS, prompt)
    generator = torch.Generator().manual_seed(5)
    lengths = [len(sample.tokens) + (len(sample.prompt) if prompt is None else 0) for sample in found]
    assert lengths == [length for length in LENGTHS for _ in range(4)], "a random first token counts"
    for sample in found:
        numbers = len(sample.tokens) + (2 if prompt is None else 1)
        first, *chances = (float(torch.rand(1, generator=generator, dtype=torch.float64)) for _ in range(numbers))
        context = [int(first * VOCAB_SIZE)] if prompt is None else list(prompt)
        assert sample.prompt == context
        for token, entropy, log_prob, chance in zip(
            sample.tokens, sample.entropy, sample.log_prob, chances, strict=False
        ):
            logits = literal.last_logits(context)
            p = softmax(logits / 0.7)
            assert token == cumulative_draw(p, chance)
            assert entropy == pytest.approx(-sum(p * np.log(p)), abs=1e-9)
            assert log_prob == pytest.approx(math.log(softmax(logits)[token]), abs=1e-9)
            context.append(token)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_seed_decides_the_samples_however_many_are_drawn_at_a_time(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(arch, "fused")
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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("arch", ARCHS)
def test_pairs_of_tokens_have_the_probabilities_of_the_softmax(
    arch: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BATCH", 4000)
    model, count = make_model(arch, "fused"), 4000
    literal = Literal(model, arch)
    settings = Settings(window=5, samples=count, lengths=[2], temperature=temperature, seed=1)
    drawn = Counter((sample.tokens[0], sample.tokens[1]) for sample in draw_samples(model, settings, [2]))
    assert chi_square(drawn, literal, temperature) > 1e-3
    assert chi_square(drawn, literal, 1.7 - temperature) < 1e-6, "the test tells one temperature from the other"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_generate_draws_at_the_temperature(temperature: float) -> None:
    model, count = make_model("gru", "fused"), 4000
    first = torch.full((count,), 2)
    tokens = model.generate(
        first, model.initial_state(count), 2, torch.Generator().manual_seed(2), temperature=temperature
    )
    drawn = Counter(map(tuple, tokens.t().tolist()))
    assert chi_square(drawn, Literal(model, "gru"), temperature) > 1e-3
    assert chi_square(drawn, Literal(model, "gru"), 1.7 - temperature) < 1e-6


def chi_square(drawn: Counter[tuple[int, int]], literal: Literal, temperature: float) -> float:
    """The p-value of the pairs drawn after the token 2; rare pairs are counted together."""
    p = {}
    for one, two in product(range(VOCAB_SIZE), repeat=2):
        p_one = softmax(literal.last_logits([2]) / temperature)[one]
        p[one, two] = p_one * softmax(literal.last_logits([2, one]) / temperature)[two]
    count = drawn.total()
    common = [pair for pair in p if p[pair] * count >= 5]
    observed = [drawn[pair] for pair in common]
    expected = [p[pair] * count for pair in common]
    if len(common) < len(p):
        observed.append(count - sum(observed))
        expected.append(count - sum(expected))
    return float(chisquare(observed, expected).pvalue)


def test_the_first_tokens_are_uniform() -> None:
    settings = Settings(window=5, samples=3000, lengths=[2], seed=1)
    counts = Counter(sample.prompt[0] for sample in draw_samples(make_model("rnn"), settings, None))
    assert chisquare([counts[token] for token in range(VOCAB_SIZE)]).pvalue > 1e-3


def test_a_chance_falls_to_the_token_whose_share_of_the_line_it_is_in() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    wanted = {0.0: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, 1 - 2**-53: 4}
    for chance, token in wanted.items():
        assert inverse_cumulative(p, torch.tensor([chance], dtype=torch.float64)).tolist() == [token]


def test_predictions_that_are_no_numbers_are_not_drawn_from() -> None:
    model = make_model("rnn")
    with torch.no_grad():
        model.output.bias[3] = float("nan")
    with pytest.raises(DivergedError, match="are not finite numbers"):
        draw_samples(model, SETTINGS, None)


@pytest.mark.parametrize("arch", ARCHS)
def test_another_model_rates_a_text_given_its_prompt(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BATCH", 3)
    judge = make_model(arch, "fused", seed=2)
    literal = Literal(judge, arch)
    for sample in draw_samples(make_model("rnn"), SETTINGS, [1, 4], judge=judge):
        context = list(sample.prompt)
        assert sample.rating is not None
        for token, log_prob in zip(sample.tokens, sample.rating, strict=True):
            assert log_prob == pytest.approx(math.log(softmax(literal.last_logits(context))[token]), abs=1e-9)
            context.append(token)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_model_rates_its_own_text_as_it_drew_it(arch: str) -> None:
    model = make_model(arch, "fused")
    for sample in draw_samples(model, SETTINGS, None, judge=model):
        assert sample.rating == pytest.approx(sample.log_prob, abs=1e-10)


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
