"""A tiny byte-level BPE tokenizer, trained on the spot."""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["the cat saw the dog\n", "the dog sat\n", "the cats ran to the dogs\n", "naïve cafés\n"]


def train_tokenizer(path: Path, vocab_size: int = 280) -> Path:
    """Write a ``tokenizer.json`` that keeps any text whole: bytes, merged to ``vocab_size`` tokens in all."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(path))
    return path
