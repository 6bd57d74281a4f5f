"""A user's own model: import its class from a file, build it, and give it the interface of every model.

docs/guides/own-model.md is the contract that the class has to meet. :mod:`seqlm.check_model` tests it.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import io
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from seqlm.architectures import CustomConfig
from seqlm.errors import ModelError, nearest
from seqlm.model_files import ModelFiles, read_model_files
from seqlm.models.language_model import LanguageModel
from seqlm.models.state import State

STARTS = frozenset({"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"})
"""Audit events of a process that starts another one (docs.python.org, "Audit events table")."""
MODULE_PREFIX = "seqlm_own_model_"
"""Of the name under which a file is imported, so that a file called ``random.py`` hides no module of Python's."""

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
    names = list(inspect.signature(found).parameters)
    if names and names[0] != "vocab_size" and ("vocab_size" in names or names[0] in arguments):
        raise ModelError(f"model.source: {config.class_name} takes ({', '.join(names)}); vocab_size has to come first")
    if product_dtype is not None:
        if "product_dtype" not in names:
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
    module = _import(config, read_model_files(config, folder), folder)
    found = getattr(module, config.class_name, None)
    if not _is_model(found):
        what = "no class" if found is None else "not a subclass of torch.nn.Module:"
        own = [name for name, one in vars(module).items() if _is_model(one) and one.__module__ == module.__name__]
        there = f"; it has {', '.join(own)}" if own else "; it has no subclass of torch.nn.Module"
        hint = nearest(config.class_name, own) or (there if found is None else "")
        raise ModelError(f"model.source: {config.file} has {what} {config.class_name}{hint}")
    return found


def _is_model(thing: object) -> TypeGuard[type[nn.Module]]:
    return isinstance(thing, type) and issubclass(thing, nn.Module)


@final
class _Source(importlib.abc.SourceLoader):
    """Imports the files of a model from the bytes that were checked.

    No file is opened again, and no other file of their folder is found.
    """

    is_own_code = True
    """Distinguishes the frames of these files in a traceback (:mod:`seqlm.training.failure`)."""

    def __init__(self, config: CustomConfig, files: ModelFiles, folder: Path) -> None:
        """``folder`` is where the files are, for tracebacks and ``__file__``."""
        main = PurePosixPath(config.file)
        self._top = folder.resolve() / main.parent
        self._contents = {
            PurePosixPath(name).relative_to(main.parent): content
            for name, content in files.contents.items()
            if PurePosixPath(name).is_relative_to(main.parent)
        }
        self._main = PurePosixPath(main.name)
        self.name = f"{MODULE_PREFIX}{main.stem}"
        """Name of the module with the class."""
        self.imported: set[str] = set()
        """Names of all modules that were found here."""

    def load(self) -> Any:
        """Import the file with the class, and return its module."""
        spec = self.find_spec(self.name)
        assert spec is not None, "the file is among the contents"
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        self.exec_module(module)
        return module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        file, folder = self._file(fullname), PurePosixPath(*fullname.split("."))
        if file is None and not any(folder in name.parents for name in self._contents):
            return None
        self.imported.add(fullname)
        if file is None:  # a folder without __init__.py
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self._top / folder)]
            return spec
        place = self._top / file
        below = [str(place.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, place, loader=self, submodule_search_locations=below)

    def _file(self, fullname: str) -> PurePosixPath | None:
        """Return the file of a module, relative to that of the class."""
        if fullname == self.name:
            return self._main
        words = fullname.split(".")
        places = (PurePosixPath(*words, "__init__.py"), PurePosixPath(*words[:-1], f"{words[-1]}.py"))
        return next((place for place in places if place in self._contents), None)

    def get_filename(self, fullname: str) -> str:
        file = self._file(fullname)
        assert file is not None, "find_spec has found it"
        return str(self._top / file)

    def get_data(self, path: str | bytes) -> bytes:
        """Return the bytes of a file that was checked; compiled files are none."""
        try:
            return self._contents[PurePosixPath(Path(str(path)).relative_to(self._top))]
        except (KeyError, ValueError):
            raise OSError(f"{path!r} is no file of the model") from None


def _import(config: CustomConfig, files: ModelFiles, folder: Path) -> Any:
    _forget_others()
    source = _Source(config, files, folder)
    # Before what is installed, which may have the names of the user's files, and behind Python's own modules.
    finders: list[Any] = sys.meta_path
    finders.insert(finders.index(importlib.machinery.PathFinder), source)
    printed, problem = io.StringIO(), f"model.source: {config.file} does not import"
    with _reported(config, problem), _watched(), contextlib.redirect_stdout(printed):
        module = source.load()
    if text := printed.getvalue().strip():
        first = text.splitlines()[0][:60]
        raise ModelError(f'model.source: {config.file} prints "{first}" when it is imported; remove the print')
    return module


def _forget_others() -> None:
    """Let imports find no file of the model that was imported before."""
    finders: list[Any] = sys.meta_path
    for source in [finder for finder in finders if isinstance(finder, _Source)]:
        finders.remove(source)
        for name in source.imported:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Refuse to start processes while the block runs."""
    global _is_importing
    _add_hook()
    _is_importing = True
    try:
        yield
    finally:
        _is_importing = False


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
