"""The claims on the page, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.blocks.notes import note_blocks
from analysis.blocks.section import Block, Evidence, Folded, Points, Section, Subheading, paragraphs
from analysis.blocks.sentences import scope_sentences, text_sentences
from analysis.claims.answer import Answer
from analysis.claims.verdict import Verdict
from analysis.study.study import StudyFiles

POLICY = (
    "One number counts as less than another only where chance does not explain it: losses by a t test over seeds and "
    "tokens at 5 %, times beyond the scatter of epochs. Differences: first less second, of validation losses in nats, "
    "± one standard error."
)
OVER_SEEDS = "Settings that are compared over seeds have the verdict of their comparison."
ONE_SEED = "No setting has a second seed, so verdicts on losses are about this text: another seed may say otherwise."
NO_VERDICT = (
    "Most comparisons of losses have no verdict: each setting has one seed, and the losses of tokens are not recorded. "
    "A second seed of a few settings gives all of them one."
)


LOSSES = ("val_ppl", "train_ppl", "test_ppl", "gap", "final_gap")


def answers_section(study: StudyFiles, found: Sequence[Answer]) -> Section:
    """Return the answer to each question, with the manifest's own notes."""
    compared = study.compared
    verdicts = [claim.verdict for answer in found for claim in answer.claims if claim.measure in LOSSES]
    unknown = verdicts.count(Verdict.UNKNOWN)
    policy = [POLICY]
    policy += [OVER_SEEDS] if study.comparisons else []
    policy += [ONE_SEED] if Verdict.THIS_TEXT in verdicts else []
    policy += [NO_VERDICT] if 2 * unknown > len(verdicts) else []
    blocks: list[Block] = paragraphs([*text_sentences(study), *scope_sentences(compared), " ".join(policy)])
    for answer in found:
        blocks += [Subheading(text=answer.title), Points(items=answer.points)]
        blocks += [Folded(title="More numbers", blocks=[Points(items=answer.details)])] if answer.details else []
        blocks += [Evidence(names=answer.evidence)] if answer.evidence else []
        blocks += note_blocks(answer.name, study)
    return Section(name="answers", title="Answers", blocks=blocks)


def claims_data(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return all claims as ``data/claims.json`` has them."""
    return [claim.to_plain() for answer in found for claim in answer.claims]
