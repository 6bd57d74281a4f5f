"""What differs between two runs, and where their losses part. Reads files only, and needs no pandas.

What differs every day is left out: times, paths, process ids.
"""

import difflib
import functools
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from seqlm.errors import FileError
from seqlm.reading import read_archive
from seqlm.records.runs import Result
from seqlm.rounding import ROUNDING
from seqlm.rundir import RunDirectory
from seqlm.trace import read_trace

NO_CODE = ("code-origin.json", "__main__.py")
"""Files of an archive of the code that are not part of the code."""
SYSTEM = ("system", "driver", "cuda")
"""Further versions in the record of a worker's environment."""
RESULT = ("best_epoch", "best_train_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "parameters")
"""Fields of ``result.json`` that are compared."""


class Difference(NamedTuple):
    """One thing in which two runs differ."""

    kind: str
    """``configuration``, ``data``, ``code``, ``versions``, ``device``, ``results`` or ``losses``; ``damaged``: a file
    cannot be read."""
    key: str
    a: Any
    """The value in the first run; of a file, the beginning of its SHA-256. ``None``: missing."""
    b: Any
    epoch: int | None = None
    """Of ``losses``: the epoch of the first step at which they differ, from 0."""
    step: int | None = None
    """This step of the epoch, from 0."""


def differences(a: RunDirectory, b: RunDirectory) -> list[Difference]:
    """Return everything in which two runs differ. If a file cannot be read, that alone is returned.

    A kind that only one of them has recorded, such as the device of a run that has begun, is not compared.
    """
    try:
        left, right, one, other = _facts(a), _facts(b), read_trace(a), read_trace(b)
    except FileError as error:
        return [Difference("damaged", "", str(error), None)]
    found = [
        Difference(kind, key, own.get(key), right[kind].get(key))
        for kind, own in left.items()
        for key in ({**own, **right[kind]} if own and right[kind] else ())
        if own.get(key) != right[kind].get(key)
    ]
    for place, rows in enumerate(zip(one.rows, other.rows, strict=False) if one and other else ()):
        before, after = (loss if math.isfinite(loss) else str(loss) for loss, _, _ in rows)  # NaN equals itself as text
        if before != after and not any(math.isnan(seconds) for _, _, seconds in rows):  # else a row is missing
            found.append(Difference("losses", "train_loss", before, after, *divmod(place, one.steps if one else 1)))
            break
    return found


def patch(a: RunDirectory, b: RunDirectory) -> str:
    """Return a unified diff of the kept code of two runs; empty if one of them has none. Raises ``FileError``."""
    left, right = _code(a), _code(b)
    lines: list[str] = []
    for name in sorted({**left, **right} if left and right else ()):
        before, after = (files.get(name, b"").decode(errors="replace").splitlines() for files in (left, right))
        lines += difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")
    return "\n".join(lines)


def _facts(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return what is compared of a run, by kind and key. Versions and device are those of its newest attempt."""
    config, result, seen = run.read_config().by_key(), run.read_result() or Result(), run.observe()
    worker = run.read_worker(run.last_attempt())
    digest = config.pop("data.sha256") or result.corpus_sha256  # the result has that of Penn Treebank
    environment = run.read_environment(worker)
    return {
        "configuration": config,
        "data": {"sha256": digest} if digest else {},
        "code": {name: hashlib.sha256(content).hexdigest()[:12] for name, content in _code(run).items()},
        "versions": {**_known(worker, ("python", "torch")), **environment.packages, **_known(environment, SYSTEM)},
        "device": _known(worker, ("host", "gpus", *(key for key in ROUNDING if key != "torch"))),
        "results": {**_known(seen, ("state", "epochs_done", "best_val_ppl")), **_known(result, RESULT)},
    }


def _known(record: object, keys: Iterable[str]) -> dict[str, Any]:
    """Return those of some fields of a record that are known."""
    values = {key: getattr(record, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def _code(run: RunDirectory) -> dict[str, bytes]:
    """Return the files of the code of the newest attempt. Empty: no copy is kept."""
    launched = run.read_provenance().code
    path = run.read_worker(run.last_attempt()).code or (launched and launched.path) or ""
    copy = PurePath(str(path)).name
    return _files(run.path.parent / "code" / f"{copy}.zip") if copy else {}


@functools.lru_cache(maxsize=4)
def _files(archive: Path) -> dict[str, bytes]:
    """Return the content of each file of an archive, which never changes, by its path there."""
    try:
        return {name: content for name, content in read_archive(archive).items() if name not in NO_CODE}
    except FileNotFoundError:
        return {}
