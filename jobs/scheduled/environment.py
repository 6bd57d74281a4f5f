"""Select the environment variables that jobs inherit from the submitter's shell: an allow-list, and ``env_pass``.

A scheduler copies the whole environment of a submission, with values, into its spool and into every process of the job.
A login shell holds secrets (tokens of services, passwords of proxies) that jobs do not need. So its commands run in a
reduced environment. Nothing of it is written on the command line or into the script, not even the names.
"""

import fnmatch
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from jobs.manifests import secrets
from jobs.scheduled.settings import ScheduledTable
from jobs.study.scheduler import Scheduler
from seqlm.files import file_sha256

PASSED = (
    # the user and the session
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "TMPDIR", "TMP", "TEMP"),
    *("HOSTNAME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "KRB5CCNAME"),
    # where sites put files
    *("SCRATCH", "SCRATCHDIR", "WORK", "WORKDIR", "PROJECT", "PROJECTS", "STORE", "DATADIR"),
    # libraries, compilers, environment modules (functions of bash among them)
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH", "MANPATH"),
    *("MODULE*", "LOADEDMODULES", "_LMFILES_*", "__MODULES_*", "LMOD_*", "__LMOD_*", "_ModuleTable*", "EBROOT*"),
    *("BASH_ENV", "BASH_FUNC_*", "SPACK_*"),
    # Python and its environments
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "_CE_*", "UV_CACHE_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    # what computes, and how ranks talk to each other
    *("CUDA_*", "NVIDIA_*", "ROCR_*", "HIP_*", "NCCL_*", "RCCL_*", "GLOO_*", "UCX_*", "FI_*", "OMPI_*", "PMIX_*"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "TORCH*", "PYTORCH_*", "TRITON_*", "MALLOC_*"),
    *("SINGULARITY_*", "APPTAINER_*", "ENROOT_*", "PYXIS_*"),
    "SEQLM_*",
)
"""Patterns of the names that jobs inherit, besides those of the scheduler itself
(:attr:`jobs.study.scheduler.Scheduler.PASSED`). A name that looks like a secret is never inherited by pattern."""

_START = (
    "import hashlib, runpy, sys; del sys.argv[0]; digest = sys.argv.pop(1); "
    "found = hashlib.sha256(open(sys.argv[0], 'rb').read()).hexdigest(); "
    "found == digest or sys.exit('error: ' + sys.argv[0] + ' has changed since its launch; launch again'); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Program that checks and runs an archive: ``ARCHIVE DIGEST MODULE WORD ...``."""


def submission_environment(
    settings: ScheduledTable, scheduler: Scheduler, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment in which to submit, which jobs inherit.

    It includes the variables of ``env`` whose names look like secrets, because these are written to no file of a job.

    Raises:
        UsageError: a variable named by ``env_pass`` is not set.
    """
    passed = secrets.passed(settings.env_pass, environ, f"backend.{scheduler.name}.env_pass")
    secret = {name: value for name, value in settings.env.items() if secrets.looks_secret(name)}
    return {**inherited(environ, scheduler, passed), **secret}


def plain_env(settings: ScheduledTable) -> dict[str, str]:
    """Return the variables of ``env`` that may be written to a file."""
    return {name: value for name, value in settings.env.items() if not secrets.looks_secret(name)}


def setup_lines(settings: ScheduledTable, scheduler: Scheduler) -> list[str]:
    """Return the lines that stand before a program in a script."""
    token = scheduler.TOKEN
    return [*([] if token is None or token in settings.env_pass else [f"unset {token}"]), *settings.setup]


def program_of(code: Path, module: str, settings: ScheduledTable) -> str:
    """Return the command that runs a module of ``code``, which is an archive or the folder of a working tree.

    An archive that is changed until the command runs is refused: the script, which the scheduler keeps, has its digest.

    Raises:
        FileError: the archive cannot be read.
    """
    python, place = settings.python or shlex.quote(sys.executable), shlex.quote(str(code))
    if code.suffix == ".zip":
        return f"{python} -P -u -c {shlex.quote(_START)} {place} {file_sha256(code)} {module}"
    return f"env PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}} {python} -P -u -m {module}"


def inherited(environ: Mapping[str, str], scheduler: Scheduler, passed: Collection[str] = ()) -> dict[str, str]:
    """Return the variables of ``environ`` that jobs inherit. ``passed`` are additional names (``env_pass``)."""

    def is_passed(name: str) -> bool:
        is_secret = secrets.looks_secret(name) and name != scheduler.TOKEN
        return not is_secret and any(fnmatch.fnmatchcase(name, one) for one in (*PASSED, *scheduler.PASSED))

    return {name: value for name, value in environ.items() if name in passed or is_passed(name)}
