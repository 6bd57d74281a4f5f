"""Which studies this user has launched: only their files are run without being asked. Standard library alone.

    <study>/launched.json                           random tokens, one for each user who launched it with a manifest
    $XDG_CONFIG_HOME/seqlm/launched/<token>         the twin in that user's own configuration: the study's path

A folder that somebody else made has no token with a twin here, whoever owns its files: what is unpacked from an archive
belongs to its new owner. A study that was moved keeps its token. A copy, while the original is there, is not trusted.
Workers do not ask: a launch has decided what they run.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Collection
from pathlib import Path

from seqlm.architectures import CustomConfig
from seqlm.errors import FileError, printable
from seqlm.files import read_json, write_json, write_text
from seqlm.reading import below, exists, is_file, is_link, read_bytes
from seqlm.rundir import RunDirectory

LAUNCHED = "launched.json"
"""File of a study with its tokens."""
_TOKEN = re.compile("[0-9a-f]{32}")


def _twins_folder() -> Path:
    """``XDG_CONFIG_HOME/seqlm/launched``, else ``~/.config/seqlm/launched``."""
    shared = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (shared if shared.is_absolute() else Path.home() / ".config") / "seqlm" / "launched"
    except RuntimeError:
        raise FileError("there is no home folder") from None


def distrusted(study_dir: Path) -> str | None:
    """Return why the files of a study are not run without being asked, or ``None`` if this user has launched it."""
    here, why = study_dir.resolve(), f"{study_dir} was not launched by this user"
    for token in _tokens(study_dir):
        original = _twin(token)
        if original is not None and (original == here or token not in _tokens(original)):
            return None
        why = why if original is None else f"{study_dir} is a copy of {original}"
    return why


def record_launch(study_dir: Path, models: Collection[str | None], tell: Callable[[str], None]) -> None:
    """Record that this user launches a study with a manifest, whose own models have the digests ``models``.

    A study of somebody else that keeps other models stays untrusted: the launch runs none of them. Problems are told
    in one line and stop no launch: the study is then not trusted later. The caller owns the study.
    """
    here, problem = study_dir.resolve(), distrusted(study_dir)
    known = next((token for token in _tokens(study_dir) if _twin(token) == here), None)
    if problem is None and known:
        return
    try:
        if problem is not None and (other := _other_model(study_dir, models)):
            raise FileError(f"{other} is not of this manifest")
        token, folder = secrets.token_hex(16), _twins_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(folder / token, str(here))
        write_json(study_dir / LAUNCHED, {"tokens": [*_tokens(study_dir), token]})
    except (FileError, OSError) as error:
        tell(f"warning: {study_dir} is not recorded as launched by you, so `report` runs no model of it: {error}")


def _tokens(study_dir: Path) -> list[str]:
    with contextlib.suppress(FileError, OSError):
        found = (read_json(study_dir / LAUNCHED) or {}).get("tokens", [])
        return [token for token in found if isinstance(token, str) and _TOKEN.fullmatch(token)]
    return []


def _twin(token: str) -> Path | None:
    """Return the path of the study of a token, or ``None`` if this user has no such token."""
    with contextlib.suppress(FileError, OSError, ValueError):
        return Path(read_bytes(_twins_folder() / token).decode())
    return None


def _other_model(study_dir: Path, models: Collection[str | None]) -> str | None:
    """Return a file of a user's own model that a study keeps and that is of none of these models."""
    for run in RunDirectory.unordered_in(study_dir):
        model, known = run.read_config().model, set[Path]()
        if isinstance(model, CustomConfig):
            if model.sha256 in models:
                known = {run.model_dir / name for name in (model.file, *model.files)}
            elif exists(run.model_source(model)):
                return printable(str(run.model_source(model)))
        for path in below(run.model_dir):
            if (is_file(path) or is_link(path)) and path not in known:
                return printable(str(path))
    return None
