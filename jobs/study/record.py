"""What launches have kept of their manifests in ``study.json``: the plan, the policy, the search and the backends.

:mod:`jobs.plan.record` writes it. No command needs it: what is damaged counts as not kept.
"""

import functools
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, final

from jobs.manifests.filters import Origin
from jobs.manifests.policy import Notify, Policy
from jobs.manifests.reader import Problems, check_tables
from seqlm.config import RunConfig
from seqlm.errors import UsageError, printable
from seqlm.records.base import Record
from seqlm.records.runs import Provenance
from seqlm.records.studies import Entry, StudyFile
from seqlm.requests import Requests
from seqlm.rundir import FINGERPRINT_DIGITS, slugify, study_record_file
from seqlm.schema import TableT
from seqlm.search import Search
from seqlm.trust import distrusted, table_digest

COMMANDING = {
    "notify": "[notify] of study.json",
    "backend": "[backend.*] of study.json",
    "behaviour": "behaviour of study.json",
    "launched": "the manifest in study.json",
}
"""Tables of ``study.json`` that say what is run, in words. They are used only as this user has launched them."""
UNPLANNED: tuple[Origin, ...] = ("text", "model", "orphaned")
"""Origins of runs that no manifest of the study asks for any more."""
NOTES: Mapping[Origin | None, str] = {
    "text": "of another text or tokenizer",
    "model": "of another version of its model",
    "manifest": "of another manifest",
    "orphaned": "of no entry of the manifest",
}


def commanding(file: StudyFile, name: str) -> Any:
    """Return a table of ``COMMANDING`` as plain data, of which a launch records the digest."""
    table = getattr(file, name)
    if isinstance(table, Record):
        return table.to_plain()
    return list(table) if isinstance(table, tuple) else table


@final
class KeptManifests:
    """What a study's folder keeps of its manifests, read once. Empty if there is nothing."""

    def __init__(
        self,
        study_dir: Path,
        tell: Callable[[str], None] = lambda line: None,
        *,
        only: Collection[str] | None = None,
    ) -> None:
        """``tell`` is called with a warning for each damaged part of the file.

        ``only``: the parts that the caller needs. ``None``: all, of which the plan takes most time.
        """
        self._study_dir, self._tell = study_dir, tell
        path = study_record_file(study_dir)
        self.file = StudyFile.read_parts(path, lambda line: tell(f"warning: {line}"), only=only)

    def distrusted(self, name: str) -> str | None:
        """Return why a table of ``COMMANDING`` is not used; ``None``: this user has launched it, or it is empty."""
        table = commanding(self.file, name)
        what = f"{COMMANDING[name]} in {printable(str(self._study_dir))}"
        return distrusted({table_digest(name, table): what}) if table else None

    # -- for launches without the manifest -------------------------------------------------------------------------

    @property
    def policy(self) -> Policy | None:
        """The policy of the last launch from a manifest. ``None``: it was not kept."""
        return self._table(Policy, self.file.policy)

    @property
    def notify(self) -> Notify | None:
        """Who got messages. ``None``: nobody, or this user has not launched the table, and its command is not run."""
        if why := self.distrusted("notify"):
            self._tell(f"warning: no messages are sent: {why}; --trust sends them")
            return None
        return self._table(Notify, self.file.notify)

    @property
    def search(self) -> Search | None:
        """The search of the last launch from a manifest. ``None``: it was no search."""
        return self._table(Search, self.file.search)

    @property
    def backends(self) -> Mapping[str, Mapping[str, Any]]:
        """The ``[backend.*]`` tables of the last launch from a manifest, by backend; empty if none.

        Raises:
            UsageError: this user has not launched them. They have lines of shell, and variables for programs.
        """
        problems = Problems()
        found = check_tables(self.file.backend, str(study_record_file(self._study_dir)), problems)
        if self._warn(problems, "backend"):
            return {}
        if why := self.distrusted("backend"):
            raise UsageError(f"{why}; read it, then add --trust, or `run` the manifest")
        return found

    @property
    def manifest(self) -> Path:
        """Where the manifest of the last launch was: beside this process if that was not kept."""
        return Path(self.file.folder or "", self.file.manifest or "")

    @property
    def run_command(self) -> str:
        """The command, without the program's name, that launches the manifest of the last launch again."""
        return f"run {shlex.quote(printable(str(self.manifest)) if self.file.manifest else 'MANIFEST')}"

    def _table(self, kind: type[TableT], raw: Mapping[str, Any] | None) -> TableT | None:
        problems = Problems()
        found = problems.read(kind, raw, str(study_record_file(self._study_dir))) if raw else None
        self._warn(problems, kind.NAME)
        return found

    def _warn(self, problems: Problems, section: str) -> bool:
        if problems.lines:
            self._tell(f"warning: {problems.lines[0]}; [{section}] is as if it were not given")
        return bool(problems.lines)

    # -- runs ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def planned(self) -> list[Entry]:
        """The entries of all manifests, those of the latest launch last."""
        return sorted(self.file.planned, key=lambda entry: entry.manifest == self.file.manifest)

    @functools.cached_property
    def _by_digits(self) -> Mapping[str, Entry]:
        return {entry.fingerprint[:FINGERPRINT_DIGITS]: entry for entry in self.planned}

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Entry]:
        return {entry.name: entry for entry in self.planned}

    @property
    def behaviour(self) -> dict[str, str]:
        """Fingerprint -> name, of each run whose behaviour the manifest asks for."""
        names = {entry.fingerprint: entry.name for entry in self.planned}
        return {text: names.get(text, text) for text in self.file.behaviour}

    def estimate(self, fingerprint: str) -> tuple[float, int] | None:
        """Return the estimated seconds of a run, and for how many epochs. ``None``: nothing was estimated."""
        found = self.file.estimates.get(fingerprint)
        if found is None or found.epochs is None or found.seconds is None or found.seconds <= 0:
            return None
        return found.seconds, found.epochs

    def origin(self, run_id: str, config: RunConfig | None, provenance: Provenance) -> Origin | None:
        """Return how a run belongs to the plan. ``None``: unknown."""
        entry = self._by_digits.get(run_id.rpartition("-")[2])
        if entry is not None:
            latest = self.file.manifest
            has_own = self.planned[-1].manifest == latest  # else it plans what others do
            return "manifest" if has_own and entry.manifest != latest else "planned"
        if config is None or not self.planned:
            return None
        named = self._by_name.get(str(provenance.entry or provenance.name))
        if named is None or not named.config:
            return "orphaned"
        plan = named.config
        differs = {key for key, value in config.by_key().items() if plan.get(key, value) != value} - {"train.epochs"}
        if plan.get("data.sha256") is None:  # the launch did not find the text of this entry
            differs -= {"data.sha256"}
        if differs & {"data.sha256", "data.tokenizer_sha256"}:
            return "text"
        if "model.sha256" in differs:
            return "model"
        return "orphaned" if differs and "--set" not in provenance.command else "planned"

    def absent(self, run_ids: Iterable[str]) -> dict[str, Entry]:
        """Return the entries without a folder, by digits. One of which only variants (``--set``) ran is not absent.

        Raises:
            FileError: a request of the study cannot be read.
        """
        known = {part for run_id in run_ids for part in run_id.rpartition("-")[::2]}
        launched = {run_id.rpartition("-")[2] for run_id in Requests(self._study_dir).by_run()}
        return {
            digits: entry
            for digits, entry in self._by_digits.items()
            if digits not in known and (digits in launched or slugify(entry.name) not in known)
        }
