"""What is claimed of the texts that the models write, against pieces of the validation text."""

import math
from collections.abc import Mapping, Sequence

from analysis.blocks.sentences import sentences
from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind, written
from analysis.claims.facts import Facts
from analysis.claims.models import labels_of
from analysis.claims.verdict import Verdict
from analysis.study.examined import ExaminedRun, examined_runs
from analysis.study.texts import (
    CLEAR,
    GOODNESS,
    MEASURES,
    Text,
    choose,
    least_likely_word,
    longest_known_stretch,
    standing,
    texts_of,
)

HELD_OUT = "validation text"
ORDERED = ("Best", "Worst")
"""Groups of samples that are in one order."""
SCALE = (
    "Known: in the training text. Quoted: the longest stretch of known triples, and the least likely word. In brackets "
    "after a quirk: pieces of the validation text."
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
                        name,
                        Kind.COMPARE,
                        measure,
                        (run.reference, HELD_OUT),
                        (own["mean"], own["scale_mean"]),
                        verdict=Verdict.UNKNOWN if math.isnan(away) else known,
                    )
                )
    ordered = [_order(name, group, chosen) for group, chosen in choose(texts_of(runs)).items() if group in ORDERED]
    return Answer(
        name=name,
        title=title,
        points=_verdicts(claims, dict(zip((run.reference for run in runs), labels_of(runs), strict=True))),
        details=[SCALE, *sample_sentences(runs)],
        claims=[*claims, *ordered],
        evidence=("samples",),
    )


def _verdicts(claims: Sequence[Claim], labels: Mapping[str, str]) -> list[str]:
    """Say by each measure of quality which models are clearly worse or better than the validation text."""
    points = []
    for measure in GOODNESS:
        own = [claim for claim in claims if claim.measure == measure]
        what = MEASURES[measure][0]
        marks = {Verdict.NOT_APART: " (no clear difference)", Verdict.UNKNOWN: " (no verdict)"}
        listed = [
            f"{labels[claim.members[0]]} {written(claim)[0]}{marks.get(claim.verdict or Verdict.UNKNOWN, '')}"
            for claim in own
        ]
        if own:
            points.append(f"{what.capitalize()}: {', '.join(listed)}; validation text {written(own[0])[1]}.")
    return [" ".join(points)] if points else ["No scale of validation text is recorded."]


def _order(question: str, group: str, chosen: Sequence[tuple[Text, str]]) -> Claim:
    """State which samples have the lowest or the highest loss."""
    texts = [text for text, _ in chosen]
    return Claim(
        question,
        Kind.FIRST,
        "sample_loss",
        [f"{text.run.reference}, sample {text.sample.index}" for text in texts],
        [text.loss for text in texts],
        given={"group": group},
    )


def sample_sentences(runs: Sequence[ExaminedRun]) -> list[str]:
    """Say of each model by fixed rules what its samples do well, what badly, and what is odd, with quotations."""
    facts = []
    for run in runs:
        if not run.samples:
            continue
        measures, texts = standing(run), texts_of([run])
        apart = {name: measures[name]["away"] * sign for name, sign in GOODNESS.items()}
        ranked = sorted((name for name in apart if not math.isnan(apart[name])), key=lambda name: -apart[name])
        style = [one for name, one in measures.items() if name not in GOODNESS and abs(one["away"]) >= CLEAR]
        facts.append(
            {
                "reference": run.reference,
                "has_panel": bool(run.behaviour.panel),
                "recorded": run.behaviour.panel is not None,
                "scale": bool(run.behaviour.held_out),
                "good": [measures[name] for name in ranked if apart[name] >= CLEAR],
                "level": [measures[name] for name in ranked if abs(apart[name]) < CLEAR],
                "bad": [measures[name] for name in reversed(ranked) if apart[name] <= -CLEAR],
                "odd": max(style, key=lambda one: abs(one["away"]), default=None),
                "stretch": longest_known_stretch(texts),
                "unlikely": least_likely_word(texts),
            }
        )
    return sentences("samples_of_runs", runs=facts)
