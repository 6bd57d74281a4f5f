"""What this user has launched, by its content: of what a study keeps, nothing else runs without being asked.

    $XDG_CONFIG_HOME/seqlm/launched/<study>.json     digests of what the user has launched in one study

A digest stands for a run's whole configuration, with the files of its model and its tokenizer (its fingerprint), or for
a table of ``study.json`` with commands. Where the bytes are does not matter: a study that was moved, copied or unpacked
runs what its user has launched before. What somebody else has added or changed has no recorded digest, also in files
that belong to the user. Nothing in a study makes it trusted, so nothing can be copied to that end. Standard library
alone.

Workers do not ask, since other nodes need no configuration folder. ``SEQLM_LAUNCHED`` names the configurations of their
launch, and they read no file twice.
"""

import hashlib
import json
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.environment import LAUNCHED
from seqlm.errors import FileError, UsageError, file_errors, printable
from seqlm.files import json_text, replacing
from seqlm.reading import LARGEST_TEXT, exists, is_folder, listed, open_regular, parse_json

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
"""Permissions that nobody else may have to the records."""


@dataclass(frozen=True)
class _Known:
    digests: Collection[str]
    problem: str = ""
    """Why records are not believed."""


def table_digest(name: str, table: Any) -> str:
    """Return the digest of a table of ``study.json``, as 64 hex digits, from its values in memory or in the file."""
    text = json.dumps(json.loads(json_text({name: table})), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def distrusted(things: Mapping[str, str]) -> str | None:
    """Return what this user has not launched, in words; ``None``: all of it is known. ``things``: digest -> words."""
    if not things:
        return None
    known = _known()
    unknown = list(dict.fromkeys(words for digest, words in things.items() if digest not in known.digests))
    if not unknown:
        return None
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return f"{unknown[0]}{more} was not launched by you{known.problem}"


def of_run(config: RunConfig, name: str, *, whole: bool = False) -> dict[str, str]:
    """Return what of a run has to be launched before it is run: its own model, or with ``whole`` any run."""
    if isinstance(config.model, CustomConfig):
        return {config.fingerprint(): f"{config.model.source} of {printable(name)}"}
    return {config.fingerprint(): printable(name)} if whole else {}


def record_launch(study_dir: Path, digests: Collection[str]) -> None:
    """Record that this user launches what has these digests. The caller owns the study.

    Raises:
        FileError: the record cannot be written, or others could change it.
    """
    folder, study = _folder(), str(study_dir.resolve())
    with file_errors("write", folder, within=True):
        for place in (*reversed(folder.parents), folder):
            if not is_folder(place):
                place.mkdir(mode=0o700, exist_ok=True)
    if problem := _problem(folder, folder.stat()):
        raise FileError(problem)
    path = folder / f"{hashlib.sha256(study.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    before = _read(path) if exists(path) else ()
    if set(digests) <= set(before):
        return
    with replacing(path) as temporary:
        temporary.write_text(json_text({"study": study, "digests": sorted({*before, *digests})}), "utf-8")
        temporary.chmod(0o600)


def require_launched(config: RunConfig) -> None:
    """Refuse a configuration that the launch of this worker was not about.

    Raises:
        UsageError: it is another one.
    """
    launched = LAUNCHED.read()
    if launched and config.fingerprint() not in launched.split(","):
        raise UsageError("the configuration in the folder of the run has changed since its launch; launch again")


def _folder() -> Path:
    """``XDG_CONFIG_HOME/seqlm/launched``, else ``~/.config/seqlm/launched``."""
    shared = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (shared if shared.is_absolute() else Path.home() / ".config") / "seqlm" / "launched"
    except RuntimeError:
        raise FileError("there is no home folder") from None


def _known() -> _Known:
    """Return all that this user has launched. Records that another user has made or may change are not believed."""
    digests: set[str] = set()
    problem = ""
    try:
        folder = _folder()
        if is_folder(folder) and not (problem := _problem(folder, folder.stat())):
            for path in listed(folder, "*.json"):
                try:
                    digests.update(_read(path))
                except FileError as error:
                    problem = problem or str(error)
    except (FileError, OSError) as error:
        problem = str(error)
    return _Known(digests, problem and f" ({problem})")


def _read(path: Path) -> list[str]:
    """Return the digests in a record.

    Raises:
        FileError: it cannot be read, or others may change it.
    """
    try:
        with open_regular(path, largest=LARGEST_TEXT) as file:
            if problem := _problem(path, os.fstat(file.fileno())):
                raise FileError(problem)
            found = parse_json(file.read().decode())
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    except ValueError as error:
        raise FileError(f"{path} is damaged ({error}); delete it, and launch again") from None
    digests = found.get("digests") if isinstance(found, dict) else None
    return [digest for digest in digests if isinstance(digest, str)] if isinstance(digests, list) else []


def _problem(path: Path, status: os.stat_result) -> str:
    """Return why a record or the folder of records may be somebody else's. Empty: it is this user's alone."""
    if status.st_uid != os.geteuid():
        return f"{path} belongs to another user"
    return f"others may write to {path}; use: chmod go-w {path}" if status.st_mode & OTHERS_MAY_WRITE else ""
