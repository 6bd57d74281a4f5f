"""The files of a user's own model, and tokenizers: read next to the manifest, and kept in the folder of each run.

    <manifest's folder>/lstm.py                  what the user edits
    runs/<study>/<run id>/model/lstm.py          what the run trains, verified by its digest

A run keeps a copy, so an edit while jobs wait changes nothing, and a run explains itself years later. Nothing here
runs the files. Standard library alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seqlm.architectures import CustomConfig
from seqlm.errors import FileError, ModelError, UsageError
from seqlm.files import file_sha256, make_directory, replacing
from seqlm.reading import is_confined, read_bytes


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The content of a model's files."""

    contents: Mapping[str, bytes]
    """Path as in the configuration -> content."""

    @property
    def sha256(self) -> str:
        """The digest of the model: SHA-256 over one line ``<sha256> <path>`` for each file, sorted by path."""
        lines = (f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(self.contents.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def keep(self, folder: Path) -> None:
        """Write the files below ``folder``, or check that they are there.

        Raises:
            ModelError: a file that was kept before has changed.
            FileError: a file cannot be read or written.
        """
        for name, content in self.contents.items():
            path = folder / name
            try:
                if read_bytes(path) != content:
                    raise ModelError(f"{path} has changed since its run was launched; move {folder.parent} away")
            except FileNotFoundError:
                make_directory(path.parent)
                with replacing(path) as temporary:
                    temporary.write_bytes(content)


def read_model_files(config: CustomConfig, folder: Path) -> ModelFiles:
    """Read the files of a model below ``folder``: that of the manifest, or the one that a run keeps.

    Raises:
        ModelError: a file does not exist, or the files are not those of ``config.sha256``.
        FileError: a file cannot be read.
    """
    contents = {}
    for key, name in (("source", config.file), *(("files", name) for name in config.files)):
        path = folder / name
        try:
            # Next to a manifest, a user's own links are followed.
            contents[name] = read_bytes(path if is_confined(path) else path.resolve(strict=True))
        except FileNotFoundError:
            raise ModelError(f"model.{key}: {path} does not exist") from None
        except OSError as error:
            raise FileError.from_os_error("read", path, error) from None
    files = ModelFiles(contents=contents)
    if config.sha256 not in (None, files.sha256):
        names = ", ".join(contents)
        raise ModelError(
            f"model.sha256: {names} in {folder} changed: expected sha256 {config.sha256}, found {files.sha256}"
        )
    return files


def keep_tokenizer(source: Path, kept: Path, sha256: str) -> None:
    """Copy the tokenizer file ``source`` to ``kept``, unless it is there.

    Raises:
        UsageError: the file has another digest than ``sha256``.
        FileError: a file cannot be read or written.
    """
    if file_sha256(kept) == sha256:
        return
    content = read_bytes(source)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UsageError(f"data.tokenizer: {source} has changed since the launch began; launch again")
    with replacing(kept) as temporary:
        temporary.write_bytes(content)
