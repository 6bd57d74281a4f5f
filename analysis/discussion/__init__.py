"""The discussion of a study: five questions, each answered from its data alone, with the numbers behind the answer."""

from __future__ import annotations

from analysis.blocks.section import Block, Prose, Section, Subheading
from analysis.blocks.texts import on_one_text, scope_sentences, text_sentences
from analysis.discussion.expected import expected_blocks
from analysis.discussion.next_runs import next_blocks
from analysis.discussion.optimizers import optimizers_blocks
from analysis.discussion.picks import picks_blocks
from analysis.discussion.reliability import reliability_blocks
from analysis.study.settings import timed_settings
from analysis.study.study import Study


def discussion_section(study: Study) -> Section:
    """Return five parts; a question that the data cannot answer yet is answered by a sentence that says so."""
    compared = study.compared
    one = on_one_text(compared)
    settings = timed_settings(one)
    parts: list[tuple[str, list[Block]]] = [
        ("Expected against observed", expected_blocks(compared)),
        ("The optimizers compared", optimizers_blocks(one, settings)),
        ("The pick for time and the pick for generalisation", picks_blocks(one, settings)),
        ("Reliability of the architectures", reliability_blocks(one, settings)),
        ("What to run next", next_blocks(study)),
    ]
    warning: list[Block] = [Prose(text=text) for text in [*text_sentences(study), *scope_sentences(compared)]]
    blocks = [block for title, answer in parts for block in [Subheading(text=title), *answer]]
    return Section(name="discussion", title="Discussion", blocks=[*warning, *blocks])
