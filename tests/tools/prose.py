"""Print the words of each page of docs/, and the mean and longest of its sentences: ``python -m tests.tools.prose``.

With paths, only of these pages; ``--long`` adds the sentences of more than 28 words. A help for writing, not a gate.
Words are those of the whole file. Sentences are those of paragraphs and list items: not of code, tables and headings.
Code in a sentence counts as one word, and a link as its text.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs_blocks import ROOT, pages

LONGEST = 28
"""Words of the longest sentence that start/, guides/ and explanation/ are to have."""
LEFT_OUT = re.compile(
    r"^ *```.*?^ *```$|<!-- generated: .*?<!-- end -->|<!--.*?-->|^#+ [^\n]*$|^ *\|[^\n]*$|^> \[![A-Z]+\]$", re.M | re.S
)
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*:]|\d+\.|>) )")
"""What ends a paragraph or a list item."""
END = re.compile(r"(?<=[.?!])[\"')*_]*(?:\s*\n\s*|\s+(?=[\"'(*_`\[]*(?:[A-Z0-9]|seqlm\b)))")


def sentences(text: str) -> Iterator[str]:
    """Return the sentences of a page in Markdown."""
    plain = re.sub(r"`[^`]*`", "`code`", LEFT_OUT.sub("\n\n", text))
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    for block in BLOCK.split(plain):
        lines = "\n".join(re.sub(r"^\s*(?:[-*:>]|\d+\.)\s", "", line) for line in block.splitlines())
        yield from (" ".join(sentence.split()) for sentence in END.split(lines) if _words(sentence))


def _words(sentence: str) -> list[str]:
    return [word for word in sentence.split() if re.search(r"\w", word)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--long", action="store_true", help=f"show the sentences of more than {LONGEST} words")
    options = parser.parse_args()
    print(f"{'page':40} {'words':>6} {'mean':>5} {'longest':>7}")
    for page in [path.resolve() for path in options.pages] or pages():
        text = page.read_text("utf-8")
        lengths = {sentence: len(_words(sentence)) for sentence in sentences(text)}
        mean = sum(lengths.values()) / max(1, len(lengths))
        longest = max(lengths.values(), default=0)
        print(f"{page.relative_to(ROOT)!s:40} {len(text.split()):6} {mean:5.1f} {longest:7}")
        if options.long:
            for sentence, length in lengths.items():
                if length > LONGEST:
                    print(f"    {length}: {sentence}")


if __name__ == "__main__":
    main()
