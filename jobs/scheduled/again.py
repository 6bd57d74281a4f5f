"""Look again at what cannot be reached for a moment."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from seqlm.errors import BackendError, FileError, is_storage_failure

TRIES = 5
AGAIN_SECONDS = 1.0
"""Time to wait after the first try; it doubles after each further one."""

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
