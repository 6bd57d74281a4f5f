"""What differs between two runs, and where their losses part. Reads files only, and needs no pandas.

What differs every day is left out: times, paths, process ids.
"""

import difflib
import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from seqlm.errors import FileError
from seqlm.files import read_json
from seqlm.reading import below, is_file, read_bytes
from seqlm.rounding import ROUNDING
from seqlm.rundir import RunDirectory
from seqlm.trace import read_trace

SYSTEM = ("system", "driver", "cuda")
"""Further versions in the record of a worker's environment."""
RESULT = ("best_epoch", "best_train_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "parameters")
"""Fields of ``result.json`` that are compared."""


class Difference(NamedTuple):
    """One thing in which two runs differ."""

    kind: str
    """``configuration``, ``data``, ``code``, ``commit``, ``versions``, ``device``, ``results`` or ``losses``;
    ``damaged``: a file cannot be read."""
    key: str
    a: Any
    """The value in the first run; of a file, the beginning of its SHA-256. ``None``: missing."""
    b: Any
    epoch: int | None = None
    """Of ``losses``: the first epoch in which they differ, from 0."""
    step: int | None = None
    """Its first such step, from 0. ``None``: only losses of epochs are known."""


def differences(a: RunDirectory, b: RunDirectory) -> list[Difference]:
    """Return everything in which two runs differ. If a file cannot be read, that alone is returned.

    A kind that only one of them has recorded, such as the device of a run that has begun, is not compared. Commits are
    compared if the code of a run is not kept.
    """
    try:
        left, right = _facts(a), _facts(b)
        if left["code"] and right["code"]:
            del left["commit"]
        values = [
            Difference(kind, key, own.get(key), right[kind].get(key))
            for kind, own in left.items()
            for key in ({**own, **right[kind]} if own and right[kind] else ())
        ]
        return [*(one for one in values if one.a != one.b), *itertools.islice(_parted(a, b), 1)]
    except FileError as error:
        return [Difference("damaged", "", str(error), None)]


def patch(a: RunDirectory, b: RunDirectory) -> str:
    """Return a unified diff of the kept code of two runs, with their own models. Raises ``FileError``."""
    left, right = _code(a), _code(b)
    lines: list[str] = []
    differ = {name for name in {**left, **right} if left.get(name) != right.get(name)} if left and right else ()
    for name in sorted(differ):
        before, after = (files.get(name, b"").decode(errors="replace").splitlines() for files in (left, right))
        lines += difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")
    return "\n".join(lines)


def _facts(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return what is compared of a run, by kind and key."""
    config, result, record, seen = run.read_config().by_key(), run.read_result(), run.read_provenance(), run.observe()
    workers = [worker for attempt in run.attempts() if (worker := read_json(run.worker_file(attempt)))]
    digest = config.pop("data.sha256") or (result or {}).get("corpus_sha256")  # the result has that of Penn Treebank

    environment = next(filter(None, map(run.read_environment, reversed(workers))), {})
    packages = {**environment.get("packages", {}), **{key: environment[key] for key in SYSTEM if key in environment}}

    def of_workers(*keys: str) -> dict[str, str]:
        found = {key: dict.fromkeys(str(one[key]) for one in workers if one.get(key) is not None) for key in keys}
        return {key: ", then ".join(values) for key, values in found.items() if values}

    return {
        "configuration": config,
        "data": {"sha256": digest} if digest else {},
        "code": {name: hashlib.sha256(content).hexdigest()[:12] for name, content in _code(run).items()},
        "commit": record.get("git", {}),
        "versions": {**record.get("versions", {}), **packages, **of_workers("python", "torch")},
        "device": of_workers("host", "gpus", *(key for key in ROUNDING if key != "torch")),
        "results": {
            **{"state": seen.state, "epochs_done": seen.epochs_done, "best_val_ppl": seen.best_val_ppl},
            **{key: (result or {}).get(key) for key in RESULT},
        },
    }


def _code(run: RunDirectory) -> dict[str, bytes]:
    """Return the files of the code of the newest attempt, and of the user's own model. Empty: no copy is kept."""
    worker = read_json(run.worker_file(run.last_attempt())) or {}
    path = worker.get("code") or run.read_provenance().get("code", {}).get("path") or ""
    copy = PurePath(str(path)).name
    files = _files(run.path.parent / "code" / copy) if copy else {}
    return files and {**files, **{f"model/{name}": content for name, content in _files(run.model_dir).items()}}


@functools.lru_cache(maxsize=4)
def _files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a folder that is never changed, by its path there."""
    found = [path for path in below(folder) if is_file(path) and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): read_bytes(path) for path in found if path.name != "code-origin.json"}


def _parted(a: RunDirectory, b: RunDirectory) -> Iterator[Difference]:
    """Yield where the losses of two runs differ, as texts, since NaN equals itself there: at steps, then at epochs."""
    if (one := read_trace(a)) and (other := read_trace(b)):
        for place, (left, right) in enumerate(zip(one.rows, other.rows, strict=False)):
            if not math.isnan(left[2] + right[2]) and str(left[0]) != str(right[0]):  # a row without a time is missing
                yield Difference("losses", "train_loss", left[0], right[0], *divmod(place, one.steps))
    for before, after in zip(a.read_metrics()[0], b.read_metrics()[0], strict=False):
        for key in ("train_loss", "val_loss"):
            if str(before.get(key)) != str(after.get(key)):
                yield Difference("losses", key, before.get(key), after.get(key), before["epoch"])
