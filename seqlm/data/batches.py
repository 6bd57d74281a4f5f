"""Column batching: how one long text becomes batches that a recurrent network can read from start to end.

A split is one vector of N ids. Cut it into B contiguous columns of N // B ids each, and drop the tail. With the
alphabet as text and B = 4, each column is a stretch of the text, read downwards::

        column   0  1  2  3
                 a  g  m  s
                 b  h  n  t        N = 26, column length 26 // 4 = 6
           time  c  i  o  u        y and z are dropped
             |   d  j  p  v
             v   e  k  q  w
                 f  l  r  x

The model treats the columns as independent texts: it never learns that "g" follows "f". That is the price of working
on B tokens at once.

Then cut the columns into windows of T rows (``seq_len``). The target of each token is the next one of its column, so
the targets are the same rows one step further down. With T = 2::

        window 0   a g m s   targets   b h n t       windows = (column length - 1) // T = (6 - 1) // 2 = 2
                   b h n t             c i o u
        window 1   c i o u   targets   d j p v       the last row has no target and the row before it
                   d j p v             e k q w       fills no window: both are dropped as inputs

Window k + 1 starts where window k stopped, in every column. So the state that a recurrent network is left with after
window k is the right one to start window k + 1 with, and is carried over (without its gradient); only the gradient is
cut off at a window's edge, not the memory. That is why the windows are never shuffled.

With several ranks, each owns some of the *columns*, in all windows. Its carried state then stays on its own device and
always belongs to the text it goes on with, and the global batch is the same B columns whatever the number of ranks:
20 columns on 3 ranks are 7, 7 and 6. The ranks' losses must therefore be summed and divided by the number of predicted
tokens of all ranks; a mean of their means would weigh the third rank's columns more.

Inputs and targets are views into one tensor that is copied to the device once: a window costs no copy.

With ``eval.batch_size`` or ``eval.seq_len`` nothing of a text that is scored is dropped (:func:`whole_text`)::

        column   0  1  2  3  rest
                 a  g  m  s  y        The columns overlap by one token, the last window is shorter, and what is left,
                 b  h  n  t  z        fewer than B tokens, is a column of its own: every token but the first is a
                 .  .  .  .           target once, whatever B and T are. For N = 26 and B = 4: (26 - 1) // 4 = 6
                 g  m  s  y           targets in each column.

Letters: N tokens of the split, B columns of the global batch, T = ``seq_len``. Ids are int64, as embeddings want them.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.layout import number_of_windows, own_columns, shared


def columns(
    ids: memoryview, batch_size: int, rank: int = 0, world: int = 1, *, device: torch.device | str = "cpu"
) -> Int[Tensor, "column_length own_columns"]:
    """The columns that ``rank`` of ``world`` owns; column length = tokens // batch_size (0 if too few).

    ``ids`` are those of a whole split, as in ``Corpus.splits``. ``batch_size`` is that of the global batch, B.

    Raises:
        UsageError: there are more ranks than columns.
    """
    own = own_columns(batch_size, rank, world)
    length = len(ids) // batch_size
    if length == 0:
        return torch.empty(0, len(own), dtype=torch.int64, device=device)
    # Own columns lie next to each other in the text. The copy is what torch asks for: it has no read-only tensors.
    stretch = bytearray(ids[own.start * length : own.stop * length])
    flat = torch.frombuffer(stretch, dtype=torch.int32)
    return flat.view(len(own), length).t().to(device=device, dtype=torch.int64).contiguous()


def whole_text(
    ids: memoryview, batch_size: int, rank: int = 0, world: int = 1, *, device: torch.device | str = "cpu"
) -> list[Int[Tensor, "column_length own_columns"]]:
    """The columns that ``rank`` scores so that all ranks together score every token but the first, once.

    At most two tensors, of as many rows on every rank: the rank's share of ``batch_size`` columns, and a column of what
    is left, which the last rank has. A rank may have no column of a tensor.
    """
    text = torch.frombuffer(bytearray(ids), dtype=torch.int32).to(device=device, dtype=torch.int64)
    length = (len(text) - 1) // batch_size
    parts = []
    if length:
        own = shared(batch_size, rank, world)
        parts.append(text[: batch_size * length + 1].unfold(0, length + 1, length)[own.start : own.stop].t())
    rest = text[batch_size * length :].unsqueeze(1)
    if len(rest) > 1:
        parts.append(rest if rank == world - 1 else rest[:, :0])
    return [part.contiguous() for part in parts]


def scored_columns(
    config: RunConfig, ids: memoryview, rank: int = 0, world: int = 1, *, device: torch.device | str = "cpu"
) -> list[Int[Tensor, "column_length own_columns"]]:
    """The columns in which ``rank`` scores a split, the state zero at the start of each.

    Every token but the first is scored if the configuration has ``eval``. Without, as in the published study, only the
    windows that training with this batch and window would have. The ids may be the places of the tokens instead, which
    then tell where in the text each token of a column is.
    """
    if config.eval.batch_size:
        return whole_text(ids, config.eval.batch_size, rank, world, device=device)
    train = config.train
    rows = columns(ids, train.batch_size, rank, world, device=device)
    return [rows[: number_of_windows(len(rows), 1, train.seq_len) * train.seq_len + 1]]


def windows(
    columns: Int[Tensor, "column_length own_columns"], seq_len: int, *, last_shorter: bool = False
) -> Iterator[tuple[Int[Tensor, "time own_columns"], Int[Tensor, "time own_columns"]]]:
    """Inputs and targets (both ``seq_len`` rows) of each window, in order; views, never to be written to.

    Rows that fill no window are dropped. With ``last_shorter`` they are a shorter window.
    """
    rows = columns.shape[0] - 1
    end = rows if last_shorter else rows // seq_len * seq_len
    bounds = ((t, min(t + seq_len, end)) for t in range(0, end, seq_len))
    return ((columns[t:stop], columns[t + 1 : stop + 1]) for t, stop in bounds)
