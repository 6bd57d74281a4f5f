"""Loaded by every Python process while its folder is on PYTHONPATH: lets workers crawl (:mod:`tests.crawl`), and
start sooner. With ``SEQLM_TEST_SPAWNER``, programs of seqlm become stand-ins for forks of a warm process
(:mod:`tests.warm`).

``SEQLM_TEST_BLANK_FIGURES``: reports leave the files of their figures blank, as with the fixture ``blank_figures``.

``SEQLM_TEST_RENAME_SECONDS``: each rename of a file waits this long first, so code that relies on a quick rename
fails (conftest.py).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
import types
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


def _draw_nothing(module: Any) -> None:
    module.figure_bytes = lambda *_: b'<svg width="1" height="1"></svg>'


def _lay_out_nothing(module: Any) -> None:
    module.Chart.__post_init__ = lambda _: None


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


class _Light(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives ``torch._dynamo`` only when something of it is wanted: importing it takes a third of a worker's start.

    An optimizer wants nothing of it but to be told that nobody compiles.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == "torch._dynamo" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _LightDynamo(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["is_loaded"] = True


class _LightDynamo(types.ModuleType):
    @staticmethod
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        return function

    @staticmethod
    def graph_break() -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if "is_loaded" not in self.__dict__ or (name.startswith("__") and name != "__path__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Light)]
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


COLD_VARIABLES = ("PYTHONHASHSEED", "PYTHONWARNINGS", "LD_PRELOAD", "SEQLM_TEST_COLD")
"""Programs with one of these begin as usual: they are read when an interpreter begins."""


def _become_a_stand_in() -> None:
    words = sys.orig_argv[1:]
    is_module = words[:1] == ["-m"] and words[1].startswith(("seqlm.", "analysis."))
    is_own = is_module or os.path.basename("".join(words[:1])) in ("launch.py", "seqlm")  # noqa: PTH119
    is_same = os.environ["SEQLM_TEST_SPAWNER"].endswith(f":{sys.prefix}")
    if is_own and is_same and not any(name in os.environ for name in COLD_VARIABLES):
        os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.join(HERE, "stand_in.py"), repr(words)])  # noqa: PTH118


if "SEQLM_TEST_SPAWNER" in os.environ and "torch" not in sys.modules:
    _become_a_stand_in()

if "torch" not in sys.modules and "SEQLM_TEST_COLD" not in os.environ:
    sys.meta_path.insert(0, _Light())

if "SEQLM_TEST_CRAWL" in os.environ:
    sys.meta_path.insert(0, _Changed("seqlm.training.step", _crawl))

if "SEQLM_TEST_BLANK_FIGURES" in os.environ:
    sys.meta_path.insert(0, _Changed("analysis.report", _draw_nothing))
    sys.meta_path.insert(0, _Changed("analysis.blocks.figure", _lay_out_nothing))

if "SEQLM_TEST_RENAME_SECONDS" in os.environ:
    _delay = float(os.environ["SEQLM_TEST_RENAME_SECONDS"])
    _rename, _replace, _sleep = os.rename, os.replace, time.sleep  # a test may put its own in the place of time.sleep

    def _late_rename(*arguments: Any, **options: Any) -> None:
        _sleep(_delay)
        _rename(*arguments, **options)

    def _late_replace(*arguments: Any, **options: Any) -> None:
        _sleep(_delay)
        _replace(*arguments, **options)

    os.rename, os.replace = _late_rename, _late_replace

if __name__ == "sitecustomize":  # not as a module of tests: then the next one has run already
    places = [os.path.abspath(folder or ".") for folder in sys.path]  # noqa: PTH100
    behind = [place for place in places[places.index(HERE) :] if place != HERE] if HERE in places else []
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", behind) if behind else None
    if found is not None and found.loader is not None:
        found.loader.exec_module(importlib.util.module_from_spec(found))
