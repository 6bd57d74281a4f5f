"""A Hugging Face data set on disk as the three texts of a corpus: Parquet files, or what ``save_to_disk`` wrote.

Needs the package ``pyarrow``; ``datasets`` is not needed and nothing is downloaded. Each row of the text column is one
line or more: a row without a line end at its end gets one, and a row without a value is left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqlm.data.source import NAMINGS, SPLITS, Texts
from seqlm.errors import DataError, FileError, nearest
from seqlm.reading import below, exists, is_folder

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Split -> its names in data sets. ``validation`` is the usual one."""
WANTED_SPLITS = "train, validation (or valid, val, dev) and test"
_KNOWN = {name for names in SPLIT_NAMES.values() for name in names}
_FILE = re.compile(r"(?P<word>[A-Za-z]*).*?(?:-of-(?P<count>\d+))?\.(?P<kind>parquet|arrow)")


def is_dataset(path: Path) -> bool:
    """Whether a path is the folder of a data set and not one of text files.

    Raises:
        FileError: the folder cannot be listed.
    """
    if not is_folder(path) or any(exists(path / name) for naming in NAMINGS for name in naming):
        return False
    return bool(below(path, "*.parquet") or below(path, "data-*.arrow"))


def read_dataset(folder: Path, column: str | None) -> Texts:
    """Read the three splits of a data set.

    ``column`` is the column with the text. ``None``: ``text``, or the only column of texts.

    Raises:
        DataError: pyarrow is missing, a split is missing or ambiguous, there is no such column, or a file is damaged.
        FileError: the file system refuses to let a file be read.
    """
    try:
        import pyarrow.ipc
        import pyarrow.parquet  # noqa: F401 -- asked for before any file is read
    except ImportError:
        raise DataError(
            f"{folder} is a data set, which needs the package pyarrow; install it (pip install pyarrow), or pass a "
            "folder with train.txt, valid.txt and test.txt"
        ) from None
    files = _files_of(folder)
    names = {split: of[0].name + (f" and {len(of) - 1} more" if of[1:] else "") for split, of in files.items()}
    return Texts({split: _read_split(of, column) for split, of in files.items()}, names)


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split. The name of a file begins with that of its split, or its folder has that name."""
    places: dict[Path, dict[str, list[Path]]] = {}
    for path in [*below(folder, "*.parquet"), *below(folder, "data-*.arrow")]:
        found = _FILE.fullmatch(path.name)
        word = found["word"] if found else path.stem
        in_folder = word not in _KNOWN and path.parent.name in _KNOWN and path.parent != folder
        place, name = (path.parent.parent, path.parent.name) if in_folder else (path.parent, word)
        places.setdefault(place, {}).setdefault(name, []).append(path)
    known = {place: found for place, found in places.items() if _KNOWN & found.keys()}
    if len(known) > 1:
        named = ", ".join(sorted(str(place.relative_to(folder)) for place in known))
        raise DataError(f"folder {folder} holds several data sets ({named}); pass the folder of one of them")
    splits = next(iter(known.values()), {name: of for found in places.values() for name, of in found.items()})
    there = ", ".join(sorted(splits))
    chosen = {}
    for split in SPLITS:
        same = sorted(splits.keys() & SPLIT_NAMES[split])
        if len(same) > 1:
            raise DataError(f"data set {folder} has the splits {' and '.join(same)}; leave only one of them")
        if not same:
            usual = SPLIT_NAMES[split][0]
            raise DataError(f"data set {folder} has no {usual} split; expected {WANTED_SPLITS}, found {there}")
        chosen[split] = sorted(splits[same[0]])
        count = (_FILE.fullmatch(chosen[split][0].name) or {"count": None})["count"]
        if count and int(count) != len(chosen[split]):
            raise DataError(
                f"{chosen[split][0].parent} is damaged (expected {int(count)} files of the split {same[0]}, found "
                f"{len(chosen[split])}); fetch or save the data set again"
            )
    return chosen


def _read_split(files: Sequence[Path], column: str | None) -> bytes:
    """Return the rows of the files of a split as UTF-8 text."""
    import pyarrow

    text = io.BytesIO()
    for path in files:
        try:
            for row in _rows(path, column):
                if row is not None:
                    text.write((row if row.endswith("\n") else f"{row}\n").encode())
        except (pyarrow.ArrowException, UnicodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # others are pyarrow's own, of the content
                raise FileError.from_os_error("read", path, error) from None
            problem = str(error).splitlines()[0]
            raise DataError(f"{path} is damaged ({problem}); fetch or save the data set again") from None
    return text.getvalue()


def _rows(path: Path, column: str | None) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    if path.suffix == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        name = _text_column(file.schema_arrow, column, path)
        batches = file.iter_batches(columns=[name])
    else:
        batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        name = _text_column(batches.schema, column, path)
    for batch in batches:
        yield from batch.column(name).to_pylist()


def _text_column(schema: Any, column: str | None, path: Path) -> str:
    """Return the name of the text column."""
    import pyarrow.types as kinds

    texts = [field.name for field in schema if kinds.is_string(field.type) or kinds.is_large_string(field.type)]
    there = f"one of its columns of texts: {', '.join(texts) or 'none'}"
    if column is not None and column in texts:
        return column
    if column is not None:
        raise DataError(f'data.column: {path} has no text in "{column}"{nearest(column, texts)}; expected {there}')
    if "text" not in texts and len(texts) != 1:
        raise DataError(f"data.column: missing for {path}; expected {there}")
    return "text" if "text" in texts else texts[0]
