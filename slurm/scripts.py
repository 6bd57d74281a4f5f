"""The text of scripts for sbatch, by submitit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqlm.errors import BackendError
from slurm.settings import SlurmSettings


def batch_script(settings: SlurmSettings, options: Mapping[str, Any], body: str) -> str:
    """Return a script for sbatch, by submitit, with the placement of the settings.

    An option that is ``True`` takes no value, one that is ``None`` is left out.

    Raises:
        BackendError: this is no machine of a cluster.
    """
    import submitit  # here, since it takes half a second

    keys = ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")
    placement = {key: value for key in keys if (value := getattr(settings, key)) is not None}
    own = {key: value for key, value in options.items() if value is not None}
    given = {**settings.sbatch, **placement, **own}
    try:
        executor = submitit.SlurmExecutor(folder=Path(given.get("output", "log")).parent)
    except RuntimeError:
        raise BackendError("srun is not on PATH; run this on a login node of the cluster") from None
    executor.update_parameters(
        additional_parameters={key.replace("-", "_"): value for key, value in given.items()},
        setup=[],
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,  # submitit's own, which a site that enforces workload keys rejects
    )
    return str(executor._make_submission_file_text(body, "seqlm"))
