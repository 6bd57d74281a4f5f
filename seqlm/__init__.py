"""seqlm: a language-model study from one manifest.

``plan``, ``run`` and ``open_study`` are where notebooks and scripts begin; docs/reference/python.md describes them.
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


PUBLIC = {"open_study": "analysis", "plan": "jobs.cli.python", "run": "jobs.cli.python"}
"""Public name -> the module that has it."""


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that workers and commands start without pandas.

    A user's folder may hold an ``analysis`` or ``jobs`` of its own, so those next to this package are searched first.

    Raises:
        AttributeError: ``name`` is not public.
        ImportError: another module of the package's name has been imported before.
    """
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    top = PUBLIC[name].partition(".")[0]
    sys.path.insert(0, _PLACE)
    try:
        package = importlib.import_module(top)
        if package.__file__ == str(Path(_PLACE, top, "__init__.py")):
            return getattr(importlib.import_module(PUBLIC[name]), name)
    finally:
        sys.path.remove(_PLACE)
    raise ImportError(f"{name} is in seqlm's package {top}, but {package.__file__} has that name; rename it")
