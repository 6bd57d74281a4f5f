"""What is to be chosen on a card: the chunks of the output loss, and the width of bf16 rows.

Both were chosen on processors. Each case measures the alternatives in turns, with what is used today among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.device import seconds_of_call
from benchmarks.interleave import interleave
from seqlm.config import Precision
from seqlm.models.output_loss import CHUNK_TOKENS, fused_output_loss
from seqlm.models.products import product, use_precision

CHUNKS = (CHUNK_TOKENS, 1100, 4096, 8192)
"""Tokens of a chunk; the first are those of today."""
WINDOWS = {"cuda": ((700, 1500, 10_000), (4480, 1500, 10_000), (4480, 512, 10_000)), "cpu": ((64, 8, 50),)}
"""Tokens, width and words of the output layer: published batches of 20 and 128, and the Transformer's width."""
WIDTHS = (1500, 1504)
"""Columns: the published ones, whose bf16 rows of 3,000 bytes do not begin at multiples of 16, and the next that do."""
ROWS = {"cuda": ((20, 1500), (700, 1500), (700, 10_000)), "cpu": ((4, 8),)}
"""Rows and columns of a result: a time step, a window, and the output layer at a batch of 20."""
REPEATS = 5
ROUNDS = {"cuda": 30, "cpu": 2}


def choice_cases(precisions: Sequence[Precision], device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what measures each case, by name."""
    for tokens, width, words in WINDOWS[device.type]:
        for precision in precisions:
            name = f"output loss of {tokens:,} x {width:,} {precision}"
            yield name, functools.partial(_chunks, name, tokens, width, words, precision, device)
    if "bf16" in precisions or device.type == "cpu":
        for rows, columns in ROWS[device.type]:
            name = f"bf16 product of {rows:,} rows with {columns:,} columns"
            yield name, functools.partial(_widths, name, rows, columns, device)


def _chunks(
    name: str, tokens: int, width: int, words: int, precision: Precision, device: torch.device
) -> dict[str, Any]:
    """Time the output loss, forward and backward, in chunks of each size."""
    dtype = use_precision(precision, device)
    output = nn.Linear(width, words).to(device)
    hidden = torch.randn(tokens, 1, width, device=device, requires_grad=True)
    targets = torch.randint(words, (tokens, 1), device=device)

    def take(chunk_tokens: int) -> None:
        fused_output_loss(output, hidden, targets, dtype, chunk_tokens).backward()

    return _measured(name, "chunks", {f"{chunk:,} tokens": functools.partial(take, chunk) for chunk in CHUNKS}, device)


def _widths(name: str, rows: int, columns: int, device: torch.device) -> dict[str, Any]:
    """Time a bf16 product whose operands have rows of each width."""

    def build(width: int) -> Callable[[], Tensor]:
        a, b = torch.randn(rows, width, device=device), torch.randn(columns, width, device=device)
        return functools.partial(product, a.bfloat16(), b.bfloat16().t(), torch.float32)

    return _measured(name, "rows", {f"{width:,} columns": build(width) for width in WIDTHS}, device)


def _measured(
    name: str, choice: str, works: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, Any]:
    turns = {label: functools.partial(seconds_of_call, work, device, REPEATS) for label, work in works.items()}
    rounds = interleave(turns, seconds=0, least_rounds=ROUNDS[device.type], warmup_rounds=2)
    today, *others = works
    return {
        "name": name,
        "choice": choice,
        "today": today,
        "ms": {label: 1e3 * rounds.spread(label).median for label in works},
        "times_as_fast": {label: asdict(rounds.ratio(today, label)) for label in others},
    }
