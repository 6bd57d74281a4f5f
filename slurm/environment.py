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

from jobs import secrets
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

    All of ``environ`` where a manifest or a site gives sbatch the option ``export``: then that decides.

    Raises:
        UsageError: a variable that ``env_pass`` names is not set.
    """
    passed = secrets.passed(settings.env_pass, environ, "backend.slurm")
    return dict(environ) if "export" in settings.sbatch else job_environment(environ, passed)


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
