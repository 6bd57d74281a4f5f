"""A launch whose driver runs on a remote Ray cluster as a Ray job, for a machine that is not a node of the cluster.

The driver is the same command line, run from the code and manifest that are sent with it. Both machines must see the
study's folder; then ``status``, ``logs`` and ``cancel`` work here as usual.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from jobs import terminal
from jobs.study.folder import launcher_of, launching
from jobs.study.kept_code import keep_code
from seqlm.errors import BackendError, UsageError
from seqlm.files import make_directory
from seqlm.reading import exists

START_SECONDS = 120.0
"""Time that the driver has to appear in the study's folder: its node fetches the code and imports Ray."""
POLL_SECONDS = 0.5


def is_remote(address: str | None) -> bool:
    """Return whether an address is that of a cluster's job server, not of a cluster to join."""
    return address is not None and address.startswith(("http://", "https://"))


@final
class RayJob:
    """A driver on the cluster whose job server is at ``address`` (``http://head:8265``).

    Raises:
        BackendError: no server answers there, or ``ray[default]`` is not installed here.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.id: str | None = None
        self._client = _client(address)

    def submit(
        self,
        words: Sequence[str],
        study_dir: Path,
        manifest: Path | None,
        *,
        code_dir: Path | None = None,
        untracked: Sequence[str] = (),
        model_files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Start ``launch.py WORDS`` there and wait until it has locked the study.

        ``manifest``, which ``words`` call by its file name, is sent along with the code that is kept with the study, or
        in ``code_dir``; ``untracked`` is that of :func:`jobs.study.kept_code.keep_code`. ``model_files`` are those of
        the user's own models, by their paths relative to the manifest.

        Raises:
            UsageError: a file of a model has the name of a file of the code.
            RunBusyError: another launcher is at work on this study.
            BackendError: it ended at once (its last line says why), or it does not see the study's folder.
        """
        with launching(study_dir):
            code = keep_code(code_dir or study_dir, untracked=untracked, tell=terminal.tell)
        with tempfile.TemporaryDirectory() as folder:
            sent = Path(folder) / "code"
            shutil.copytree(code.path, sent)
            if manifest is not None:
                shutil.copy(manifest, sent / manifest.name)
            for name, content in model_files.items():
                if exists(sent / name):
                    raise UsageError(f"{name}: cannot be sent, since the code has a file of this name; rename it")
                make_directory((sent / name).parent)
                (sent / name).write_bytes(content)
            entrypoint = shlex.join(["python", "launch.py", *words])
            self.id = self._client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(sent)})
        deadline = time.monotonic() + START_SECONDS
        while launcher_of(study_dir) is None:
            if self.is_over():
                if self._status() == "SUCCEEDED":  # it ended before its lock was seen
                    return
                raise BackendError(f"the launcher on the cluster ended at once: {self.last_line()}")
            if time.monotonic() > deadline:
                self.stop()
                raise BackendError(
                    f"the launcher on the cluster has not appeared in {study_dir} within {START_SECONDS:.0f} s; put "
                    "--runs-dir on a file system that the cluster shares with this machine"
                )
            time.sleep(POLL_SECONDS)

    def is_over(self) -> bool:
        """Return whether the driver has ended."""
        return self._status() in ("SUCCEEDED", "FAILED", "STOPPED")

    def has_failed(self) -> bool:
        """Return whether the driver itself has failed, as opposed to runs of the study."""
        return self._status() == "FAILED" and "error: " in self.last_line()

    def stop(self) -> None:
        """Ask the driver to stop its workers and end, as Ctrl-C does."""
        self._client.stop_job(self.id)

    def last_line(self) -> str:
        """Return the last line that the driver printed."""
        return str((self._client.get_job_logs(self.id).strip().splitlines() or ["no output"])[-1])

    def _status(self) -> str:
        return str(self._client.get_job_status(self.id).value)


def _client(address: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address)
    except (ImportError, AttributeError) as error:
        raise BackendError(f'submitting to {address} needs more of Ray: pip install "ray[default]" ({error})') from None
    except Exception as error:  # Ray raises ConnectionError, RuntimeError and its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"no Ray job server answers at {address}: {reason}") from None
