"""The corpus that needs no download: English from the documentation that every Python carries.

The text is made of the language reference's topics (``pydoc_data.topics``) and of the docstrings of a fixed list of
standard-library modules, which are parsed, never imported. It is prepared the way the Penn Treebank was: lower case,
no punctuation, ``N`` for each number, one sentence per line. Rare words become ``<unk>`` when the vocabulary is cut,
as for any other corpus. The same Python gives the same text; another version of Python gives another one, and its
digest says so.
"""

import ast
import contextlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from seqlm.data import cache
from seqlm.data.source import SPLITS, Texts
from seqlm.errors import DataError

FORMAT = 1
"""Version of what this module makes; raise it with every change of the text."""

FEWEST_TOKENS = 150_000
ENOUGH_TOKENS = 180_000
"""Tokens, line ends included: below the first the text is refused, from the second on no further module is read."""

BLOCK_LINES = 10
PATTERN = ("train",) * 6 + ("valid",) + ("train",) * 5 + ("test",)
"""Consecutive blocks of lines go to these splits, over and over: 85 : 7.5 : 7.5, and all three are of one kind."""

MODULES = """
_collections_abc _pydecimal _pyio argparse ast asyncio/base_events asyncio/events asyncio/locks
asyncio/protocols asyncio/streams asyncio/tasks asyncio/transports base64 bdb bz2 calendar cmd code codecs
collections/__init__ concurrent/futures/_base concurrent/futures/process configparser contextlib copy csv
ctypes/__init__ dataclasses datetime difflib dis doctest email/_header_value_parser email/_policybase
email/charset email/generator email/header email/headerregistry email/message email/policy email/utils enum
filecmp fileinput fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip hashlib heapq
hmac html/parser http/client http/cookiejar http/cookies http/server imaplib importlib/_bootstrap
importlib/_bootstrap_external importlib/abc inspect ipaddress json/__init__ json/decoder json/encoder
linecache locale logging/__init__ logging/config logging/handlers lzma mailbox mimetypes
multiprocessing/managers netrc numbers ntpath optparse os pathlib pdb pickle pickletools pkgutil platform
plistlib poplib posixpath pprint profile pstats pyclbr pydoc queue quopri random re/__init__ sched selectors
shelve shlex shutil site smtplib socket socketserver ssl statistics string stringprep subprocess tarfile
tempfile textwrap threading timeit tokenize trace traceback types typing unittest/async_case unittest/case
unittest/loader unittest/main unittest/mock unittest/result unittest/runner unittest/suite urllib/parse
urllib/request urllib/robotparser uuid venv/__init__ warnings wave weakref webbrowser wsgiref/handlers
wsgiref/headers wsgiref/simple_server wsgiref/validate xml/dom/minidom xml/etree/ElementTree xml/sax/handler
xml/sax/saxutils xml/sax/xmlreader xmlrpc/client xmlrpc/server zipapp zipfile zipfile/__init__
""".split()  # noqa: SIM905 (a list literal takes a screen)
"""Modules with much prose, in this order; those that a Python lacks are skipped."""

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"')\]*]*\s+")
_CODE = re.compile(r">>>|::=|^\s*\.\.\. |^\s*[-+=|]{3,}", re.MULTILINE)
_TOKEN = re.compile(
    r"0x[0-9a-f]+|[0-9]+(?:[.,][0-9]+)+(?![a-z0-9])|[0-9]+(?:\.[0-9]+)?e[-+]?[0-9]+(?![a-z0-9])|[a-z0-9]+"
)
_NUMBER = re.compile(r"0x[0-9a-f]+|0b[01]+|0o[0-7]+|[0-9][0-9.,]*(?:e[-+]?[0-9]+)?")
_FEWEST_WORDS = 4
"""Shorter lines are headings, names of parameters and pieces of tables."""


def pydoc_texts() -> Texts:
    """The three splits; built in a second or two at first, from the cache afterwards.

    Raises:
        DataError: this Python ships without the topics or without the sources of its library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    key = cache.digest_key({"format": FORMAT, "python": sys.version, "library": str(library)})
    file_names = {split: f"pydoc {split} text" for split in SPLITS}
    entry = cache.find("texts", key)
    if entry is not None:
        return Texts({split: bytes(entry[0][f"{split}.txt"]) for split in SPLITS}, file_names)
    contents = {split: text.encode() for split, text in split_lines(build_lines(library)).items()}
    cache.store("texts", key, {f"{split}.txt": content for split, content in contents.items()}, {})
    return Texts(contents, file_names)


def build_lines(library: Path) -> list[str]:
    """All lines of the corpus, no two the same (a line of train is never one of valid).

    Raises:
        DataError: they come to fewer than ``FEWEST_TOKENS`` tokens.
    """
    kept: dict[str, None] = {}
    tokens = 0
    for document in _documents(library):
        for line in sentences(document):
            if line not in kept:
                kept[line] = None
                tokens += line.count(" ") + 2  # the words and the line's end
        if tokens >= ENOUGH_TOKENS:
            break
    if tokens < FEWEST_TOKENS:
        raise DataError(
            f"this Python ({sys.executable}) ships too little documentation for the pydoc corpus: {tokens:,} tokens, "
            f"at least {FEWEST_TOKENS:,} are needed; use a Python with pydoc_data.topics and the library's .py files "
            'under its standard library folder, or set data.corpus = "ptb" or "files"'
        )
    return list(kept)


def split_lines(lines: Iterable[str]) -> dict[str, str]:
    """The lines dealt out to train, valid and test in blocks, by ``PATTERN``."""
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, line in enumerate(lines):
        parts[PATTERN[number // BLOCK_LINES % len(PATTERN)]].append(f"{line}\n")
    return {split: "".join(part) for split, part in parts.items()}


def sentences(document: str) -> Iterator[str]:
    """The prose of a text, one prepared sentence at a time; examples of code, grammars and rulers are left out.

    >>> list(sentences("Return the number of items; at most 1,024.  It's cheap, even for 0x10 lists."))
    ['return the number of items', 'its cheap even for N lists']
    """
    for paragraph in _PARAGRAPH_END.split(document):
        if _CODE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(paragraph):
            words = _TOKEN.findall(sentence.lower().replace("'", "").replace("\u2019", ""))
            if len(words) >= _FEWEST_WORDS:
                yield " ".join("N" if _NUMBER.fullmatch(word) else word for word in words)


def _documents(library: Path) -> Iterator[str]:
    """Topics in sorted order, then one text per module."""
    with contextlib.suppress(ImportError):
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield topics[name]
    for module in MODULES:
        try:
            with warnings.catch_warnings(action="ignore"):  # of the library's own code
                tree = ast.parse((library / f"{module}.py").read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        yield "\n\n".join(_docstrings(tree))


def _docstrings(node: ast.stmt | ast.Module) -> Iterator[str]:
    """Docstrings in the order of the source. Only statements are visited: ``ast.walk`` takes twice as long."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for statement in getattr(node, "body", ()):
        yield from _docstrings(statement)
