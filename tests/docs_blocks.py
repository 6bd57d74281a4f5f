"""The code blocks of the documentation, and how they are run.

A marker in the line above a block says what becomes of it. Markers are HTML comments, which no reader sees.

    <!-- run -->                        run it after the blocks above it, in a folder of the page; it exits with 0
    <!-- run: exit 2 -->                its last command exits with 2
    <!-- run: Ctrl-C after GLOB -->     press Ctrl-C once a file matches; it exits with 130
    <!-- run: GPU -->                   tests do not run it; the command below does, on a machine with a GPU
    <!-- file: NAME -->                 write it to this file of the folder
    <!-- output -->                     the block above printed this, except for numbers; a line ``...`` is any lines
    <!-- elsewhere: FILE -->            this test or script runs it
    <!-- not run: WHY -->               nothing runs it

A section with a block that no test runs has a visible note, with the words "Not tested here" or "No test runs".
Manifests need no marker: all are checked. A page of which blocks are run has a marker that says where:

    <!-- blocks run on: local -->       also ``ray``, ``slurm``, and ``study``: the study ``runs/first`` exists already

``python -m tests.docs_blocks PAGE`` runs the blocks of a page in a new folder, with the machine, cluster and variables
of the shell; those that need a GPU as well.
"""

import ast
import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import matplotlib
from matplotlib import pyplot

from tests import commands
from tests.crawl import Crawl
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent
PLACES = ("local", "ray", "slurm", "study")

_FENCE = re.compile(
    r"(?:^ *<!-- (?P<marker>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$", re.M | re.S
)
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.S)
_QUOTED = re.compile(r"""'[^']*'|"[^"$`]*\"""")
_SHELL = re.compile(r"^\w+=|^export |[|&;<>$`\\*~()]", re.M)


@final
@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block of a page."""

    page: str
    """Path of the page, relative to the project's folder."""
    line: int
    """Line of the page on which the block starts."""
    language: str
    text: str
    kind: str
    """First word of the marker, ``""`` without one."""
    argument: str
    """The marker's text after the colon."""
    section: str
    """The text of the section that the block is in."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the pages for readers: README.md and docs/, without built files."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "_build" not in page.relative_to(ROOT).parts]


def read_blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page; generated parts and Sphinx's own directives are left out."""
    text = _GENERATED.sub(lambda part: "\n" * part[0].count("\n"), page.read_text("utf-8"))
    return list(_blocks(page, text))


def _blocks(page: Path, text: str) -> Iterator[Block]:
    for found in _FENCE.finditer(text):
        if found["language"].startswith("{"):
            continue
        kind, _, argument = (found["marker"] or "").partition(":")
        indent = len(found["indent"])
        yield Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, found.start("indent")) + 1,
            language=found["language"],
            text="".join(line[indent:] or "\n" for line in found["text"].splitlines(keepends=True)),
            kind=kind.strip(),
            argument=argument.strip(),
            section=_section(text, found.start("indent")),
        )


def _section(text: str, place: int) -> str:
    """Return the text between the headings around a place. Code is blanked out, since ``#`` begins comments there."""
    plain = re.sub(r"^ *```.*?^ *```$", lambda code: re.sub(r"[^\n]", " ", code[0]), text, flags=re.M | re.S)
    headings = [heading.start() for heading in re.finditer(r"^#+ ", plain, re.M)]
    start = max((heading for heading in headings if heading <= place), default=0)
    end = min((heading for heading in headings if heading > place), default=len(text))
    return plain[start:end]


def place_of(page: Path) -> str | None:
    """Return where the blocks of a page run; ``None`` if no marker says so."""
    found = re.search(r"^<!-- blocks run on: (\w+) -->$", page.read_text("utf-8"), re.M)
    return found[1] if found else None


