"""Which variables of the submitter's shell a job gets: an allow-list of names, and what ``env_pass`` adds.

sbatch hands on whatever stands in its own environment, values and all, into SLURM's spool and every process of the
job. A login shell holds secrets (tokens of services, passwords of proxies) that no job of ours needs. So sbatch gets an
environment of its own, and nothing is written on its command line or into its script: not even the names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Collection, Iterator, Mapping

from jobs.manifests import secrets
from seqlm.errors import UsageError
from slurm.settings import SlurmSettings

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
    # SLURM and seqlm
    *("SLURM_*", "SLURMD_*", "SBATCH_*", "SRUN_*", "SEQLM_*"),
)
"""Patterns of names that reach jobs. A name that looks like a secret does not, whatever pattern it fits."""

NEEDED_TO_SUBMIT = ("SLURM_JWT",)
"""Secrets without which sbatch may not be able to submit at all."""


def sbatch_environment(settings: SlurmSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which sbatch is to be called.

    Values of ``env`` whose names look like secrets are added to it: they stand in no file of a job. All of ``environ``
    is in it if a manifest or a site gives sbatch the option ``export``: then that option decides.

    Raises:
        UsageError: a variable that ``env_pass`` names is not set, or ``export`` keeps a secret of ``env`` from jobs.
    """
    passed = secrets.passed(settings.env_pass, environ, "backend.slurm")
    secret = {name: value for name, value in settings.env.items() if secrets.looks_secret(name)}
    if "export" not in settings.sbatch:
        return {**job_environment(environ, passed), **secret}
    export = str(settings.sbatch["export"])
    kept = [] if "ALL" in export.split(",") else [name for name in secret if name not in export.split(",")]
    if kept:
        raise UsageError(
            f'backend.slurm.sbatch.export: found "{export}", which keeps {", ".join(kept)} of env from jobs; '
            "add the name to export, or leave it out of env"
        )
    return {**environ, **secret}


def plain_env(settings: SlurmSettings) -> dict[str, str]:
    """The variables of ``env`` that may be written into a file."""
    return {name: value for name, value in settings.env.items() if not secrets.looks_secret(name)}


def first_lines(settings: SlurmSettings) -> list[str]:
    """What every script of ours begins with: a job forgets the secrets that only sbatch needs.

    SLURM hands every ``SLURM_*`` variable on, whatever ``--export`` says. A token that expires while the job waits
    would make its ``scontrol`` fail, too.
    """
    if "export" in settings.sbatch:
        return []
    return [f"unset {name}" for name in NEEDED_TO_SUBMIT if name not in settings.env_pass]


def job_environment(environ: Mapping[str, str], passed: Collection[str] = ()) -> dict[str, str]:
    """Of ``environ`` what sbatch, and with it a job, gets; ``passed`` are further names, as ``env_pass`` has them."""
    return {name: value for name, value in environ.items() if name in passed or _is_passed(name)}


def _is_passed(name: str) -> bool:
    if secrets.looks_secret(name):
        return name in NEEDED_TO_SUBMIT
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PASSED)


@contextlib.contextmanager
def only(environ: Mapping[str, str]) -> Iterator[None]:
    """Let this process, and what it starts, have ``environ`` and nothing else while the block runs.

    For what starts sbatch itself, as submitit does.
    """
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
