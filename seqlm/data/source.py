"""The three texts of a corpus, found in a folder or in a zip file, which are only ever read.

A zip file may come from anywhere. Nothing of it is written to disk, so that the paths in it do no harm. It says of
itself how large it is, and may lie: what is believed is the size of the file, and what has been unpacked so far.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from seqlm.errors import DataError, FileError
from seqlm.reading import is_file, is_folder, listed

SPLITS = ("train", "valid", "test")
"""The parts of a corpus, in the order in which they are always listed."""
NAMINGS = (tuple(f"ptb.{split}.txt" for split in SPLITS), tuple(f"{split}.txt" for split in SPLITS))
"""File names of the three splits: the two schemes that are read."""
WANTED = "ptb.train.txt, ptb.valid.txt and ptb.test.txt (or train.txt, valid.txt and test.txt)"
LARGEST_TOTAL = 4 * 2**30
"""Bytes of text that a zip file may declare, in all."""
LARGEST_RATIO = 200
"""Bytes of text for each packed byte, above :data:`HARMLESS_TOTAL`. Text of people packs to a third or a tenth."""
HARMLESS_TOTAL = 64 * 2**20
"""Bytes of text that may be packed as tightly as they like."""
MOST_ENTRIES = 10_000
"""Files in a zip file."""
LARGEST_DIRECTORY = 8 * 2**20
"""Bytes of a zip file's list of its files, which Python reads as a whole and turns into objects."""

_DATA_SET = (".parquet", ".arrow")
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, ValueError, OSError)
_ENCRYPTED = 0x1
"""Bit of a zip entry's flags."""
_CHUNK = 2**20
_SMALL_CHUNK = 2**12
"""For methods other than deflate: Python unpacks at once whatever was read, and a megabyte may hold gigabytes."""


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


def read_texts(path: Path) -> Texts:
    """Read the three splits from a folder, or from anywhere inside a zip file.

    Raises:
        DataError: nothing there, a split is missing or is there twice, the zip file is damaged, encrypted or absurdly
            large, or something is a file where a folder belongs and the reverse. One line that says what is right.
        FileError: the file system refuses to let it be read.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(f"{path} does not exist; expected a folder or a zip file with {WANTED}") from None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    if stat.S_ISDIR(mode):
        return _read_folder(path)
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is neither a folder nor a zip file; expected one of them, with {WANTED}")
    return _read_zip(path)


def _choose(where: str, found: Mapping[str, list[str]]) -> dict[str, str]:
    """Split -> place, from file name -> places. Exactly one complete set may be there."""
    used = [naming for naming in NAMINGS if any(name in found for name in naming)]
    if not used:
        raise DataError(f"{where} holds no text of a corpus; expected {WANTED}")
    if len(used) > 1:
        names = ", ".join(name for naming in used for name in naming if name in found)
        raise DataError(f"{where} holds files of two namings ({names}); leave only one set of three")
    naming = used[0]
    for name in naming:
        if len(found.get(name, ())) > 1:
            raise DataError(
                f"{where} holds {name} more than once ({', '.join(sorted(found[name]))}); leave only one set of three"
            )
    missing = [name for name in naming if name not in found]
    if missing:
        there = ", ".join(name for name in naming if name in found)
        raise DataError(f"{where} has no {' and no '.join(missing)} beside {there}; expected {WANTED}")
    return {split: found[name][0] for split, name in zip(SPLITS, naming, strict=True)}


def _read_folder(folder: Path) -> Texts:
    try:
        entries = {entry.name: entry for entry in listed(folder)}
        found = {name: [name] for naming in NAMINGS for name in naming if name in entries}
        zips = sorted(name for name in entries if name.endswith(".zip"))
        if not found and zips:
            raise DataError(f"folder {folder} holds no text of a corpus, but {zips[0]}; pass {folder / zips[0]} itself")
        places = _choose(f"folder {folder}", found)
        for name in places.values():
            if not is_file(entries[name]):
                kind = "a folder" if is_folder(entries[name]) else "no regular file"
                raise DataError(f"{entries[name]} is {kind}; expected a text file with one sentence per line")
        contents = {split: entries[name].read_bytes() for split, name in places.items()}
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or folder, error) from None
    return Texts(contents, places)


class _ZipFile(io.FileIO):
    """The bytes of a zip file, of which nobody gets more at once than a list of files may have."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > LARGEST_DIRECTORY:
            raise DataError(f"zip file {self.name} lists too many files; expected at most {MOST_ENTRIES:,}")
        return super().read(-1 if size is None else size)


def _read_zip(path: Path) -> Texts:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(
                    f"{path} is no zip file, or a damaged one; expected a folder or a zip file with {WANTED}"
                )
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    try:
        with _ZipFile(path) as bounded, zipfile.ZipFile(bounded) as archive:
            return _read_archive(path, archive)
    except NotImplementedError as error:
        raise DataError(f"{path} cannot be read ({error}); pack it again as an ordinary zip file") from None
    except _DAMAGE as error:
        raise DataError(f"{path} is a damaged zip file ({error}); copy or fetch it again") from None


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Texts:
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise DataError(f"zip file {path} lists {len(entries):,} files; expected at most {MOST_ENTRIES:,}")
    known = {name for naming in NAMINGS for name in naming}
    found: dict[str, list[zipfile.ZipInfo]] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename).name
        if name in known:
            found.setdefault(name, []).append(entry)
    if not found and (data_set := next((e.filename for e in entries if e.filename.endswith(_DATA_SET)), None)):
        raise DataError(f"zip file {path} holds a data set ({data_set}); unpack it and pass the folder")
    names = {name: [entry.filename for entry in same] for name, same in found.items()}
    places = {split: PurePosixPath(place).name for split, place in _choose(f"zip file {path}", names).items()}
    infos = {split: found[name][0] for split, name in places.items()}
    for info in infos.values():
        if info.filename.endswith("/"):
            raise DataError(f"{info.filename} in {path} is a folder; expected a text file with one sentence per line")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{info.filename} in {path} is a symbolic link; pack the text itself")
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{info.filename} in {path} is encrypted; unpack it and pass the folder")
    _require_reasonable_size(path, infos.values())
    contents = {split: _unpack(archive, info) for split, info in infos.items()}
    return Texts(contents, places)


def _require_reasonable_size(path: Path, infos: Iterable[zipfile.ZipInfo]) -> None:
    total = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if total > LARGEST_TOTAL:
        raise DataError(
            f"zip file {path} says that it unpacks to {total / 2**30:,.1f} GiB of text; "
            f"expected at most {LARGEST_TOTAL // 2**30} GiB (larger texts: pass a folder)"
        )
    there = path.stat().st_size
    if packed > there:
        raise DataError(f"{path} is a damaged zip file (its texts overlap, or are cut); copy or fetch it again")
    if total > HARMLESS_TOTAL and total > LARGEST_RATIO * packed:
        raise DataError(
            f"zip file {path} says that {packed:,} bytes unpack to {total / 2**20:,.0f} MiB, which no text does; valid "
            f"are at most {LARGEST_RATIO} for each (if it is meant: unpack it and pass the folder)"
        )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of one text, in pieces: no more than it says of itself, and a little, is ever in memory."""
    size = _CHUNK if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else _SMALL_CHUNK
    content = io.BytesIO()
    with archive.open(info) as file:
        while piece := file.read(size):
            content.write(piece)
    return content.getvalue()
