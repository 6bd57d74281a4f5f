"""The arithmetic of column batching, without torch, so that a planner can use it before anything is submitted.

:mod:`seqlm.data.batches` explains the picture behind it.
"""

from seqlm.errors import DataError, UsageError


def number_of_windows(tokens: int, batch_size: int, seq_len: int) -> int:
    """Windows per epoch of a split of ``tokens`` tokens: (column length - 1) // seq_len, 0 if it is too small."""
    return max(tokens // batch_size - 1, 0) // seq_len


def require_windows(split: str, tokens: int, batch_size: int, seq_len: int) -> int:
    """:func:`number_of_windows`, at least 1.

    Raises:
        DataError: ``split`` is too small for one window; the line says which batch_size or seq_len would do.
    """
    count = number_of_windows(tokens, batch_size, seq_len)
    if count:
        return count
    column = tokens // batch_size
    most = {"train.batch_size": tokens // (seq_len + 1), "train.seq_len": column - 1}
    remedies = " or ".join(f"{key} to at most {value:,}" for key, value in most.items() if value >= 1)
    advice = f"lower {remedies}" if remedies else "lower both, or use a longer text"
    raise DataError(
        f"{split} split has {tokens:,} tokens: batch_size {batch_size:,} gives columns of {column:,} tokens, "
        f"seq_len {seq_len:,} needs at least {seq_len + 1:,}; {advice}"
    )


def own_columns(batch_size: int, rank: int, world: int) -> range:
    """The columns of the global batch that ``rank`` (0 to ``world`` - 1) works on: contiguous, as even as can be.

    >>> [len(own_columns(20, rank, 3)) for rank in range(3)]
    [7, 7, 6]

    Raises:
        UsageError: there are more ranks than columns, so that some would have nothing to do.
    """
    if world > batch_size:
        raise UsageError(
            f"{world} ranks share train.batch_size {batch_size}, which has {batch_size} columns; "
            f"use at most {batch_size} devices, or raise train.batch_size to at least {world}"
        )
    return shared(batch_size, rank, world)


def shared(columns: int, rank: int, world: int) -> range:
    """Return the columns of a rank as :func:`own_columns` does; none if there are more ranks and it is a later one."""
    assert 0 <= rank < world
    share, extra = divmod(columns, world)
    start = rank * share + min(rank, extra)
    return range(start, start + share + (rank < extra))
