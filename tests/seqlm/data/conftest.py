from collections.abc import Callable
from pathlib import Path

import pytest

TRAIN = "the cat saw the dog\nthe dog sat\n<unk> ran\n"
VALID = "the cat sat\n"
TEST = "the dog ran\n<unk> saw\n"

WriteTexts = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; the user's is never touched."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEQLM_CACHE", str(folder))
    return folder


@pytest.fixture
def write_texts(tmp_path: Path) -> WriteTexts:
    """Writes a small corpus into ``tmp_path/text``; a split given as None is left out, bytes stay as they are."""

    def write(prefix: str = "", **texts: str | bytes | None) -> Path:
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        for split, text in {"train": TRAIN, "valid": VALID, "test": TEST, **texts}.items():
            if text is not None:
                content = text.encode() if isinstance(text, str) else text
                (folder / f"{prefix}{split}.txt").write_bytes(content)
        return folder

    return write
