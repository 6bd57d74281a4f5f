"""Texts from a model's own predictions, pieces of a text, and the probabilities that a model gives to a text."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from analysis.study.values import Values
from seqlm.data.tokenizer import Tokenizer
from seqlm.data.tokens import UNK, Level, tokens_of
from seqlm.errors import DataError, DivergedError
from seqlm.models import LanguageModel
from seqlm.models.language_model import scaled
from seqlm.records.behaviour import BehaviourSettings

BATCH = 64
"""Texts that are drawn at a time."""


class Text(NamedTuple):
    """A text by its ids."""

    prompt: list[int]
    """What a model is given of it."""
    tokens: list[int]
    """What follows."""


class Drawn(NamedTuple):
    """A text that a model has written; the fields are those of a :class:`analysis.study.behaviour.Sample`."""

    text: Text
    entropy: Values
    log_prob: Values


def prompt_ids(
    text: str, vocabulary: Sequence[str], level: Level | Literal["token"], tokenizer: Tokenizer | None = None
) -> tuple[list[int], list[str]]:
    """Return the ids of a prompt, and the words or characters of it that are unknown, each once.

    It is cut into tokens like the corpus: each line end is ``<eos>``, an unknown token ``<unk>``. A last line without
    an end gets no ``<eos>``: the model continues it. A ``tokenizer`` gets the whole prompt.

    Raises:
        DataError: no token is in it, or an unknown one and the vocabulary has no ``<unk>``.
    """
    if tokenizer is not None:
        found = tokenizer.ids_of(text)
        if not found:
            raise DataError("prompt: expected a text with a token; the tokenizer makes none of this one")
        lost = tokenizer.unknown_id
        return found, [word for word in dict.fromkeys(text.split()) if lost in tokenizer.ids_of(word)]
    assert level != "token", "such a corpus has a tokenizer"
    tokens = list(tokens_of(text, level))
    if not text.endswith("\n"):
        tokens = tokens[:-1]
    if not tokens:
        raise DataError("prompt: expected at least one word, got a text without a token")
    ids = {token: number for number, token in enumerate(vocabulary)}
    unknown = [token for token in dict.fromkeys(tokens) if token not in ids]
    if unknown and UNK not in ids:
        raise DataError(
            f'prompt: "{unknown[0]}" is not in the vocabulary of {len(ids):,} tokens, which has no {UNK} to '
            f"stand for it; use known tokens"
        )
    return [ids.get(token, ids.get(UNK, -1)) for token in tokens], unknown


def draw_samples(
    model: LanguageModel,
    settings: BehaviourSettings,
    prompt: list[int] | None,
    between: Callable[[], None] = lambda: None,
) -> list[Drawn]:
    """``settings.samples`` texts of each of ``settings.lengths``, state zero at the start of the prompt.

    Without a ``prompt`` the first token of each text is uniform over the vocabulary, and at least one more is drawn.
    All chance is in numbers of [0, 1) that a CPU generator gives in the order of the texts: one for the first token
    (used or not), and one for each further token, which is where the cumulative distribution passes that number
    (float64). So the texts follow from the seed and the model alone, not from the device or from how many are drawn at
    a time, up to the rounding of the logits. ``between`` is called between two batches.

    Raises:
        DivergedError: the model's predictions are not finite numbers.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    samples: list[Drawn] = []
    for length in settings.lengths:
        drawn = drawn_tokens(length, prompt)
        texts = [torch.rand(1 + length, generator=generator, dtype=torch.float64) for _ in range(settings.samples)]
        for batch in torch.stack(texts, dim=1).split(BATCH, dim=1):
            between()
            starts = (
                (batch[:1] * model.vocab_size).long()
                if prompt is None
                else torch.tensor(prompt).unsqueeze(1).expand(-1, batch.shape[1])
            )
            tokens, *found = _walk(model, starts, batch[1 : drawn + 1], settings.temperature)
            if not all(tensor.isfinite().all() for tensor in found):
                raise DivergedError("the predictions of the model are not finite numbers; no text can be drawn")
            columns = zip(*(tensor.t().tolist() for tensor in (starts, tokens)), strict=True)
            curves = zip(*(tensor.t().cpu().numpy() for tensor in found), strict=True)
            samples += [Drawn(Text(*ids), *values) for ids, values in zip(columns, curves, strict=True)]
    return samples


