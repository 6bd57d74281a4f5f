"""The contents of ``provenance.json``, written when a run is launched: code, launcher and command."""

import contextlib
import getpass
import socket
from typing import Any

from jobs.spec import RunSpec
from jobs.study.kept_code import Code
from seqlm.reading import timestamp


def launch_record(study: str, code: Code) -> dict[str, Any]:
    """Return the part of the record that all runs of a launch share: launcher and code."""
    user = None
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    return {
        "study": study,
        "launched_at": timestamp(),
        "host": socket.gethostname(),
        "user": user,
        "git": {"commit": code.commit, "dirty": code.dirty},
        "code": {"path": str(code.path), "live": code.live},
    }


def run_record(spec: RunSpec) -> dict[str, Any]:
    """Return the part of the record for one run."""
    return {
        "name": spec.name,
        "entry": spec.entry,
        "order": spec.order,
        "command": list(spec.command),
        "resources": spec.resources.to_dict(),
        "data": str(spec.data_path.absolute()) if spec.data_path else None,
    }
