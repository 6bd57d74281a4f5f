"""A Hugging Face data set on disk as the three texts of a corpus: Parquet files, or what ``save_to_disk`` wrote.

Needs the package ``pyarrow``; ``datasets`` is not needed and nothing is downloaded. Each row of the text column is one
line or more: a row without a line end at its end gets one, and a row without a value is left out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from seqlm.data.source import NAMINGS, SPLITS, Texts
from seqlm.errors import DataError, FileError, nearest
from seqlm.files import read_json
from seqlm.reading import below, exists, is_file, is_folder

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Split -> its names in data sets. ``validation`` is the usual one."""
WANTED_SPLITS = "train, validation (or valid, val, dev) and test"
SAVED = "dataset_dict.json"
"""The file that ``DatasetDict.save_to_disk`` writes into a data set's folder."""
_SAVED_SPLIT = "state.json"
_SHARD = re.compile(r"([A-Za-z]+)(?:-\d+-of-\d+)?\Z")
"""The stem of a Parquet file in a folder of all splits: ``train``, ``train-00000-of-00002``."""

_Schema: TypeAlias = Any
_Rows: TypeAlias = Iterator[list[str | None]]
_Opened: TypeAlias = tuple[_Schema, Callable[[str], _Rows]]
"""The schema of a file, and a function from a column to its values."""


def is_dataset(path: Path) -> bool:
    """Whether a path is the folder of a data set and not one of text files.

    Raises:
        FileError: the folder cannot be listed.
    """
    try:
        if not is_folder(path) or any(exists(path / name) for naming in NAMINGS for name in naming):
            return False
        if is_file(path / SAVED) or is_file(path / _SAVED_SPLIT):
            return True
        return bool(below(path, "*.parquet"))
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or path, error) from None


def read_dataset(folder: Path, column: str | None) -> Texts:
    """Read the three splits of a data set.

    ``column`` is the column with the text. ``None``: ``text``, or the only column of texts.

    Raises:
        DataError: pyarrow is missing, a split is missing or ambiguous, there is no such column, or a file is damaged.
        FileError: the file system refuses to let a file be read.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{folder} is a data set, which needs the package pyarrow; install it (pip install pyarrow), or pass a "
            "folder with train.txt, valid.txt and test.txt"
        ) from None

    def open_parquet(path: Path) -> _Opened:
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow, lambda name: (
            batch.column(0).to_pylist() for batch in file.iter_batches(columns=[name])
        )

    def open_saved(path: Path) -> _Opened:
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        return stream.schema, lambda name: (batch.column(name).to_pylist() for batch in stream)

    try:
        is_saved = is_file(folder / SAVED) or is_file(folder / _SAVED_SPLIT)
        shards = _saved_shards(folder) if is_saved else _parquet_shards(folder)
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or folder, error) from None
    contents = {
        split: _read_split(files, open_saved if is_saved else open_parquet, column) for split, files in shards.items()
    }
    names = {
        split: f"{files[0].name} and {len(files) - 1} more" if files[1:] else files[0].name
        for split, files in shards.items()
    }
    return Texts(contents, names)


def _read_split(files: Sequence[Path], opened: Callable[[Path], _Opened], column: str | None) -> bytes:
    """Return the rows of the files of a split as UTF-8 text."""
    import pyarrow

    text = io.BytesIO()
    for path in files:
        try:
            schema, rows_of = opened(path)
            for rows in rows_of(_text_column(schema, column, path)):
                text.writelines(_lines_of(rows))
        except (pyarrow.ArrowException, UnicodeError) as error:
            raise DataError(
                f"{path} is damaged ({str(error).splitlines()[0]}); fetch or save the data set again"
            ) from None
        except OSError as error:
            if error.errno is None:  # pyarrow's own, of the content
                raise DataError(
                    f"{path} is damaged ({str(error).splitlines()[0]}); fetch or save the data set again"
                ) from None
            raise FileError.from_os_error("read", path, error) from None
    return text.getvalue()


def _lines_of(rows: Iterable[str | None]) -> Iterator[bytes]:
    for row in rows:
        if row is not None:
            yield (row if row.endswith("\n") else f"{row}\n").encode()


def _text_column(schema: _Schema, column: str | None, path: Path) -> str:
    """Return the name of the text column."""
    import pyarrow.types as kinds

    texts = [field.name for field in schema if kinds.is_string(field.type) or kinds.is_large_string(field.type)]
    there = ", ".join(texts) or "none"
    if column is not None:
        if column in texts:
            return column
        if column in schema.names:
            kind = schema.field(column).type
            raise DataError(f'data.column: "{column}" of {path} holds {kind}; expected a column of texts ({there})')
        hint = nearest(column, texts)
        raise DataError(
            f'data.column: {path} has no column "{column}"{hint}; expected one of its columns of texts: {there}'
        )
    if "text" in texts or len(texts) == 1:
        return "text" if "text" in texts else texts[0]
    if not texts:
        raise DataError(f"{path} has no column of texts; its columns are {', '.join(schema.names) or 'none'}")
    raise DataError(f"{path} has several columns of texts; set data.column to one of {there}")


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def _chosen(folder: Path, found: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Split -> its files, from the splits that the data set has under its own names."""
    names: dict[str, list[str]] = {split: [name for name in found if _split_of(name) == split] for split in SPLITS}
    there = ", ".join(sorted(found)) or "none"
    for split, same in names.items():
        if not same:
            raise DataError(
                f"data set {folder} has no {SPLIT_NAMES[split][0]} split; expected {WANTED_SPLITS}, found {there}"
            )
        if len(same) > 1:
            raise DataError(f"data set {folder} has the splits {' and '.join(sorted(same))}; leave only one of them")
    return {split: sorted(found[same[0]]) for split, same in names.items()}


