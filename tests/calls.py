"""Counts the calls of the file system, for tests of what a loop may cost."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of this process that list a folder, open a file or look at one, by name, while the block runs."""
    calls = Counter[str]()

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("listdir", "open", "stat"):
            patch.setattr(os, name, counting(name))
        yield calls
