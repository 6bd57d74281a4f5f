"""Backend ``slurm``: a partition of a cluster."""

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from jobs.backends.base import Finding
from jobs.scheduled.backend import ScheduledBackend
from jobs.scheduled.script import NOT_STARTED
from jobs.scheduled.site import Site
from jobs.scheduled.submission import Asked
from seqlm.environment import SLURM_CONFIG
from seqlm.errors import UsageError
from seqlm.records.batch import ArrayPlan
from slurm import site_file
from slurm.doctor import examine
from slurm.scripts import batch_script
from slurm.settings import SlurmSettings, read_settings
from slurm.site import partition_facts


@final
class SlurmBackend(ScheduledBackend):
    """A partition of a cluster, or several."""

    name = "slurm"
    TABLE = SlurmSettings
    settings: SlurmSettings

    @classmethod
    def read(cls, table: Mapping[str, Any], *, where: str) -> SlurmSettings:
        return read_settings(table, where=where, environ=os.environ)

    @classmethod
    def doctor(
        cls, *, runs_dir: Path, is_asked: bool, wait_s: float, site: Path | None = None, record: Path | None = None
    ) -> list[Finding]:
        """Look for sbatch. The cluster itself is checked only on request, since that takes a job."""
        found = []
        if shutil.which("sbatch") is not None:
            found.append(Finding("ok", "SLURM", "sbatch found; `doctor --backend slurm` looks at the cluster"))
        if is_asked:
            if site is not None or record is not None:
                found += site_file.write(site_file.answers(), site, record)
            environ = {**os.environ, **({} if site is None else {SLURM_CONFIG.name: str(site)})}
            found += examine(read_settings({}, where="", environ=environ), runs_dir=runs_dir, wait_s=wait_s)
        return found

    def site(self) -> Site:
        return partition_facts(self.settings.partition)

    def ran_here(self, variables: Mapping[str, str]) -> bool:
        return variables.get("SLURM_JOB_PARTITION") in self._site.name.split(",")

    def require_path(self, path: Path) -> None:
        """Check that SLURM can use a folder.

        A directive of a script is one line. In names of log files SLURM expands ``%`` as a pattern and a backslash as
        an escape, even within quotes. All other characters, including quotes and ``$(...)``, are taken literally.

        Raises:
            UsageError: the path has a control character, ``%`` or a backslash, or another name for a job, which reads
                and writes paths as UTF-8.
        """
        if os.fsencode(path) != str(path).encode("utf-8", "surrogateescape"):
            raise UsageError(
                f"{path}: jobs of SLURM look for it in UTF-8, which this locale is not; set LC_ALL=C.UTF-8"
            )
        if not str(path).isprintable() or set(str(path)) & set("%\\"):
            raise UsageError(
                f"{path}: SLURM accepts no folder with a control character, % or a backslash in its name; rename it, "
                "or use another --runs-dir"
            )

    def launch_words(self, array: ArrayPlan) -> str:
        words = ["env", f"SLURM_EXIT_ERROR={NOT_STARTED}", "srun", f"--cpus-per-task={array.cpus}", "--wait=0"]
        return shlex.join([*words, "--kill-on-bad-exit=1", *self.settings.srun_args])

    def script(self, asked: Asked, body: str) -> str:
        """Return a script for sbatch."""
        return batch_script(self.settings, self._options(asked), body)

    def _options(self, asked: Asked) -> dict[str, Any]:
        """Return the options of sbatch, in the order in which the script has them. ``None``: left out."""
        settings, array = self.settings, asked.array
        common = {
            "job-name": asked.name,
            "time": asked.minutes,
            "output": str(asked.output).replace("{index}", "%a"),
            "chdir": asked.folder,
            "dependency": f"afterany:{':'.join(asked.after)}" if asked.after else None,
            "requeue": asked.can_return or None,
        }
        if array is None:
            return common
        at_once = "" if asked.at_once is None else f"%{asked.at_once}"
        lower = asked.lower_priority
        return {
            **common,
            "array": f"0-{array.jobs - 1}{at_once}",
            "nodes": array.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": array.cpus,
            **settings.gpu_options(array.gpus, array.accelerator_type),
            "mem": None if array.mem_gb is None else f"{round(array.mem_gb * 1024)}M",
            "signal": f"USR2@{asked.signal_before_s}",
            "nice": lower + settings.lower_priority if lower else None,  # else that of the settings, if any
        }
