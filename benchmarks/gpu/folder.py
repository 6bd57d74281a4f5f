"""The folder of the results: a JSON file for each part, which says whether the part is complete."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from seqlm.errors import UsageError
from seqlm.files import read_json, write_json

PARTS = {
    "tests": "the tests marked gpu",
    "synchronisations": "steps under a check for hidden synchronisations",
    "steps": "step time, kernels and memory at the published shapes, beside torch.nn; the card's peaks",
    "resume": "runs killed in mid-epoch and resumed, compared bit for bit",
    "sharing": "several small runs on one card, with and without MPS",
    "choices": "chunks of the output loss, and the width of bf16 rows",
    "ranks": "two ranks: gradients in buckets, in one buffer behind a CUDA graph, and one rank with the whole batch",
    "variants": "torch.compile of torch.nn's models",
    "study": "the published runs on the Penn Treebank, shortest first",
}
"""Part -> what it measures, in order of value."""


@final
@dataclass(frozen=True)
class Results:
    """What has been measured so far, below one folder."""

    folder: Path

    def file(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    def read(self, part: str) -> dict[str, Any]:
        """Return what is known of a part; empty before it has begun.

        Raises:
            FileError: the file cannot be read or is damaged.
        """
        return read_json(self.file(part)) or {}

    def write(self, part: str, document: Mapping[str, Any]) -> None:
        """Put the part's file in place in one step.

        Raises:
            FileError: the file cannot be written.
        """
        write_json(self.file(part), document)

    def is_complete(self, part: str) -> bool:
        return bool(self.read(part).get("complete"))

    def require_same_device(self, name: str) -> None:
        """Raise UsageError if the folder holds results of another device."""
        for part in PARTS:
            found = self.read(part).get("device", {}).get("name", name)
            if found != name:
                raise UsageError(f"--out: {self.folder} holds results of {found}, this is {name}; use another folder")


@final
class Budget:
    """The time that a call has."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def seconds_left(self) -> float:
        """Infinite without a limit, negative once it has passed."""
        return self._end - time.monotonic()