def drawn_tokens(length: int, prompt: list[int] | None) -> int:
    """How many tokens of a sample of ``length`` are drawn: without a prompt, the random first token counts."""
    return length if prompt else max(1, length - 1)


def log_probs(model: LanguageModel, texts: Sequence[Text], between: Callable[[], None] = lambda: None) -> list[Values]:
    """The log-probability of each token of each text after its prompt, as float64.

    The model reads a text as if it wrote it itself, one token at a time: a Transformer sees at most the last
    ``seq_len`` tokens. Texts of the same lengths are read together; ``between`` is called between two batches.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault((len(text.prompt), len(text.tokens)), []).append(place)
    found: dict[int, Values] = {}
    for same in places.values():
        for start in range(0, len(same), BATCH):
            between()
            batch = same[start : start + BATCH]
            prompts = torch.tensor([texts[place].prompt for place in batch]).t()
            tokens = torch.tensor([texts[place].tokens for place in batch]).t()
            _, _, of_tokens = _walk(model, prompts, tokens)
            found |= zip(batch, of_tokens.t().cpu().numpy(), strict=True)
    return [found[place] for place in range(len(texts))]


def pieces_of(text: memoryview, given: int, lengths: Sequence[int], each: int) -> list[Text]:
    """``each`` pieces of a text for each of ``lengths``, at even distances from its beginning to its end.

    They are in the order of :func:`draw_samples`: all of the first length first. Each has ``given`` tokens as its
    prompt, and as many more as a sample of that length. None if the text is shorter than the longest.
    """
    total = each * len(lengths)
    room = len(text) - given - max(lengths)
    if room < 0:
        return []
    pieces = []
    for place, length in enumerate(lengths):
        for number in range(each):
            start = (number * len(lengths) + place) * room // max(1, total - 1)
            end = start + given + length
            pieces.append(Text(text[start : start + given].tolist(), text[start + given : end].tolist()))
    return pieces


def _walk(
    model: LanguageModel, prompt: Int[Tensor, "P B"], steps: Num[Tensor, "T B"], temperature: float = 1.0
) -> tuple[Int[Tensor, "T B"], Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """The tokens after a prompt, the entropies of the distributions that they come from, and their log-probabilities.

    ``steps`` has the chance of each token, or the token itself as an integer.
    """
    rows = iter(steps.to(model.device))
    entropies: list[Tensor] = []
    log_probs: list[Tensor] = []

    def draw(logits: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
        logits = logits.double()
        probabilities = scaled(logits, temperature).softmax(dim=-1)
        step = next(rows)
        tokens = inverse_cumulative(probabilities, step) if step.is_floating_point() else step
        entropies.append(torch.special.entr(probabilities).sum(dim=-1))
        log_probs.append(logits.log_softmax(dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1))
        return tokens

    tokens = model.sample(prompt.to(model.device), model.initial_state(prompt.shape[1]), len(steps), draw)
    return tokens, torch.stack(entropies), torch.stack(log_probs)


def inverse_cumulative(probabilities: Float[Tensor, "B V"], chances: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """For each row the first id whose cumulative probability is above the chance in [0, 1)."""
    cumulative = probabilities.cumsum(dim=-1)
    tokens = torch.searchsorted(cumulative, chances.unsqueeze(1) * cumulative[:, -1:], right=True).squeeze(1)
    return tokens.clamp(max=probabilities.shape[1] - 1)  # a chance next to 1 may be rounded up to it
