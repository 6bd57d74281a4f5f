"""Which of a scheduler's commands are started: a folder in front of PATH whose commands take note and go on."""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import final

COMMANDS = ("sbatch", "squeue", "scontrol", "sinfo", "sacct", "sacctmgr", "scancel", "srun")


@final
class CallCounter:
    """Counts the calls made in ``env``, which is another with the counting commands in front of its PATH."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._log = folder / "calls"
        self._log.touch()
        commands = folder / "counted"
        commands.mkdir()
        for name in COMMANDS:
            real = shutil.which(name, path=env["PATH"])
            if real is not None:
                lines = ["#!/bin/sh", f"echo {name} >>{shlex.quote(str(self._log))}", f'exec {shlex.quote(real)} "$@"']
                (commands / name).write_text("\n".join([*lines, ""]), "utf-8")
                (commands / name).chmod(0o755)
        self.env: dict[str, str] = {**env, "PATH": f"{commands}{os.pathsep}{env['PATH']}"}

    def take(self) -> dict[str, int]:
        """Calls of each command since the last ``take``."""
        found = Counter(self._log.read_text("utf-8").split())
        self._log.write_text("", "utf-8")
        return dict(sorted(found.items()))
