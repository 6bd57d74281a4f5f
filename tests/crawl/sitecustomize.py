"""Loaded by every Python process while its folder is on PYTHONPATH: lets workers crawl (:mod:`tests.crawl`).

``SEQLM_TEST_CHAOS``: the process belongs to a study that is disturbed (``tests/chaos/shim``).

``SEQLM_TEST_BLANK_FIGURES``: reports leave the files of their figures blank, as with the fixture ``blank_figures``.

``SEQLM_TEST_RENAME_SECONDS``: each rename of a file waits this long first, so code that relies on a quick rename
fails (conftest.py).
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 -- every process loads this: no pathlib


class _Changed(importlib.abc.MetaPathFinder):
    """Changes a module once it has been imported."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name = name
        self._change = change

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _crawl(module: Any) -> None:
    """Make steps slow from the moment that the run has ``metrics.jsonl`` with enough lines."""
    step = module.TrainingStep.__call__

    def crawl(self: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(_step_seconds())
        return step(self, *arguments, **options)

    module.TrainingStep.__call__ = crawl


def _step_seconds() -> float:
    """How much longer the next step takes."""
    epochs, seconds, ended = os.environ["SEQLM_TEST_CRAWL"].split(":", 2)
    if os.path.exists(ended):  # noqa: PTH110
        return 0.0
    try:
        with open(os.path.join(sys.argv[-1], "metrics.jsonl"), "rb") as file:  # noqa: PTH118, PTH123
            done = file.read().count(b"\n")
    except FileNotFoundError:
        done = 0
    return float(seconds) if done >= int(epochs) else 0.0


if "SEQLM_TEST_CRAWL" in os.environ:
    sys.meta_path.insert(0, _Changed("seqlm.training.step", _crawl))

if "SEQLM_TEST_CHAOS" in os.environ:
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), "chaos", "shim"))  # noqa: PTH118, PTH120
    import lies

    del sys.path[0]
    sys.meta_path.insert(0, _Changed("seqlm.training.step", lies.count_steps))

if "SEQLM_TEST_BLANK_FIGURES" in os.environ:
    svg = b'<svg width="1" height="1"></svg>'
    sys.meta_path[:0] = [
        _Changed("analysis.report", lambda module: setattr(module, "figure_bytes", lambda *_: svg)),
        _Changed("analysis.blocks.figure", lambda module: setattr(module.Chart, "__post_init__", lambda _: None)),
    ]

if "SEQLM_TEST_RENAME_SECONDS" in os.environ:
    _delay = float(os.environ["SEQLM_TEST_RENAME_SECONDS"])
    _sleep = time.sleep  # a test may put its own in its place

    def _late(rename: Callable[..., None]) -> Callable[..., None]:
        def late(*arguments: Any, **options: Any) -> None:
            _sleep(_delay)
            rename(*arguments, **options)

        return late

    os.rename, os.replace = _late(os.rename), _late(os.replace)

if __name__ == "sitecustomize":  # not as a module of tests: then the next one has run already
    places = [os.path.abspath(folder or ".") for folder in sys.path]  # noqa: PTH100
    behind = [place for place in places[places.index(HERE) :] if place != HERE] if HERE in places else []
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", behind) if behind else None
    if found is not None and found.loader is not None:
        found.loader.exec_module(importlib.util.module_from_spec(found))
