"""The claims on the page: the answers first, and a table of all comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.blocks.notes import note_blocks
from analysis.blocks.section import Block, Evidence, Points, Section, Subheading, paragraphs
from analysis.blocks.sentences import scope, scope_sentences, text_sentences
from analysis.blocks.table import Column, Table, number
from analysis.claims.answer import Answer
from analysis.claims.claim import MEASURES, Claim
from analysis.claims.verdict import Verdict
from analysis.plots.scatter import time_chart
from analysis.study import units
from analysis.study.study import StudyFiles

POLICY = (
    "One number counts as less than another only where chance does not explain it: losses by a t test over seeds and "
    "tokens at 5 % (± one standard error), times beyond the scatter of epochs."
)
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
    policy = [POLICY, *([NO_VERDICT] if 2 * unknown > len(verdicts) else [])]
    blocks: list[Block] = paragraphs([*text_sentences(study), *scope_sentences(compared), " ".join(policy)])
    for answer in found:
        blocks += [Subheading(text=answer.title), Points(items=answer.points)]
        blocks += [Evidence(names=answer.evidence)] if answer.evidence else []
        blocks += note_blocks(answer.name, study)
    return Section(name="answers", title="Answers", blocks=blocks)


def discussion_section(study: StudyFiles, found: Sequence[Answer]) -> Section:
    """Return all comparisons of the answers as a table, and perplexity against time."""
    one = study.compared.on_one_text
    claims = [claim for answer in found for claim in answer.claims if claim.verdict is not None]
    timed = [setting for setting in one.settings if units.is_number(setting.seconds_to_best)]
    blocks: list[Block] = [comparisons_table(claims, scope(one))] if claims else []
    blocks += [time_chart(timed, scope(one))] if len(timed) > 1 else []
    return Section(name="discussion", title="Discussion", blocks=blocks)


def comparisons_table(claims: Sequence[Claim], of: str) -> Table:
    """Return a row for each two numbers that an answer compares."""
    return Table(
        name="comparisons",
        title="Comparisons behind the answers",
        caption="Difference: loss of Second less that of First over the same tokens, ± its standard error (nats). "
        f"Verdict: see docs/explanation/report.md.{of}",
        columns=[
            Column("question", "Question", of=lambda claim: claim.question),
            Column("measure", "Of", of=_what),
            Column("first", "First", of=lambda claim: claim.members[0]),
            _value("first_value", 0),
            Column("second", "Second", of=lambda claim: claim.members[1]),
            _value("second_value", 1),
            number("difference", "Difference", units.signed, lambda claim: claim.difference),
            number("error", "±", units.decimals(".3f"), lambda claim: claim.error),
            Column("verdict", "Verdict", of=lambda claim: str(claim.verdict)),
        ],
        records=[claim for claim in claims if len(claim.members) > 1],
    )


def _what(claim: Claim) -> str:
    words = MEASURES[claim.measure].words
    target = claim.given.get("target")
    return f"{words} ({units.perplexity(target)})" if isinstance(target, float) else words


def _value(key: str, place: int) -> Column:
    def shown(claim: Claim) -> str:
        return MEASURES[claim.measure].write(claim.values[place])  # type: ignore[no-any-return]

    return Column(key, "Value", of=lambda claim: claim.values[place], shown=shown, numeric=True)


def claims_data(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return all claims as ``data/claims.json`` has them."""
    return [claim.to_plain() for answer in found for claim in answer.claims]
