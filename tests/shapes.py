"""Check the shapes in the signatures of our functions while tests run.

A check takes longer than most of the operations that it checks. So a test checks a call of a function once for each
combination of modules, shapes and types that the function is called with.
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping

AVAILABLE = importlib.util.find_spec("beartype") is not None
"""A machine with a GPU may have less than `make test` installs."""

_PLAIN = frozenset({bool, float, int, str, type(None)})

_checked: set[tuple[object, ...]] = set()
"""The calls that the current test has checked: a function and what each of its arguments is."""


def install(modules: list[str]) -> None:
    """Check the functions of these modules and of those below them; call it before they are imported."""
    jaxtyping.install_import_hook(modules, "beartype.beartype")
    jaxtyping.jaxtyped = _once(jaxtyping.jaxtyped)


def forget() -> None:
    """Check every call again."""
    _checked.clear()


def _once(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator like ``jaxtyped`` whose functions check no two calls that are alike."""

    def decorator(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
        def decorate(function: Any) -> Any:
            if not inspect.isfunction(function):
                return jaxtyped(function, typechecker=typechecker)
            if not any("[Tensor" in str(annotation) for annotation in function.__annotations__.values()):
                return function  # mypy checks the rest
            checking = jaxtyped(function, typechecker=typechecker)

            @functools.wraps(function)
            def call(*arguments: Any, **options: Any) -> Any:
                key = (function, *map(_kind, arguments), *options, *map(_kind, options.values()))
                if key in _checked:
                    return function(*arguments, **options)
                result = checking(*arguments, **options)
                _checked.add(key)
                return result

            return call

        return decorate

    return decorator


def _kind(value: object) -> object:
    """Return what decides whether a value fits an annotation; hashable."""
    found = type(value)
    if found in _PLAIN:
        return found
    if found is tuple or found is list:
        return (found, *map(_kind, value))  # type: ignore[call-overload]
    torch = sys.modules["torch"]  # not imported by the process that hands the tests out
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, tuple | list):
        return (found, *map(_kind, value))
    return id(value) if isinstance(value, torch.nn.Module) else found
