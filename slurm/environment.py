"""Select the environment variables that jobs inherit from the submitter's shell: an allow-list, and ``env_pass``.

sbatch copies its whole environment, with values, into SLURM's spool and into every process of the job. A login shell
holds secrets (tokens of services, passwords of proxies) that jobs do not need. So sbatch runs in a reduced environment.
Nothing of it is written on the command line or into the script, not even the names.
"""

import fnmatch
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.manifests import secrets
from jobs.study.squeue import ask
from seqlm.errors import BackendError, UsageError
from seqlm.files import file_sha256, write_text
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
"""Patterns of the names that jobs inherit. A name that looks like a secret is never inherited by pattern."""

TOKEN = "SLURM_JWT"
"""A secret that sbatch itself may need to submit. Scripts unset it: SLURM passes every ``SLURM_*`` to the job."""

_START = (
    "import hashlib, runpy, sys; del sys.argv[0]; digest = sys.argv.pop(1); "
    "found = hashlib.sha256(open(sys.argv[0], 'rb').read()).hexdigest(); "
    "found == digest or sys.exit('error: ' + sys.argv[0] + ' has changed since its launch; launch again'); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Program that checks and runs an archive: ``ARCHIVE DIGEST MODULE WORD ...``."""


def sbatch_environment(settings: SlurmSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which to call sbatch.

    It includes the variables of ``env`` whose names look like secrets, because these are written to no file of a job.

    Raises:
        UsageError: a variable named by ``env_pass`` is not set.
    """
    passed = secrets.passed(settings.env_pass, environ, "backend.slurm.env_pass")
    secret = {name: value for name, value in settings.env.items() if secrets.looks_secret(name)}
    return {**job_environment(environ, passed), **secret}


def plain_env(settings: SlurmSettings) -> dict[str, str]:
    """Return the variables of ``env`` that may be written to a file."""
    return {name: value for name, value in settings.env.items() if not secrets.looks_secret(name)}


def setup_lines(settings: SlurmSettings) -> list[str]:
    """Return the lines that stand before a program in a script."""
    return [*([] if TOKEN in settings.env_pass else [f"unset {TOKEN}"]), *settings.setup]


def batch_script(
    settings: SlurmSettings, options: Mapping[str, Any], *commands: str, setup: Sequence[str] | None = None
) -> str:
    """Return a script for sbatch, by submitit, with the placement of the settings.

    An option that is ``True`` takes no value. ``setup``: lines before the commands. ``None``: :func:`setup_lines`.

    Raises:
        BackendError: this is no machine of a cluster.
    """
    import submitit  # here, since it takes half a second

    keys = ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")
    placement = {key: value for key in keys if (value := getattr(settings, key)) is not None}
    given = {**settings.sbatch, **placement, **options}
    try:
        executor = submitit.SlurmExecutor(folder=Path(given.get("output", "log")).parent)
    except RuntimeError:
        raise BackendError("srun is not on PATH; run this on a login node of the cluster") from None
    executor.update_parameters(
        additional_parameters={key.replace("-", "_"): value for key, value in given.items()},
        setup=[*(setup_lines(settings) if setup is None else setup)],
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,  # submitit's own, which a site that enforces workload keys rejects
    )
    return str(executor._make_submission_file_text("\n".join(commands), "seqlm"))


def program_of(code: Path, module: str, settings: SlurmSettings) -> str:
    """Return the command that runs a module of ``code``, which is an archive or the folder of a working tree.

    An archive that is changed until the command runs is refused: the script, which SLURM keeps, has its digest.

    Raises:
        FileError: the archive cannot be read.
    """
    python, place = settings.python or shlex.quote(sys.executable), shlex.quote(str(code))
    if code.suffix == ".zip":
        return f"{python} -P -u -c {shlex.quote(_START)} {place} {file_sha256(code)} {module}"
    return f"env PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}} {python} -P -u -m {module}"


def submit_script(path: Path, script: str, settings: SlurmSettings, *words: str) -> str:
    """Write a script, submit it with further options (``words``), and return the id of its job.

    Raises:
        BackendError: sbatch rejected it.
        FileError: it cannot be written.
        UsageError: as :func:`sbatch_environment`.
    """
    write_text(path, script)
    answer = ask("sbatch", "--parsable", *words, str(path), environ=sbatch_environment(settings, os.environ))
    job = answer.strip().partition(";")[0]
    if not job.isdigit():
        raise BackendError(f'sbatch: expected a job id, got "{job}"')
    return job


def job_environment(environ: Mapping[str, str], passed: Collection[str] = ()) -> dict[str, str]:
    """Return the variables of ``environ`` that sbatch and jobs get. ``passed`` are additional names (``env_pass``)."""

    def is_passed(name: str) -> bool:
        is_secret = secrets.looks_secret(name) and name != TOKEN
        return not is_secret and any(fnmatch.fnmatchcase(name, pattern) for pattern in PASSED)

    return {name: value for name, value in environ.items() if name in passed or is_passed(name)}


def require_plain_path(path: Path) -> None:
    """Check that SLURM can use a folder.

    A directive of a script is one line. In names of log files SLURM expands ``%`` as a pattern and a backslash as an
    escape, even within quotes. All other characters, including quotes and ``$(...)``, are taken literally.

    Raises:
        UsageError: the path has a control character, ``%`` or a backslash, or another name for a job, which reads and
            writes paths as UTF-8.
    """
    if os.fsencode(path) != str(path).encode("utf-8", "surrogateescape"):
        raise UsageError(f"{path}: jobs of SLURM look for it in UTF-8, which this locale is not; set LC_ALL=C.UTF-8")
    if not str(path).isprintable() or set(str(path)) & set("%\\"):
        raise UsageError(
            f"{path}: SLURM accepts no folder with a control character, % or a backslash in its name; rename it, or "
            "use another --runs-dir"
        )
