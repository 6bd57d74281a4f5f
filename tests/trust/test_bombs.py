"""Files that mean harm: zip files, texts and manifests that are far larger, or far deeper, than they look."""

import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.load import load_manifest
from seqlm.config import DataConfig
from seqlm.data.corpus import load_corpus
from seqlm.data.source import read_texts
from seqlm.errors import DamagedFileError, DataError, ManifestError, SeqlmError
from seqlm.reading import LARGEST_RECORD, LARGEST_TEXT, LISTS, parse_json, parsed_bytes, read_archive
from tests import commands
from tests.small_study import ROOT, Study
from tests.trust.test_wrong_types import KINDS, whole_run, write_study_files

MIB = 2**20
SMALL = {"valid.txt": b"a\n", "test.txt": b"b\n"}


def refusal(action: Callable[[], Any], kind: type[SeqlmError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def zip_by_hand(path: Path, name: str, stream: bytes, crc: int, declared: int) -> Path:
    """A zip file whose entry ``name`` has this deflate stream and says that it unpacks to ``declared`` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in {name: stream, **SMALL}.items():
            archive.writestr(other, content)
    raw = bytearray(path.read_bytes())
    for header, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # of the file, and of its entry in the directory
        place = raw.index(header) + method
        struct.pack_into("<H", raw, place, zipfile.ZIP_DEFLATED)
        struct.pack_into("<III", raw, place + 6, crc, len(stream), declared)
    path.write_bytes(raw)
    return path


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


# -- zip files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_gibibytes() -> tuple[bytes, int]:
    """Ten million bytes that unpack to 10 GiB: one deflated stream of 128 MiB, repeated 80 times."""
    packer, crc, piece = zlib.compressobj(9, zlib.DEFLATED, -15), 0, bytes(16 * MIB)
    once = b"".join([packer.compress(piece) for _ in range(8)]) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(8):
        crc = zlib.crc32(piece, crc)
    return once * 80 + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), crc


@pytest.mark.slow
@pytest.mark.parametrize("declared", [2**32 - 2, 2**31, 100 * MIB, 10], ids=["4 GiB", "2 GiB", "100 MiB", "10 bytes"])
def test_a_zip_of_ten_megabytes_that_unpacks_to_ten_gibibytes_takes_a_hundredth_of_that(
    tmp_path: Path, ten_gibibytes: tuple[bytes, int], declared: int, peak: Callable[[], int]
) -> None:
    stream, crc = ten_gibibytes
    assert 9 * MIB < len(stream) < 14 * MIB
    path = zip_by_hand(tmp_path / "bomb.zip", "train.txt", stream, crc, declared)
    message = refusal(lambda: read_texts(path))
    assert any(told in message for told in ("which no text does", "bomb.zip cannot be read ("))
    assert peak() < 250 * MIB


WITH_PEAK = """
import atexit, pathlib, runpy, sys

def write_peak(path):
    status = pathlib.Path("/proc/self/status").read_text()
    path.write_text(status.partition("VmHWM:")[2].split()[0])

atexit.register(write_peak, pathlib.Path(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Run a program and write the most memory, in KiB, that its process has held: resident, so that libraries which
reserve address space do not count, and without that of the process which started it."""


def measured(program: Sequence[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the command line in a new process: what it printed, and the most bytes that it held."""
    words = [program[0], "-c", WITH_PEAK, str(folder / "peak"), *program[1:]]
    done = commands.run(words, cold=True, cwd=folder)  # a warm process has torch in its memory
    return done, int((folder / "peak").read_text()) * 1024


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_refusal_of_a_bomb_is_what_the_command_line_prints_within_little_memory(
    tmp_path: Path, ten_gibibytes: tuple[bytes, int]
) -> None:
    bomb = zip_by_hand(tmp_path / "bomb.zip", "train.txt", *ten_gibibytes, declared=2**31)
    study = Study(tmp_path)
    peaks = []
    for data, code in ((tmp_path / "text", 0), (bomb, 2)):
        words = study.command("plan", "small.toml", "--data", str(data), "--backend", "local")
        done, most = measured(words, tmp_path)
        assert done.returncode == code, done.stderr
        peaks.append(most)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: zip file ")
    assert "which no text does" in line
    of_a_text, of_the_bomb = peaks
    assert of_the_bomb < of_a_text + 100 * MIB


def test_a_zip_that_is_not_packed_by_deflate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, text in {**SMALL, "train.txt": b"a b\n"}.items():
            archive.writestr(name, text)
    assert "(train.txt is not packed by deflate); expected a folder or" in refusal(lambda: read_texts(path))


def test_a_text_that_packs_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**SMALL, "train.txt": b"the same line again\n" * 100_000}.items():
            archive.writestr(name, text)
    assert len(read_texts(path).contents["train"]) == 2_000_000


@pytest.mark.parametrize("folder", ["../../", "/etc/", "a/../../b/", "C:\\", "$(touch x)/", "\x1b[2J/"])
def test_paths_in_a_zip_lead_nowhere(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with zipfile.ZipFile("c.zip", "w") as archive:
        for name, text in {**SMALL, "train.txt": b"a b\n"}.items():
            archive.writestr(f"{'' if chr(92) in folder else folder}{name}", text)
    assert read_texts(Path("c.zip")).contents["train"] == b"a b\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "er", "c.zip"]


def test_a_name_with_a_nul_in_a_zip_does_not_hide_a_second_text(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**SMALL, "train.txt": b"a b\n", "train.txt_hidden": b"other\n"}.items():
            archive.writestr(name, text)
    path.write_bytes(path.read_bytes().replace(b"train.txt_hidden", b"train.txt\0hidden"))
    assert "holds test.txt, train.txt, train.txt, valid.txt; expected" in refusal(lambda: read_texts(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_archive_of_code_that_is_packed_is_refused(
    tmp_path: Path, compression: int, peak: Callable[[], int]
) -> None:
    path = tmp_path / "code.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.py", bytes(40 * MIB))
        archive.writestr("b.py", os.urandom(50 * MIB // 1000))
    before = peak()
    assert "its files are compressed" in refusal(lambda: read_archive(path), DamagedFileError)
    assert peak() - before < 10 * MIB


# -- records of a study ------------------------------------------------------------------------------------------------

RUNS = 4
"""In the planted study; what is kept of all of them would be several GB."""


def amplify(path: Path, size: int) -> None:
    """Let the last record of a file have a list of tables, which take thirty times as much memory as ``size``."""
    *before, last = path.read_bytes().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_bytes()]
    tables = b",".join([b'{"a":0}'] * (size // 8))
    path.write_bytes(b"".join([*before, last.rstrip().removesuffix(b"}"), b', "more": [', tables, b"]}\n"]))


@pytest.fixture(scope="module", params=[True, False], ids=["as large as is read", "far too large"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which every record that takes more memory than its file is as large as is read, or larger."""
    folder, fits = tmp_path_factory.mktemp("planted"), request.param
    study_dir = folder / "runs" / "small"
    runs = [whole_run(study_dir, seed, KINDS[seed % len(KINDS)]) for seed in range(RUNS)]
    write_study_files(study_dir, [run.id for run in runs[:4]])
    for path in study_dir.rglob("*.json*"):
        may_be_large = path.name in LISTS or path.suffix == ".jsonl"
        if fits:
            amplify(path, 7 * MIB // 2 if may_be_large else LARGEST_RECORD - 50_000)
        else:
            amplify(path, 20 * MIB if may_be_large and path.parent.parent == study_dir else 2 * LARGEST_RECORD)
    runs[0].trace_file.touch()
    os.truncate(runs[0].trace_file, LARGEST_TEXT)
    return folder


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("planted", "words"),
    [
        *((True, words) for words in ("status small", "logs small", "diff small small", "report small --no-behaviour")),
        *((False, words) for words in ("why small", "list", "export small --to csv --output exported")),
    ],
    indirect=["planted"],
)
def test_records_that_are_larger_in_memory_than_in_their_files_take_little(planted: Path, words: str) -> None:
    done, most = measured([sys.executable, str(ROOT / "launch.py"), *words.split()], planted)
    assert "Traceback" not in done.stderr
    assert most < 600 * MIB


@pytest.mark.parametrize(
    "item",
    [
        *(b"[]", b"{}", b"[1.5]", b'{"a":1.5}', b"1.5", b"99999", b'"ab"', b'{"a":[[]]}', b'"\\ud83d"'),
        '"\U0001f600"'.encode(),
    ],
)
def test_what_a_text_takes_in_memory_is_known_before_it_is_parsed(item: bytes, peak: Callable[[], int]) -> None:
    content = b"[" + b",".join([item] * 50_000) + b', "' + b"long" * 50_000 + b'"]'
    before = peak()
    value = parse_json(content.decode("utf-8"))
    assert len(value) == 50_001
    assert peak() - before < parsed_bytes(content)


# -- texts -------------------------------------------------------------------------------------------------------------


def corpus(folder: Path, train: bytes, valid: bytes = b"a b\n") -> Callable[[], Any]:
    for name, content in (("train", train), ("valid", valid), ("test", b"a b\n")):
        (folder / f"{name}.txt").write_bytes(content)
    return lambda: load_corpus(DataConfig(corpus="files"), folder)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (b"a b\n\x7fELF\x02\x01\x01\x00\x00", "train.txt line 2: byte 0x00 is not UTF-8 text"),
        (b"a b\n\n\xff\xfe\n", "train.txt line 3: byte 0xff is not UTF-8"),
        (b"a b \xed\xa0\x80\n", "train.txt line 1: byte 0xed is not UTF-8"),
    ],
    ids=["a program", "no UTF-8", "half a character"],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, train: bytes, told: str) -> None:
    assert told in refusal(corpus(tmp_path, train))


def test_a_line_or_a_word_of_megabytes_is_text_like_any_other(tmp_path: Path) -> None:
    loaded = corpus(tmp_path, b"a b " + b"x" * 5_000_000 + b" " + b"y " * 500_000)()
    assert loaded.tokens["train"] == 500_004


def test_an_unknown_word_of_megabytes_makes_no_message_of_megabytes(tmp_path: Path) -> None:
    message = refusal(corpus(tmp_path, b"a b\n", valid=b"a " + b"z" * 3_000_000 + b"\n"))
    assert 'valid.txt line 1: "zzzz' in message


# -- manifests ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (f'a = "{"x" * 17 * MIB}"', "too large, expected at most 16 MiB"),
    ],
    ids=["deep", "many bytes"],
)
def test_a_manifest_that_means_harm_gets_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    assert told in refusal(lambda: load_manifest(tmp_path / "m.toml"), ManifestError)
