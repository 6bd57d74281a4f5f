"""A Hugging Face data set on disk as the three texts of a corpus: Parquet files, or what ``save_to_disk`` wrote.

Needs the package ``pyarrow``; ``datasets`` is not needed and nothing is downloaded. Each row of the text column is one
line or more: a row without a line end at its end gets one, and a row without a value is left out.
"""

import io
import re
from collections.abc import Mapping, Sequence
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
    found: dict[str, list[Path]] = {}
    places = set[str]()
    for path in [*below(folder, "*.parquet"), *below(folder, "data-*.arrow")]:
        name, place = re.split("[^A-Za-z]", path.name)[0], path.parent
        if name not in _KNOWN and place.name in _KNOWN and place != folder:
            name, place = place.name, place.parent
        found.setdefault(name, []).append(path)
        places |= {str(place.relative_to(folder))} if name in _KNOWN else set()
    if len(places) > 1:
        named = ", ".join(sorted(places))
        raise DataError(f"folder {folder} holds several data sets ({named}); pass the folder of one of them")
    chosen = {}
    for split in SPLITS:
        same = sorted(found.keys() & SPLIT_NAMES[split])
        if len(same) > 1:
            raise DataError(f"data set {folder} has the splits {' and '.join(same)}; leave only one of them")
        if not same:
            usual, there = SPLIT_NAMES[split][0], ", ".join(sorted(found))
            raise DataError(f"data set {folder} has no {usual} split; expected {WANTED_SPLITS}, found {there}")
        files = chosen[split] = sorted(found[same[0]])
        count = re.search(r"-of-(\d+)\.", files[0].name)
        if count and int(count[1]) != len(files):
            raise DataError(
                f"{files[0].parent} is damaged (expected {int(count[1])} files of the split {same[0]}, found "
                f"{len(files)}); fetch or save the data set again"
            )
    return chosen


def _read_split(files: Sequence[Path], column: str | None) -> bytes:
    """Return the rows of the files of a split as UTF-8 text."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    text = io.BytesIO()
    for path in files:
        try:
            if path.suffix == ".parquet":
                batches = pyarrow.parquet.ParquetFile(path)
                name = _text_column(batches.schema_arrow, column, path)
                batches = batches.iter_batches(columns=[name])
            else:
                batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
                name = _text_column(batches.schema, column, path)
            for row in (row for batch in batches for row in batch.column(name).to_pylist() if row is not None):
                text.write((row if row.endswith("\n") else f"{row}\n").encode())
        except (pyarrow.ArrowException, UnicodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # others are pyarrow's own, of the content
                raise FileError.from_os_error("read", path, error) from None
            problem = str(error).splitlines()[0]
            raise DataError(f"{path} is damaged ({problem}); fetch or save the data set again") from None
    return text.getvalue()


def _text_column(schema: Any, column: str | None, path: Path) -> str:
    """Return the name of the text column."""
    import pyarrow.types as kinds

    texts = [field.name for field in schema if kinds.is_string(field.type) or kinds.is_large_string(field.type)]
    there = f"one of its columns of texts: {', '.join(texts) or 'none'}"
    name = column or ("text" if "text" in texts or len(texts) != 1 else texts[0])
    if name in texts:
        return name
    if column is None:
        raise DataError(f"data.column: missing for {path}; expected {there}")
    raise DataError(f'data.column: {path} has no text in "{column}"{nearest(column, texts)}; expected {there}')
