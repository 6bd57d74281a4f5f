"""Recognise variables that hold secrets by name, and pass them to workers without writing them to a file."""

import re
from collections.abc import Iterable, Mapping

from seqlm.errors import UsageError

_SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|BEARER|JWT|(^|_)(API_?KEY|KEY|KEYS|PASS|PWD|PAT|AUTH)(_|$)"
    r"|APIKEY|_URL_AUTH|^SEQLM_NOTIFY$",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{16,}")
"""What web services take for a password: a long word of letters and digits."""
_HARMLESS = ("PWD", "OLDPWD", "TOKENIZERS_PARALLELISM")


def looks_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret.

    >>> [name for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "NCCL_DEBUG") if looks_secret(name)]
    ['HF_TOKEN', 'AWS_SECRET_ACCESS_KEY', 'WANDB_API_KEY']
    """
    return name not in _HARMLESS and _SECRET.search(name) is not None


def advice(env: Mapping[str, str], where: str) -> list[str]:
    """Return a line for each variable of an ``env`` table that looks like a secret. ``where`` is the table's name."""
    return [
        f"{where}.{name} looks like a secret, and the manifest's tables are kept with the study; "
        f'write env_pass = ["{name}"] and set the variable in your shell'
        for name in env
        if looks_secret(name)
    ]


def advice_on_command(command: str | None) -> list[str]:
    """Return a line if the command of ``[notify]`` has a word that looks like a secret."""
    if command is None or _TOKEN.search(command) is None:
        return []
    return [
        "notify.command has a word that looks like a secret. The study keeps the command, and other users of the "
        'machine see it while it runs; write url_env = "SEQLM_NOTIFY" and set the variable in your shell'
    ]


def passed(names: Iterable[str], environ: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the variables that the key ``where`` names, with their values. Never write them to a file.

    Raises:
        UsageError: a variable is not set.
    """
    found = {}
    for name in names:
        if name not in environ:
            raise UsageError(f"{where}: {name} is not set in this shell; export it, or leave the name out")
        found[name] = environ[name]
    return found
