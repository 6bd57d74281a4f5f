"""What is claimed of the texts that the models write, against pieces of the validation text."""

import math

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind
from analysis.claims.facts import Facts
from analysis.claims.verdict import Verdict
from analysis.sections.samples import CLEAR, GOODNESS, sample_sentences, standing
from analysis.study.examined import examined_runs

HELD_OUT = "validation text"
SCALE = (
    "Means over samples ± one standard error, in brackets those of pieces of the validation text. Known: the training "
    "text has such a pair or triple of tokens."
)


def samples(facts: Facts) -> Answer:
    """Say of each model what its samples do well, what badly, and what is odd."""
    name, title = "samples", "What do the models write?"
    runs = [run for run in examined_runs(facts.study) if run.is_shown and run.samples]
    if not runs:
        return cannot(name, title, "no samples are recorded")
    claims = []
    for run in runs:
        measures = standing(run)
        for measure in GOODNESS:
            own, away = measures[measure], measures[measure]["away"]
            if math.isfinite(own["mean"]):
                known = Verdict.APART if abs(away) >= CLEAR else Verdict.NOT_APART
                claims.append(
                    Claim(
                        question=name,
                        kind=Kind.COMPARE,
                        measure=measure,
                        members=(run.reference, HELD_OUT),
                        values=(own["mean"], own["scale_mean"]),
                        verdict=Verdict.UNKNOWN if math.isnan(away) else known,
                    )
                )
    return Answer(name=name, title=title, points=[SCALE, *sample_sentences(runs)], claims=claims, evidence=("samples",))
