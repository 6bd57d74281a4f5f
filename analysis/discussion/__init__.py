"""The discussion of a study: four questions, each answered from its data alone, with the numbers behind the answer."""

from analysis.blocks.notes import note_blocks
from analysis.blocks.section import Block, Section, Subheading, paragraphs
from analysis.blocks.sentences import scope_sentences, text_sentences
from analysis.discussion.effects import optimizers_blocks
from analysis.discussion.expected import expected_blocks
from analysis.discussion.picks import picks_blocks
from analysis.discussion.reliability import reliability_blocks
from analysis.study.pairs import pairs_of
from analysis.study.study import StudyFiles


def discussion_section(study: StudyFiles) -> Section:
    """Return four parts; a question that the data cannot answer yet is answered by a sentence that says so."""
    compared = study.compared
    one = compared.on_one_text
    settings = one.settings
    parts: list[tuple[str, str, list[Block]]] = [
        ("expected", "Expected against observed", expected_blocks(compared)),
        ("optimizers", "The optimizers compared", optimizers_blocks(one, settings, pairs_of(settings))),
        ("picks", "The pick for time and the pick for generalisation", picks_blocks(one, settings)),
        ("reliability", "Reliability of the architectures", reliability_blocks(one, settings)),
    ]
    blocks: list[Block] = paragraphs([*text_sentences(study), *scope_sentences(compared)])
    for name, title, answer in parts:
        blocks += [Subheading(text=title), *answer, *note_blocks(name, study)]
    return Section(name="discussion", title="Discussion", blocks=blocks)
