"""seqlm: a language-model study from one manifest.

``open_study`` is where notebooks and scripts begin; docs/reference/python.md describes what it returns.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

__version__ = "0.3.0.dev0"
_PLACE = str(Path(__file__).parent.parent)
"""The folder of this package and of those next to it."""


def command() -> Any:
    """Run the installed command ``seqlm``; ``PYTHONPATH`` may have modules with the names of ours."""
    sys.path.insert(0, _PLACE)
    return importlib.import_module("launch").main()


def __dir__() -> list[str]:
    return sorted({*globals(), "open_study"})


def __getattr__(name: str) -> Any:
    """Import ``open_study`` when it is first used, so that workers and commands start without pandas.

    A user's folder may hold an ``analysis`` of its own, so the one next to this package is searched first.

    Raises:
        AttributeError: ``name`` is not public.
        ImportError: another module ``analysis`` has been imported before.
    """
    if name != "open_study":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    sys.path.insert(0, _PLACE)
    try:
        package = importlib.import_module("analysis")
    finally:
        sys.path.remove(_PLACE)
    if package.__file__ != str(Path(_PLACE, "analysis", "__init__.py")):
        raise ImportError(f"open_study is in seqlm's package analysis, but {package.__file__} has that name; rename it")
    return package.open_study
