"""Send a message when a study is over, or when a run of it fails or gets no further: ``[notify]`` of the manifest.

What has happened is read from the files of the study. Launchers and jobs send it, and no command that only reads.
The folder of an event, ``<study>/launches/<request>/notify/<event>/``, has the leases of its senders, of which one
sends at a time, and ``sent.json`` once there was an answer. Another sender follows one that died before that.
"""

import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.manifests import secrets
from jobs.manifests.policy import Event, Notify, in_shell
from jobs.study.folder import observe_study, study_name
from seqlm.ends import End
from seqlm.errors import RunBusyError, SeqlmError, UsageError
from seqlm.files import json_text, write_once
from seqlm.lease import claim, kept
from seqlm.reading import exists, listed, timestamp
from seqlm.requests import Requests, numbered
from seqlm.rundir import RunDirectory

SEND_SECONDS = 20.0
"""Timeout of the command."""
LOOK_SECONDS = 5.0
"""Time between two looks whether a study is over."""
MOST_SENT = 10
"""Most messages of one kind about the runs of a request; the message at the end names all of them."""


def require(notify: Notify | None) -> tuple[str, ...]:
    """Check that messages can be sent from here. Return the names of the variables that a sender needs.

    Raises:
        UsageError: the program does not exist, a variable is not set, or apprise is not installed.
    """
    if notify is None:
        return ()
    if notify.command is not None:
        program = shlex.split(notify.command)[0]
        if shutil.which(Path.home() / program if "/" in program else program) is None:
            advice = f"if a shell knows it, write {in_shell(notify.command)}"
            raise UsageError(f'notify.command: there is no program "{program}"; {advice}')
    names = () if notify.url_env is None else (notify.url_env,)
    secrets.passed(names, os.environ, "notify.url_env")
    if names and importlib.util.find_spec("apprise") is None:
        raise UsageError('notify.url_env: the package apprise is not installed; use: pip install "apprise>=1.9,<3"')
    return names


@final
class Messages:
    """Sends messages about one request of a study. Without ``notify`` or a request it sends none."""

    def __init__(self, study_dir: Path, notify: Notify | None, request: int | None) -> None:
        self._study_dir, self._notify = study_dir, None if request is None else notify
        self._folder = numbered(study_dir, request or 0) / "notify"
        self._threads: list[threading.Thread] = []

    def failure(self, run: RunDirectory, failures: Sequence[End], reason: str | None, *, is_final: bool) -> None:
        """Send in the background that a run failed for good (``is_final``), or twice in a row without progress."""
        is_stalled = len(failures) > 1 and failures[-1].progress == failures[-2].progress
        event, again = ("failed", "") if is_final else ("stalled", "no progress in two attempts, tried again: ")
        if (is_final or is_stalled) and len(listed(self._folder, f"{event}-*")) < MOST_SENT:
            given = (event, f"{event}-{run.id}", f"{run.id}: {again}{reason}")
            self._threads.append(threading.Thread(target=self.send, args=given, daemon=True))
            self._threads[-1].start()

    def wait(self) -> None:
        """Wait until the messages are sent, but not longer than for a command that hangs."""
        for thread in self._threads:
            thread.join(2 * SEND_SECONDS)

    def send(self, event: Event, name: str, text: str) -> None:
        """Send a message, unless it was sent. One that cannot be sent costs a line, and is not tried again."""
        if self._notify is None or event not in self._notify.on:
            return
        answer = self._folder / name / "sent.json"
        try:
            with kept(claim(answer.parent, busy="sent by another process", tell=terminal.tell)):
                if exists(answer):
                    return
                number = f"{int(self._folder.parent.name)}/{name}"
                body = f"{study_name(self._study_dir)}: {event}: {text}\n(message {number})\n"
                problem = problem_of(self._notify, body)
                write_once(answer, json_text({"at": timestamp(), "problem": problem}).encode())
        except RunBusyError:
            return
        except SeqlmError as error:
            problem = str(error)
        if problem is not None:
            terminal.tell(f"warning: the message {name} was not sent: {problem}")


def over(study_dir: Path, notify: Notify | None, *, seconds: float = 0.0) -> None:
    """Send that a study is over, with the states of its runs, unless one is running or queued for ``seconds`` more."""
    if notify is None:
        return
    deadline = time.monotonic() + seconds
    try:
        runs = observe_study(study_dir)
        while any(one.observation.state in ("running", "queued") for one in runs):
            if time.monotonic() >= deadline:
                return
            time.sleep(LOOK_SECONDS)
            runs = observe_study(study_dir)
        newest = max((request.number for request in Requests(study_dir).by_run().values()), default=None)
    except SeqlmError as error:
        terminal.tell(f"warning: no message that the study is over: {error}")
        return
    seen = [(one.name, one.observation) for one in runs]
    states = ", ".join(f"{number} {state}" for state, number in Counter(one.state for _, one in seen).items())
    lines = [states, *(f"{name}: {one.state}: {one.reason}" for name, one in seen if one.reason)]
    Messages(study_dir, notify, newest).send("over", "over", "\n".join(lines))


def problem_of(notify: Notify, text: str) -> str | None:
    """Deliver a message. Return why it did not arrive, without the URL, which may be a secret. ``None``: it did."""
    # Not in the study's folder: programs read files of the folder in which they start, and others may write there.
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": Path.home()}
    try:
        if notify.command is not None:
            words = shlex.split(notify.command)
            subprocess.run(words, input=text, text=True, timeout=SEND_SECONDS, check=True, **quiet)
            return None
        import apprise

        logging.getLogger("apprise").disabled = True  # it names URLs
        service = apprise.Apprise()
        is_sent = service.add(os.environ[str(notify.url_env)]) and service.notify(title="seqlm", body=text)
        return None if is_sent else "the service did not take it"
    except Exception as error:  # whatever a service raises, the runs go on
        return str(error) if notify.url_env is None else type(error).__name__
