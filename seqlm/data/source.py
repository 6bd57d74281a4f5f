"""The three texts of a corpus, found in a folder, which is only ever read."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seqlm.errors import DataError, FileError
from seqlm.reading import is_file, is_folder, listed

SPLITS = ("train", "valid", "test")
"""The parts of a corpus, in the order in which they are always listed."""
NAMINGS = (tuple(f"ptb.{split}.txt" for split in SPLITS), tuple(f"{split}.txt" for split in SPLITS))
"""File names of the three splits: the two schemes that are read."""
WANTED = "ptb.train.txt, ptb.valid.txt and ptb.test.txt (or train.txt, valid.txt and test.txt)"


@dataclass(frozen=True)
class Texts:
    """The raw bytes of the three splits and what each file is called in messages."""

    contents: Mapping[str, bytes]
    file_names: Mapping[str, str]

    def file_sha256(self, split: str) -> str:
        """SHA-256 of one split's bytes, 64 hex digits."""
        return hashlib.sha256(self.contents[split]).hexdigest()

    def sha256(self) -> str:
        """The digest of the corpus's text, whatever its files are called and wherever they lie."""
        return combined_sha256(self.file_sha256(split) for split in SPLITS)

    def size(self, split: str) -> int:
        """Bytes of one split's text, without a byte order mark."""
        raw = self.contents[split]
        return len(raw) - (len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0)

    def text(self, split: str) -> str:
        """One split as text, without a byte order mark.

        Raises:
            DataError: the file is empty, or is not UTF-8; the line of the first bad byte is named.
        """
        raw = self.contents[split]
        name = self.file_names[split]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{name} line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8 text"
            ) from None
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise DataError(
                f"{name} line {line}: byte 0x00 is no text; expected a text file with one sentence per line"
            )
        if not text.strip("\ufeff \t\r\n"):
            raise DataError(f"{name} is empty; expected a text file with one sentence per line")
        return text.removeprefix("\ufeff")


def combined_sha256(file_digests: Iterable[str]) -> str:
    """The digest of a corpus: SHA-256 over one line ``<sha256> <split>`` for each of train, valid, test."""
    listing = "".join(f"{digest} {split}\n" for split, digest in zip(SPLITS, file_digests, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def read_texts(folder: Path) -> Texts:
    """Read the three splits from a folder.

    Raises:
        DataError: it is no folder, a split is missing or no regular file, or there are files of both namings. One line
            that says what is right.
        FileError: the file system refuses to let it be read.
    """
    if not is_folder(folder):
        found = "is no folder" if is_file(folder) else "does not exist"
        raise DataError(f"{folder} {found}; expected a folder with {WANTED} (unpack an archive first)")
    names = {path.name for path in listed(folder)}
    used = [naming for naming in NAMINGS if not names.isdisjoint(naming)]
    if not used:
        raise DataError(f"folder {folder} holds no text of a corpus; expected {WANTED}")
    if len(used) > 1:
        both = ", ".join(name for naming in used for name in naming if name in names)
        raise DataError(f"folder {folder} holds files of two namings ({both}); leave only one set of three")
    if missing := [name for name in used[0] if name not in names]:
        there = ", ".join(name for name in used[0] if name in names)
        raise DataError(f"folder {folder} has no {' and no '.join(missing)} beside {there}; expected {WANTED}")
    for path in (folder / name for name in used[0]):
        if not is_file(path):
            kind = "a folder" if is_folder(path) else "no regular file"
            raise DataError(f"{path} is {kind}; expected a text file with one sentence per line")
    places = dict(zip(SPLITS, used[0], strict=True))
    try:
        return Texts({split: (folder / name).read_bytes() for split, name in places.items()}, places)
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or folder, error) from None