def command_words(text: str) -> Iterator[list[str]]:
    """Return the words of each simple command of a block in the shell's language."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from [words] if words else []
                words = []
            else:
                words.append(word)


# -- running ---------------------------------------------------------------------------------------------------------


@final
class Session:
    """The blocks of a page, run one after the other in a folder.

    Args:
        folder: the working folder; it exists.
        env: the variables of the commands.
        program: what ``seqlm`` is in blocks.
        enter: what a command line becomes, to run it in another place.
        edits: texts that are replaced in blocks, for shorter runs; each occurs on the page.
        gpu: whether to run blocks that need a GPU.
        crawl: what slows the workers of blocks that are ended by Ctrl-C. ``None``: nothing does.
    """

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str],
        *,
        program: Path = ROOT / "launch.py",
        enter: Callable[[Sequence[str]], list[str]] = list,
        edits: Mapping[str, str] | None = None,
        gpu: bool = False,
        crawl: Crawl | None = None,
    ) -> None:
        self.folder = folder
        self._env = {**env, "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])}
        self._seqlm = [sys.executable, str(program)]
        self._enter = enter
        self._edits = dict(edits or {})
        self._gpu = gpu
        self._slow = {} if crawl is None else crawl.env
        self._printed = ""
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def run_page(self, page: Path) -> None:
        """Run, write and compare what the markers of a page say.

        Raises:
            AssertionError: a command exits with another code, or prints something else; the message names the block.
        """
        blocks = read_blocks(page)
        missing = [old for old in self._edits if not any(old in block.text for block in blocks)]
        assert not missing, f"{page}: no block has {missing}"
        try:
            with matplotlib.rc_context():  # Python's blocks run in this process
                for block in blocks:
                    self._run_block(block)
        finally:
            pyplot.close("all")

    def _run_block(self, block: Block) -> None:
        text = block.text
        for old, new in self._edits.items():
            text = text.replace(old, new)
        if block.kind == "file":
            file = self.folder / block.argument
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        elif block.kind == "output":
            assert is_output(text, self._printed), f"{block.place}: expected\n{text}\ngot\n{self._printed}"
        elif block.kind == "run" and (block.argument != "GPU" or self._gpu):
            if block.language == "python":
                self._run_python(block, text)
            else:
                self._run_commands(block, text)

    def _run_python(self, block: Block, text: str) -> None:
        """Run statements as at Python's prompt, which prints the value of an expression."""
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            for statement in ast.parse(text).body:
                exec(compile(ast.Interactive([statement]), block.place, "single"), self._names)
        self._printed = printed.getvalue()

    def _run_commands(self, block: Block, text: str) -> None:
        after = re.fullmatch(r"Ctrl-C after (.+)", block.argument)
        expected = re.fullmatch(r"exit (\d+)", block.argument)
        code = 130 if after else int(expected[1]) if expected else 0
        self._printed = ""
        exported = self.folder.parent / f"{self.folder.name}.exported"
        if "export " in text:
            text += f"env -0 >{shlex.quote(str(exported))}"
        lines = self._command_lines(text)
        for number, (folder, argv) in enumerate(lines, start=1):
            options: dict[str, Any] = {"stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "process_group": 0}
            env = {**self._env, **(self._slow if after else {})}
            process = commands.start(self._enter(argv), cwd=folder, env=env, **options)
            if after:
                wait_for(lambda: list(self.folder.glob(after[1])), after[1])
                os.killpg(process.pid, signal.SIGINT)
            printed = commands.finish(process)[0].splitlines(keepends=True)
            self._printed += "".join(line for line in printed if not line.startswith("next: "))  # a terminal has none
            wanted = code if number == len(lines) else 0
            assert process.returncode == wanted, f"{block.place}: {argv}: {process.returncode}\n{self._printed}"
        if exported.exists():  # for the blocks below, as in one terminal
            self._env |= dict(line.split("=", 1) for line in exported.read_text("utf-8").split("\0") if line)

    def _command_lines(self, text: str) -> list[tuple[Path, list[str]]]:
        """Return a block as folders and command lines: one for each line if all are plain, else one of bash for all.

        Tests start plain calls of seqlm from a warm process (:mod:`tests.warm`).
        """
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
        if _SHELL.search(re.sub(r"#.*", "", _QUOTED.sub("", text))):
            seqlm = f'seqlm() {{ {shlex.join(self._seqlm)} "$@"; }}'
            return [(self.folder, ["bash", "-euo", "pipefail", "-c", f"{seqlm}\n{text}"])]
        found, folder = [], self.folder
        for words in filter(None, lines):
            if words[0] == "cd":
                folder /= words[1]
            else:
                found.append((folder, [*self._seqlm, *words[1:]] if words[0] == "seqlm" else words))
        return found


# -- comparing -------------------------------------------------------------------------------------------------------


def is_output(expected: str, printed: str) -> bool:
    """Whether a program printed what a page shows, except for numbers, units, digests and the widths of columns."""
    pattern = ""
    for line in normal(expected):
        pattern += r"(?:[^\n]*\n)*" if line == "..." else re.escape(line) + "\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in normal(printed))) is not None


def normal(text: str) -> list[str]:
    """Return the lines that are not empty, with 0 for each number and one space for several."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    text = re.sub(r"-[0-9a-f]{8}\b", "-0", text)
    text = re.sub(r"\d+(?:[.,:]\d+)*", "0", text)
    text = re.sub(r"\b0 ?(?:ms|s|min|h)\b", "0 s", text)
    text = re.sub(r"\b0 ?(?:[kKMGT]i?)?B\b", "0 B", text)
    lines = [" ".join(re.sub(r"[-─━═=]{3,}", "---", line).split()) for line in text.splitlines()]
    return [line for line in lines if line]


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    folder = Path(tempfile.mkdtemp(prefix="docs-blocks-"))
    print(f"running the blocks of {page} in {folder}")
    Session(folder, {**os.environ, "SEQLM_TEST_COLD": "1"}, gpu=True).run_page(page)
    print("all blocks did what the page says")


if __name__ == "__main__":
    main()
