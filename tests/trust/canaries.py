"""Values that stand for secrets, and where they have come to."""

import secrets
from collections.abc import Iterable
from pathlib import Path


def _canary() -> str:
    """A value that nobody has by chance, nor the copy of this code that is kept with a study."""
    return f"canary-{secrets.token_hex(8)}"


PASSED = {"HF_TOKEN": _canary()}
"""Named by ``env_pass``."""
OWN = {"WANDB_API_KEY": _canary(), "AWS_SECRET_ACCESS_KEY": _canary(), "PIN": _canary()}
"""In the submitter's shell, for nobody else; one of them has a name that says nothing."""
SHELL = {**PASSED, **OWN}


def told_in(texts: Iterable[str], values: Iterable[str] = tuple(SHELL.values())) -> list[str]:
    """The values that stand in one of the texts."""
    whole = "\n".join(texts)
    return [value for value in values if value in whole]


def files_with(folder: Path, values: Iterable[str] = tuple(SHELL.values())) -> list[Path]:
    """The files below ``folder``, logs and pickles among them, that hold one of the values.

    Bytecode is left out: an interpreter that starts meanwhile writes and renames it.
    """
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    looked = [path for path in files if path.parent.name != "__pycache__"]
    assert looked, f"nothing to look at in {folder}"
    return [path for path in looked if any(value.encode() in path.read_bytes() for value in values)]


def environment_of(pid: int) -> dict[str, str]:
    """The environment with which a live process was started."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
