"""Send a message when a study is over, or when a run of it fails or gets no further: ``[notify]`` of the manifest.

What has happened is read from the files of the study. Launchers and jobs send it, and no command that only reads.
The folder of an event, ``<study>/launches/<request>/notify/<event>/``, has the leases of its senders, of which one
sends at a time, and ``sent.json`` once there was an answer. Another sender follows one that died before that.
"""

import importlib.util
import logging
import os
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import final

from jobs import terminal
from jobs.manifests import secrets
from jobs.manifests.policy import Notify
from jobs.study.folder import observe_study, study_name
from seqlm.ends import End
from seqlm.errors import RunBusyError, SeqlmError, UsageError
from seqlm.files import json_text, write_once
from seqlm.lease import claim, kept
from seqlm.reading import exists, listed, timestamp
from seqlm.requests import Requests
from seqlm.rundir import RunDirectory

SEND_SECONDS = 20.0
"""Timeout of the command."""
MOST_SENT = 10
"""Most messages of one kind about the runs of a request; the message at the end names all of them."""


def variables(notify: Notify | None) -> tuple[str, ...]:
    """Return the names of the variables that a sender needs.

    Raises:
        UsageError: one is not set, or apprise is not installed.
    """
    if notify is None or notify.url_env is None:
        return ()
    secrets.passed([notify.url_env], os.environ, "notify.url_env")
    if importlib.util.find_spec("apprise") is None:
        raise UsageError('notify.url_env: the package apprise is not installed; use: pip install "apprise>=1.9,<3"')
    return (notify.url_env,)


@final
class Failures:
    """Sends in the background which runs of a request fail, and which get no further."""

    def __init__(self, study_dir: Path, notify: Notify | None, request: int | None) -> None:
        """``None``: nothing is sent."""
        self._study_dir, self._notify, self._request = study_dir, notify, request
        self._threads: dict[str, threading.Thread] = {}

    def add(self, run: RunDirectory, failures: Sequence[End], reason: str | None, *, is_final: bool) -> None:
        """Add the last of the failures of a run, with its reason. ``is_final``: the run is not tried again."""
        is_stalled = len(failures) > 1 and failures[-1].progress == failures[-2].progress
        event = "failed" if is_final else "stalled" if is_stalled else ""
        if self._notify is None or self._request is None or event not in self._notify.on:
            return
        folder, name = _folder(self._study_dir, self._request), f"{event}-{run.id}"
        if name not in self._threads and len(listed(folder, f"{event}-*")) < MOST_SENT:
            again = "" if is_final else "no progress in two attempts, tried again: "
            given = (self._study_dir, self._notify, self._request, name, f"{run.id}: {again}{reason}")
            self._threads[name] = threading.Thread(target=_send, args=given, daemon=True)
            self._threads[name].start()

    def wait(self) -> None:
        """Wait until the messages are sent, but not longer than for a command that hangs."""
        for thread in self._threads.values():
            thread.join(2 * SEND_SECONDS)


def over(study_dir: Path, notify: Notify | None) -> bool:
    """Send that a study is over, with the states of its runs. Return False if a run of it is running or queued."""
    if notify is None or "over" not in notify.on:
        return True
    try:
        newest = max((request.number for request in Requests(study_dir).by_run().values()), default=None)
        seen = [(one.name, one.observation) for one in observe_study(study_dir)]
    except SeqlmError as error:
        terminal.tell(f"warning: no message that the study is over: {error}")
        return True
    counts = Counter(one.state for _, one in seen)
    if counts["running"] or counts["queued"]:
        return False
    if newest is not None:
        lines = [", ".join(f"{number} {state}" for state, number in counts.items() if number)]
        lines += [f"{name}: {one.state}: {one.reason}" for name, one in seen if one.reason]
        _send(study_dir, notify, newest, "over", "\n".join(lines))
    return True


def _folder(study_dir: Path, request: int) -> Path:
    return study_dir / "launches" / f"{request:06d}" / "notify"


def _send(study_dir: Path, notify: Notify, request: int, event: str, text: str) -> None:
    """Send a message, unless it was sent. One that cannot be sent costs a line, and is not tried again."""
    folder = _folder(study_dir, request) / event
    try:
        with kept(claim(folder, busy="sent by another process")):
            if exists(folder / "sent.json"):
                return
            text = f"{study_name(study_dir)}: {event.partition('-')[0]}: {text}\n(message {request}/{event})\n"
            problem = _deliver(notify, text, study_dir)
            write_once(folder / "sent.json", json_text({"at": timestamp(), "problem": problem}).encode())
    except RunBusyError:
        return
    except SeqlmError as error:
        problem = str(error)
    if problem is not None:
        terminal.tell(f"warning: message {request}/{event} was not sent: {problem}")


def _deliver(notify: Notify, text: str, study_dir: Path) -> str | None:
    """Return why a message did not arrive, without the URL, which may be a secret. ``None``: it did."""
    if notify.url_env is None:
        try:
            subprocess.run(
                shlex.split(notify.command or ""),
                input=text,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=study_dir,
                timeout=SEND_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        return None
    try:
        import apprise

        logging.getLogger("apprise").disabled = True  # it names URLs
        service = apprise.Apprise()
        is_sent = service.add(os.environ[notify.url_env]) and service.notify(title="seqlm", body=text)
    except Exception as error:  # whatever a service raises, the runs go on
        return type(error).__name__
    return None if is_sent else "the service did not take it"
