"""``valid.f32`` of a finished run: the loss of each token of the validation text. Standard library alone.

Little-endian float32, in nats, in the order of the text, with the parameters of the best epoch and without dropout. A
token that is not predicted, such as the first one of a column, is NaN. So two runs are compared over the tokens that
both predict, also where their columns differ.
"""

import sys
from array import array
from collections.abc import Iterable
from contextlib import suppress

from seqlm.files import Guard, write_bytes
from seqlm.reading import read_kept_bytes
from seqlm.rundir import RunDirectory

NUMBER_BYTES = 4
LARGEST_BYTES = 16 * 2**20
"""Most bytes that are read: four million tokens."""


def read_token_losses(run: RunDirectory) -> "array[float] | None":
    """Return the losses of the tokens (nats); ``None``: the run has recorded none.

    Raises:
        FileError: the file cannot be read, or is too large.
    """
    losses = array("f")
    with suppress(FileNotFoundError):
        content = read_kept_bytes(run.token_losses_file, LARGEST_BYTES)
        losses.frombytes(content[: len(content) // NUMBER_BYTES * NUMBER_BYTES])
    if sys.byteorder == "big":
        losses.byteswap()
    return losses or None


def write_token_losses(run: RunDirectory, losses: Iterable[float], *, guard: Guard) -> None:
    """Write the losses of the tokens.

    Raises:
        FileError: the file cannot be written.
    """
    numbers = array("f", losses)
    if sys.byteorder == "big":
        numbers.byteswap()
    write_bytes(run.token_losses_file, numbers.tobytes(), guard=guard)
