"""Which thresholds of glibc a process sets so that it keeps the memory that it frees."""

import ctypes
import os
import platform
from types import SimpleNamespace

import pytest

from seqlm.machine import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

NEW, OLD, NONE = 2**62, 2**25, 0
"""The highest mmap threshold that ``mallopt`` takes: of glibc 2.35, of earlier ones, and of a library that takes none.
"""


class Mallopt:
    """glibc's ``mallopt``: 1 if it takes a value, 0 if not. A value that it takes stops the dynamic threshold."""

    def __init__(self, highest: int) -> None:
        self.highest = highest
        self.taken: dict[int, int] = {}

    def __call__(self, parameter: int, value: int) -> int:
        if parameter == M_MMAP_THRESHOLD and value > self.highest:
            return 0
        self.taken[parameter] = value
        return 1


@pytest.mark.parametrize("highest", [NEW, OLD, OLD - 1, NONE])
def test_the_dynamic_threshold_ends_only_if_a_high_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, highest: int
) -> None:
    mallopt = Mallopt(highest)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", ""))
    for name in os.environ:
        if name.startswith("MALLOC_"):
            monkeypatch.delenv(name)
    keep_freed_memory.__wrapped__()
    assert set(mallopt.taken) in (set(), {M_MMAP_THRESHOLD, M_TRIM_THRESHOLD})
    assert bool(mallopt.taken) == (highest >= OLD)
    if mallopt.taken:
        assert mallopt.taken[M_TRIM_THRESHOLD] >= mallopt.taken[M_MMAP_THRESHOLD] >= OLD
