"""Look again at what cannot be reached for a moment, or is not there yet."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from seqlm.errors import BackendError, FileError, is_storage_failure
from seqlm.reading import listed

TRIES = 5
AGAIN_SECONDS = 1.0
"""Time to wait after the first try; it doubles after each further one."""
LATE_SECONDS, LATE_LOOK_SECONDS = 90.0, 3.0
"""What another node has written to a shared file system is seen by then; time between two looks at it."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def look_again(look: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``look`` returns. While a file or the scheduler cannot be reached, call it again, for about 15 s.

    On NFS a file that another host has just replaced answers ESTALE for a moment.

    Raises:
        BackendError, FileError, OSError: the error of the last call.
    """
    for number in range(TRIES - 1):
        try:
            return look(*args, **kwargs)
        except (BackendError, FileError, OSError) as error:
            if not (isinstance(error, BackendError) or is_storage_failure(error)):
                raise
            time.sleep(AGAIN_SECONDS * 2**number)
    return look(*args, **kwargs)


def wait_for_other_nodes(has_come: Callable[[], bool]) -> bool:
    """Wait until something is seen that another node has written, for :data:`LATE_SECONDS`; return whether it is."""
    deadline = time.monotonic() + LATE_SECONDS
    while not has_come():
        if time.monotonic() > deadline:
            return False
        time.sleep(LATE_LOOK_SECONDS)
    return True


def wait_for_request(folder: Path) -> None:
    """Wait until the folder of a request is listed among those of its study.

    On NFS, a node that has listed them shortly before the launch sees that list again for up to a minute.

    Raises:
        FileError: it is not listed after :data:`LATE_SECONDS`, or the list cannot be read.
    """
    if not wait_for_other_nodes(lambda: folder in look_again(listed, folder.parent)):
        raise FileError(f"{folder} is not listed in its folder on this node after {LATE_SECONDS:g} s")
