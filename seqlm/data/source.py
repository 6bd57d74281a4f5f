"""The three texts of a corpus, found in a folder or in a zip file, which are only ever read.

A zip file may come from anywhere. Nothing of it is written to disk, so that the paths in it do no harm. It says of
itself how large its texts are, and may lie: no more than that is unpacked, and no more than text packs to is believed.
"""

import codecs
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from seqlm.errors import DataError, FileError, file_errors
from seqlm.reading import exists, is_file, is_folder, listed

SPLITS = ("train", "valid", "test")
"""The parts of a corpus, in the order in which they are always listed."""
NAMINGS = (tuple(f"ptb.{split}.txt" for split in SPLITS), tuple(f"{split}.txt" for split in SPLITS))
"""File names of the three splits: the two schemes that are read."""
WANTED = "ptb.train.txt, ptb.valid.txt and ptb.test.txt (or train.txt, valid.txt and test.txt)"
LARGEST_RATIO = 200
"""Bytes of text for each byte of a zip file, above :data:`HARMLESS_TOTAL`. Text of people packs to a third or a
tenth."""
HARMLESS_TOTAL = 64 * 2**20
"""Bytes of text that may be packed as tightly as they like."""


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
        raw, name = self.contents[split], self.file_names[split]
        try:
            text, wrong = raw.decode("utf-8"), raw.find(0)
        except UnicodeDecodeError as error:
            wrong = error.start
        if wrong >= 0:
            line = raw.count(b"\n", 0, wrong) + 1
            raise DataError(f"{name} line {line}: byte 0x{raw[wrong]:02x} is not UTF-8 text; save the file as UTF-8")
        if not text.strip("\ufeff \t\r\n"):
            raise DataError(f"{name} is empty; expected a text file with one sentence per line")
        return text.removeprefix("\ufeff")


def combined_sha256(file_digests: Iterable[str]) -> str:
    """The digest of a corpus: SHA-256 over one line ``<sha256> <split>`` for each of train, valid, test."""
    listing = "".join(f"{digest} {split}\n" for split, digest in zip(SPLITS, file_digests, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def read_texts(path: Path) -> Texts:
    """Read the three splits from a folder, or from anywhere inside a zip file.

    Raises:
        DataError: nothing there, a split is missing or is there twice, the zip file is damaged, encrypted or absurdly
            large, or something is a file where a folder belongs and the reverse. One line that says what is right.
        FileError: the file system refuses to let it be read.
    """
    if is_folder(path):
        return _read_folder(path)
    if is_file(path):
        return _read_zip(path)
    problem = "is neither a folder nor a zip file" if exists(path) else "does not exist"
    raise DataError(f"{path} {problem}; expected a folder or a zip file with {WANTED}")


def _choose(where: str, found: Sequence[str]) -> dict[str, str]:
    """Return split -> place, from the places of all files. Exactly one complete set may be there."""
    texts = sorted(place for place in found if any(PurePosixPath(place).name in naming for naming in NAMINGS))
    by_name = {PurePosixPath(place).name: place for place in texts}
    for naming in NAMINGS:
        if by_name.keys() == set(naming) and len(texts) == len(naming):
            return {split: by_name[name] for split, name in zip(SPLITS, naming, strict=True)}
    raise DataError(f"{where} holds {', '.join(texts[:6]) or 'no text of a corpus'}; expected {WANTED}, each once")


def _read_folder(folder: Path) -> Texts:
    places = _choose(f"folder {folder}", [path.name for path in listed(folder)])
    for path in (folder / name for name in places.values()):
        if not is_file(path):
            raise DataError(f"{path} is no regular file; expected a text file with one sentence per line")
    with file_errors("read", folder, within=True):
        return Texts({split: (folder / name).read_bytes() for split, name in places.items()}, places)


def _read_zip(path: Path) -> Texts:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected a folder or a plain zip file with {WANTED}"
        ) from None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Texts:
    places = _choose(f"zip file {path}", [one.filename for one in archive.infolist() if not one.filename.endswith("/")])
    infos = {split: archive.getinfo(place) for split, place in places.items()}
    total, packed = sum(info.file_size for info in infos.values()), path.stat().st_size
    if total > max(HARMLESS_TOTAL, LARGEST_RATIO * packed):
        raise DataError(
            f"zip file {path} says that {packed:,} bytes unpack to {total / 2**20:,.0f} MiB, which no text does; valid "
            f"are at most {LARGEST_RATIO} for each (if it is meant: unpack it and pass the folder)"
        )
    contents = {}
    for split, info in infos.items():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of other methods than these, Python unpacks a piece whatever its size.
            raise ValueError(f"{info.filename} is not packed by deflate")
        with archive.open(info) as file:
            contents[split] = file.read(info.file_size)  # unpacks no more than that
    return Texts(contents, {split: PurePosixPath(place).name for split, place in places.items()})
