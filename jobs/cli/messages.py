"""The command ``notify``: who gets messages about a study, and one message to see that they arrive."""

from dataclasses import dataclass
from pathlib import Path

from jobs import terminal
from jobs.cli.arguments import EXIT_RUN_FAILED, Arguments
from jobs.cli.naming import find_trained
from jobs.launch import notify
from jobs.manifests.load import load_manifest
from jobs.study.launched import trust_study
from jobs.study.record import KeptManifests
from jobs.terminal import Result
from seqlm.errors import UsageError
from seqlm.reading import is_file


@dataclass(frozen=True, kw_only=True)
class NotifyResult(Result):
    """Who gets messages about a study, and whether a message for a test was sent."""

    study: str
    command: str | None
    url_env: str | None
    on: tuple[str, ...]
    sent: bool | None
    """``None``: no message was asked for."""
    problem: str | None
    """Why it was not sent."""

    @property
    def exit_code(self) -> int:
        """1 if a message was asked for and not sent."""
        return EXIT_RUN_FAILED if self.sent is False else 0

    def render(self) -> None:
        to = f"command: {self.command}" if self.command else f"the service whose URL is in {self.url_env}"
        if self.sent is None:
            terminal.say(f"messages of {self.study} ({', '.join(self.on)}) go to {to}", "--test sends one")
        elif self.sent:
            terminal.say(f"a message was sent to {to}")
        else:
            terminal.tell(f"error: the message was not sent to {to}: {self.problem}")


def notify_of(arguments: Arguments) -> NotifyResult:
    """Say who gets messages about a study or a manifest. With ``--test``, send one.

    Raises:
        UsageError: nobody gets messages, the program does not exist, or a variable is not set.
    """
    path = Path(arguments.study)
    if is_file(path):
        manifest = load_manifest(path)
        study, to = manifest.study, manifest.notify
    else:
        study_dir = find_trained(arguments)
        if arguments.trust:
            trust_study(study_dir, terminal.tell)
        study, to = study_dir.name, KeptManifests(study_dir, terminal.tell).notify
    if to is None:
        raise UsageError(f"{arguments.study}: there is no [notify], so no messages are sent")
    notify.require(to)
    problem = notify.problem_of(to, f"{study}: this is a test of [notify]\n") if arguments.test else None
    sent = problem is None if arguments.test else None
    return NotifyResult(study=study, sent=sent, problem=problem, **vars(to))
