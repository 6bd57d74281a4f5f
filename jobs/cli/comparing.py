"""``compare``: whether a setting is better than another, or whether it was the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.naming import find_trained
from jobs.manifests.filters import select
from jobs.study.folder import ObservedRun, observe_study
from jobs.study.record import KeptManifests
from jobs.terminal import Column, Result, show
from seqlm.comparisons import ERROR, MARGIN, compared, file_typed, file_verdict, read_comparisons, verdict_of
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.naming import listing


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """What a comparison of two settings shows by now."""

    study: str
    verdict: Mapping[str, Any]
    """As in its file."""

    def render(self) -> None:
        verdict = self.verdict
        terminal.say(verdict["text"])
        number = verdict["comparisons"]
        others = "the only comparison" if number == 1 else f"1 of {number} comparisons"
        terminal.say(f"{others} of {self.study}, which err together in at most {100 * verdict['error']:g} % of studies")
        if verdict["left_out"]:
            terminal.say(f"left out with their seeds, since they diverged: {listing(verdict['left_out'])}")
        pairs = zip(verdict["seeds"], verdict["differences"], strict=True)
        rows = [{"seed": seed, "difference": difference} for seed, difference in pairs]
        if rows:
            title = f"{verdict['a']} less {verdict['b']} (nats)"
            shown = (Column("seed", right=True), Column(title, "difference", lambda nats: f"{nats:+.4f}", right=True))
            show(shown, rows)


def compare(arguments: Arguments) -> CompareResult:
    """File a comparison of two settings, so that it counts, and return what the runs show that have ended."""
    study_dir = find_trained(arguments)
    margin = MARGIN if arguments.margin is None else arguments.margin
    error = ERROR if arguments.error is None else arguments.error
    runs = _that_count(observe_study(study_dir), study_dir)
    sides = [_side(runs, text, study_dir) for text in (arguments.side_a, arguments.side_b)]
    typed = compared(arguments.side_a, arguments.side_b, *sides, margin=margin, error=error)
    file_typed(study_dir, typed)
    verdict = verdict_of(study_dir, typed.record, len(read_comparisons(study_dir)))
    file_verdict(study_dir, typed.key, verdict)
    return CompareResult(study=study_dir.name, verdict=verdict.to_plain())


def _that_count(runs: Sequence[ObservedRun], study_dir: Path) -> list[ObservedRun]:
    """Return the runs whose seeds say something new: those by which a search chose its settings do not."""
    is_search = KeptManifests(study_dir).search is not None
    found = [one for one in runs if one.provenance.first_seed is not None or not is_search]
    if not found:
        raise UsageError(
            f"{study_dir.name}: expected final seeds, found none: the runs of a search have chosen the settings, and "
            "say nothing new of them; add search.final_seeds"
        )
    return found


def _side(runs: Sequence[ObservedRun], text: str, study_dir: Path) -> dict[str, RunConfig]:
    chosen, why = select(runs, [text], [], ObservedRun.facts, study_dir)
    if why is not None:
        raise UsageError(why.replace("--only ", ""))
    return {one.run.id: one.config for one in chosen if one.config is not None}
