"""Each entry of docs/troubleshooting.md has a cause and a fix, and the words of its message are those of the code.

On the page, ``<word>``, numbers, quoted texts, and words with a dot, a slash, a hyphen or an underscore are examples.
"""

import ast
import errno
import itertools
import os
import re
from collections.abc import Iterator

import pytest

from tests.docs_blocks import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
ENTRY = re.compile(
    r"^### ([^\n]+)\n.*?^```text\n(.*?)^```\n\n\*\*Cause\.\*\* .*?\*\*Fix\.\*\* ", re.MULTILINE | re.DOTALL
)
MESSAGES = dict(ENTRY.findall(PAGE))
"""Heading -> message."""
EXAMPLE = re.compile(r"<\w+>|\"[^\"]*\"|`[^`]*`|--?[\w-]+|\w*[\w)](?:[./_\-]\w+)+/?|\b\d[\w.]*")
NAMES = ("first", "second", "gru", "rnn", "gpus", "cpu", "bf16", "SIGKILL", "SIGTERM", "nan", "OutOfMemoryError")
"""Words that an example has for the name of a study, a run, a partition, a precision, a signal, an error."""


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][A-Za-z']*", text)


def _texts_of_the_code() -> Iterator[str]:
    for folder in ("seqlm", "jobs", "slurm", "analysis"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield node.value


@pytest.fixture(scope="module")
def said() -> set[tuple[str, ...]]:
    """Words that follow each other in a text of the code, by two; texts of one word; and each word with ``""``."""
    found: set[tuple[str, ...]] = set()
    for words in map(_words, [*_texts_of_the_code(), os.strerror(errno.ENOSPC)]):
        found.update(itertools.pairwise(words), ((word, "") for word in words), [tuple(words)])
    return found


def unsaid(message: str, said: set[tuple[str, ...]]) -> list[str]:
    """Return the words of a message that are in no text of the code next to a word that they are next to here."""
    found = []
    for part in EXAMPLE.sub("\0", message).split("\0"):
        words = _words(part)
        pairs = [pair in said for pair in itertools.pairwise(words)]
        for place, word in enumerate(words):
            is_next_to_it = any(pairs[max(0, place - 1) : place + 1]) if pairs else (word, "") in said
            if not (is_next_to_it or (word,) in said or word in NAMES):
                found.append(word)
    return found


def test_each_entry_has_a_message_a_cause_and_a_fix() -> None:
    assert re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE) == list(MESSAGES)
    assert len(set(MESSAGES.values())) == len(MESSAGES)


@pytest.mark.parametrize("heading", MESSAGES)
def test_the_words_of_a_message_are_those_of_the_code(heading: str, said: set[tuple[str, ...]]) -> None:
    assert not unsaid(MESSAGES[heading], said)
