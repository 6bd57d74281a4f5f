"""Texts from a model's own predictions, and what a model thinks of a text."""

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


class Drawn(NamedTuple):
    """One text by its ids; the fields are those of a :class:`analysis.study.behaviour.Sample`."""

    prompt: list[int]
    tokens: list[int]
    entropy: Values
    log_prob: Values
    rating: Values | None = None
    """Log-probabilities under the judge."""


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
    judge: LanguageModel | None = None,
) -> list[Drawn]:
    """``settings.samples`` texts of each of ``settings.lengths``, state zero at the start of the prompt.

    Without a ``prompt`` the first token of each text is uniform over the vocabulary, and at least one more is drawn.
    All chance is in numbers of [0, 1) that a CPU generator gives in the order of the texts: one for the first token
    (used or not), and one for each further token, which is where the cumulative distribution passes that number
    (float64). So the texts follow from the seed and the model alone, not from the device or from how many are drawn at
    a time, up to the rounding of the logits. ``between`` is called between two batches. ``judge`` reads each text as if
    it wrote it itself, one token at a time: a Transformer sees at most the last ``seq_len`` tokens.

    Raises:
        DivergedError: the model's predictions are not finite numbers.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    samples: list[Drawn] = []
    for length in settings.lengths:
        drawn = length if prompt else max(1, length - 1)
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
            if judge is not None:
                found.append(_walk(judge, starts, tokens)[2])
            columns = zip(*(tensor.t().tolist() for tensor in (starts, tokens)), strict=True)
            curves = zip(*(tensor.t().cpu().numpy() for tensor in found), strict=True)
            samples += [Drawn(*ids, *values) for ids, values in zip(columns, curves, strict=True)]
    return samples


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
