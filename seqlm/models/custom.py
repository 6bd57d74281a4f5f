"""A user's own model: import its class from a file, build it, and give it the interface of every model.

docs/guides/own-model.md is the contract that the class has to meet. :mod:`seqlm.check_model` tests it.
"""

import contextlib
import functools
import importlib.util
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seqlm.architectures import CustomConfig
from seqlm.errors import ModelError, nearest
from seqlm.model_files import read_model_files
from seqlm.models.language_model import LanguageModel
from seqlm.models.state import State

STARTS = frozenset({"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"})
"""Audit events of a process that starts another one (docs.python.org, "Audit events table")."""
MODULE_PREFIX = "seqlm_own_model_"
"""Of the name under which a file is imported, so that a file called ``random.py`` hides no module of Python's."""

_folders: list[Path] = []
"""The folder whose files this process has imported, if any."""
_is_importing = False


def build_custom(
    config: CustomConfig, vocab_size: int, product_dtype: torch.dtype | None, folder: Path
) -> LanguageModel:
    """Return the model of ``config`` with fresh initial values; its files are below ``folder``.

    Raises:
        ModelError: a file is missing, has changed or does not import; the class is missing, does not take the arguments
            or lacks a method; or the class does not take ``product_dtype`` where the run needs it.
    """
    found = load_class(config, folder)
    arguments = dict(config.arguments)
    if product_dtype is not None:
        if "product_dtype" not in inspect.signature(found).parameters:
            raise ModelError(
                f'train.precision: {config.source} takes no argument product_dtype; expected "fp32" or "tf32"'
            )
        arguments["product_dtype"] = product_dtype
    with _reported(config, f"model.arguments: {config.class_name} cannot be made with {_shown(arguments)}"):
        model = found(vocab_size, **arguments)
    for method in ("initial_state", "forward"):
        if not callable(getattr(model, method, None)) or getattr(type(model), method, None) is nn.Module.forward:
            raise ModelError(f"model.source: {config.class_name} has no method {method}; see docs/guides/own-model.md")
    if not any(True for _ in model.parameters()):
        raise ModelError(f"model.source: {config.class_name} has no parameters, so there is nothing to train")
    return model if isinstance(model, LanguageModel) else Adapter(model)


def load_class(config: CustomConfig, folder: Path) -> Callable[..., Any]:
    """Import the class of ``config`` from its file below ``folder``.

    Raises:
        ModelError: a file is missing or has changed, does not import, prints or starts a process while it is imported,
            or has no such class.
    """
    read_model_files(config, folder)
    path = (folder / config.file).resolve()
    module = _import(config, path)
    found = getattr(module, config.class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = "no class" if found is None else "not a subclass of torch.nn.Module:"
        hint = nearest(config.class_name, [name for name, one in vars(module).items() if isinstance(one, type)])
        raise ModelError(f"model.source: {config.file} has {what} {config.class_name}{hint}")
    return found


def _import(config: CustomConfig, path: Path) -> Any:
    name = f"{MODULE_PREFIX}{path.stem}"
    _forget_others(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "its suffix is .py"
    assert spec.loader is not None, "it is a file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    printed, problem = io.StringIO(), f"model.source: {config.file} does not import"
    with _reported(config, problem), _watched(), contextlib.redirect_stdout(printed):
        spec.loader.exec_module(module)
    if text := printed.getvalue().strip():
        first = text.splitlines()[0][:60]
        raise ModelError(f'model.source: {config.file} prints "{first}" when it is imported; remove the print')
    return module


def _forget_others(folder: Path) -> None:
    """Let imports find the files of ``folder``, and none of the model that was imported before."""
    for other in _folders:
        sys.path[:] = [place for place in sys.path if place != str(other)]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and file.startswith(f"{other}{os.sep}"):
                del sys.modules[name]
    _folders[:] = [folder]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Refuse to start processes while the block runs, and leave no compiled files next to the sources."""
    global _is_importing
    _add_hook()
    _is_importing, before = True, sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        _is_importing, sys.dont_write_bytecode = False, before


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_refuse_processes)


def _refuse_processes(event: str, arguments: Any) -> None:
    if _is_importing and event in STARTS:
        raise RuntimeError("starts a process when it is imported; move that into a function")


@contextlib.contextmanager
def _reported(config: CustomConfig, problem: str) -> Iterator[None]:
    """Turn an error of the user's code in the block into one line, with the error as its cause."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{problem}: {described(error, config.file)}") from error


def described(error: BaseException, file: str) -> str:
    """An error in one line, with the last line of the user's code that it passed through."""
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    text = (words.strip().splitlines() or [""])[0][:200]
    name = Path(file).name
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == name]
    hint = "; model.files names the files that it imports" if isinstance(error, ModuleNotFoundError) else ""
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    place = f" ({name} line {line})" if line else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}{hint}"


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in arguments.items()) or "no arguments"


@final
class Adapter(LanguageModel):
    """A module of the user's that is no subclass of :class:`LanguageModel`, with the rest of the interface."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.batch_axis = getattr(module, "batch_axis", LanguageModel.batch_axis)
        self.label = getattr(module, "label", None)

    @property
    def hidden_states(self) -> Any:
        return getattr(self.module, "hidden_states", None)

    def initial_state(self, batch_size: int) -> State:
        return self.module.initial_state(batch_size)  # type: ignore[operator]

    def forward(self, tokens: Int[Tensor, "T B"], state: State) -> Any:
        return self.module(tokens, state)

    def flops_per_token(self, seq_len: int) -> int | None:
        own = getattr(self.module, "flops_per_token", None)
        return own(seq_len) if callable(own) else own
