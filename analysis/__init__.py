"""From the files of a study's runs to its tables, curves and report. Reads; never trains, never launches.

``open_study`` is where notebooks and scripts begin; docs/reference/python.md describes what it returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.api import Study, open_study
    from analysis.run import Run

__all__ = ["Run", "Study", "open_study"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the programs of this package start without pandas.

    Raises:
        AttributeError: ``name`` is not public.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from analysis import api

    return getattr(api, name)
