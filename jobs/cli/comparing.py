"""``compare``: whether a setting is better than another, or whether it was the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.naming import find_trained
from jobs.manifests.decide import chosen
from jobs.manifests.filters import asks_for_results
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
        number, share = verdict["comparisons"], f"{100 * verdict['error']:g} %"
        if number == 1:
            terminal.say(f"the only comparison of {self.study}: it errs in at most {share} of studies")
        else:
            terminal.say(f"1 of {number} comparisons of {self.study}, of which any errs in at most {share} of studies")
        if verdict["left_out"]:
            terminal.say(f"left out with their seeds, since they diverged: {listing(verdict['left_out'])}")
        if verdict["waits_for"] and verdict["outcome"] == "undecided":
            terminal.say(f"the next seed counts once these have ended: {listing(verdict['waits_for'])}")
        pairs = zip(verdict["seeds"], verdict["differences"], strict=True)
        rows = [{"seed": seed, "difference": difference} for seed, difference in pairs]
        if rows:
            title = f"{verdict['a']} less {verdict['b']} (nats)"
            shown = (Column("seed", right=True), Column(title, "difference", lambda nats: f"{nats:+.4f}", right=True))
            show(shown, rows)


def compare(arguments: Arguments) -> CompareResult:
    """File a comparison of two settings, so that it counts, and return what the runs show that have ended."""
    study_dir = find_trained(arguments)
    texts, margin, error = (arguments.side_a, arguments.side_b), arguments.margin, arguments.error
    for text in texts:
        if asks_for_results([text]):
            raise UsageError(
                f'"{text}": expected conditions on settings, got one on results; seeds that choose a setting cannot '
                "say how good it is"
            )
    runs = _that_count(observe_study(study_dir), study_dir)
    a, b = (_configs(chosen(runs, text, ObservedRun.facts, study_dir)) for text in texts)
    margins = {"margin": MARGIN if margin is None else margin, "error": ERROR if error is None else error}
    typed = compared(texts, (a, b), _configs(runs), **margins)
    record = file_typed(study_dir, typed, margin=margin, error=error)
    verdict = verdict_of(study_dir, record, len(read_comparisons(study_dir)))
    file_verdict(study_dir, typed.key, verdict)
    return CompareResult(study=study_dir.name, verdict=verdict.to_plain())


def _that_count(runs: Sequence[ObservedRun], study_dir: Path) -> list[ObservedRun]:
    """Return the runs whose seeds say something new: those by which a search chose its settings do not."""
    is_search = KeptManifests(study_dir).search is not None
    found = [one for one in runs if one.provenance.first_seed is not None or not (is_search or one.run.read_rungs())]
    if not found:
        raise UsageError(
            f"{study_dir.name}: expected final seeds, found none: the runs of a search have chosen the settings, and "
            "say nothing new of them; add search.final_seeds"
        )
    return found


def _configs(runs: Sequence[ObservedRun]) -> dict[str, RunConfig]:
    return {one.run.id: one.config for one in runs if one.config is not None}
