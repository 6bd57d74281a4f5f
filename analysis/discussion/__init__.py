"""The discussion of a study: five questions, each answered from its data alone, with the numbers behind the answer."""

from __future__ import annotations

from analysis.blocks.section import Block, Section, Subheading
from analysis.discussion.expected import expected_blocks
from analysis.discussion.next_runs import next_blocks
from analysis.discussion.optimizers import optimizers_blocks
from analysis.discussion.picks import picks_blocks
from analysis.discussion.reliability import reliability_blocks
from analysis.study.settings import timed_settings
from analysis.study.study import Study


def discussion_section(study: Study) -> Section:
    """Five parts, each also where nothing can be said yet: then it says so."""
    settings = timed_settings(study)
    parts: list[tuple[str, list[Block]]] = [
        ("Expected against observed", expected_blocks(study)),
        ("The optimizers compared", optimizers_blocks(study, settings)),
        ("The pick for time and the pick for generalisation", picks_blocks(study, settings)),
        ("Reliability of the architectures", reliability_blocks(study, settings)),
        ("What to run next", next_blocks(study)),
    ]
    blocks = [block for title, answer in parts for block in [Subheading(text=title), *answer]]
    return Section(name="discussion", title="Discussion", blocks=blocks)
