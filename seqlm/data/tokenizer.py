"""A tokenizer file of the ``tokenizers`` library (``tokenizer.json``): text to ids and back.

Needs the package ``tokenizers``. The file is read again only where a corpus is not in the cache, and to decode what a
model has written. Truncation, padding and special tokens that the file asks for are not applied: a text is cut into
lines, each with its line end, and each line into the tokens that the file's rules give.
"""

import hashlib
import itertools
import operator
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from seqlm.data.tokens import Encoded, whole_lines
from seqlm.errors import DataError
from seqlm.reading import is_folder, parse_json, read_bytes

LINES = 4096
"""Lines that are encoded at a time."""


def read_tokenizer_file(path: Path) -> bytes:
    """Return the bytes of a tokenizer file, checked to be one; the package is not needed.

    Raises:
        DataError: there is no such file, or it is no tokenizer file of the ``tokenizers`` library.
        FileError: the file system refuses to let it be read.
    """
    wanted = "expected a tokenizer.json of the tokenizers library"
    if is_folder(path):
        raise DataError(f"data.tokenizer: {path} is a folder; {wanted}")
    try:
        content = read_bytes(path)
        found = parse_json(content.decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"data.tokenizer: {path} does not exist; {wanted}") from None
    except ValueError:
        found = None
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise DataError(f"data.tokenizer: {path} is another kind of file (no JSON with model.vocab); {wanted}")
    if model.get("dropout"):
        raise DataError(
            f"data.tokenizer: {path} has model.dropout = {model['dropout']}, which draws tokens at random; "
            "set it to null"
        )
    return content


@final
class Tokenizer:
    """A tokenizer read from its file.

    Raises:
        DataError: the package ``tokenizers`` is missing or cannot read the file, or the file has another digest than
            ``sha256``; or as :func:`read_tokenizer_file`.
        FileError: as :func:`read_tokenizer_file`.
    """

    def __init__(self, path: Path, sha256: str | None) -> None:
        content = read_tokenizer_file(path)
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, found):
            raise DataError(
                f"data.tokenizer: {path} has changed since its runs were launched: found sha256 {found}, expected "
                f"{sha256}; restore the file"
            )
        try:
            import tokenizers
        except ImportError:
            raise DataError(
                "data.tokenizer: needs the package tokenizers; install it (pip install tokenizers)"
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exceptions
            problem = " ".join(str(error).split())[:200]
            raise DataError(
                f"data.tokenizer: tokenizers {tokenizers.__version__} cannot read {path} ({problem}); save the file "
                "with this version, or install the version that wrote it"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def vocabulary(self) -> tuple[str, ...]:
        """Id -> token as the file has it. An id that the file leaves out is an empty text."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        found = [""] * (max(ids.values(), default=-1) + 1)
        for token, number in ids.items():
            found[number] = token
        return tuple(found)

    def encode_texts(self, texts: Mapping[str, str]) -> Encoded:
        """Return each split's ids, line by line."""
        splits, lossless = {split: array("i") for split in texts}, True
        for split, text in texts.items():
            lines = whole_lines(text)
            while batch := list(itertools.islice(lines, LINES)):
                found = [one.ids for one in self._tokenizer.encode_batch(batch, add_special_tokens=False)]
                splits[split].extend(itertools.chain.from_iterable(found))
                if split != "train" and lossless:
                    back = self._tokenizer.decode_batch(found, skip_special_tokens=False)
                    lossless = ["".join(line.split()) for line in back] == ["".join(line.split()) for line in batch]
        return Encoded(self.vocabulary(), splits, lossless)

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for what the vocabulary lacks. ``None``: no id does."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        return None if token is None else self._tokenizer.token_to_id(token)

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text, all of it at once."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of the ids, cut into a piece for each id; joined they are the text that the ids stand for.

        A character whose bytes are several tokens belongs to the last of them.
        """
        texts = [self._tokenizer.decode(list(ids[:end]), skip_special_tokens=False) for end in range(len(ids) + 1)]
        ends = (sum(itertools.takewhile(bool, map(operator.eq, texts[-1], text))) for text in texts)
        return [texts[-1][start:end] for start, end in itertools.pairwise(itertools.accumulate(ends, max))]