def _parquet_shards(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: ``train-*.parquet``, or ``train/*.parquet``, in one folder below ``folder``."""
    sets: dict[Path, dict[str, list[Path]]] = {}
    for path in below(folder, "*.parquet"):
        shard = _SHARD.match(path.stem)
        if shard and _split_of(shard[1]):
            sets.setdefault(path.parent, {}).setdefault(shard[1], []).append(path)
        elif _split_of(path.parent.name) and path.parent != folder:
            sets.setdefault(path.parent.parent, {}).setdefault(path.parent.name, []).append(path)
        else:
            sets.setdefault(path.parent, {}).setdefault(shard[1] if shard else path.stem, []).append(path)
    known = {place: found for place, found in sets.items() if any(map(_split_of, found))}
    if len(known) > 1:
        places = ", ".join(sorted(str(place.relative_to(folder)) for place in known))
        raise DataError(f"folder {folder} holds several data sets ({places}); pass the folder of one of them")
    found = next(iter(known.values()), None)
    return _chosen(folder, found or {name: files for one in sets.values() for name, files in one.items()})


def _saved_shards(folder: Path) -> dict[str, list[Path]]:
    """The Arrow files of each split of a data set that ``DatasetDict.save_to_disk`` wrote."""
    listed = (read_json(folder / SAVED) or {}).get("splits")
    if listed is None:
        raise DataError(
            f"{folder} is one split that was saved alone; expected a data set with the splits {WANTED_SPLITS} "
            "(DatasetDict.save_to_disk)"
        )
    if not isinstance(listed, list) or not all(
        isinstance(name, str) and PurePath(name).name == name for name in listed
    ):
        raise DataError(f"{folder / SAVED} is damaged; save the data set again")
    shards = _chosen(folder, {name: [folder / name] for name in listed})
    return {split: [file for place in places for file in _saved_files(place)] for split, places in shards.items()}


def _saved_files(place: Path) -> list[Path]:
    state = read_json(place / _SAVED_SPLIT) or {}
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        files = [place / name for name in names if PurePath(name).name == name]
    except (KeyError, TypeError):
        names, files = [], []
    missing = [file for file in files if not is_file(file)]
    if not files or len(files) != len(names) or missing:
        what = f"{missing[0].name} is missing" if missing else f"{_SAVED_SPLIT} names no files"
        raise DataError(f"{place} is damaged ({what}); save the data set again")
    return files
