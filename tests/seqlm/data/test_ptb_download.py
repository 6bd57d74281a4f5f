import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from seqlm.data import ptb_download
from seqlm.data.ptb_download import download_ptb
from seqlm.errors import DataError, FileError

CONTENTS = {split: f"the {split} text\n".encode() * 100 for split in ("train", "valid", "test")}
NAMES = [f"ptb.{split}.txt" for split in CONTENTS]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder with the three files (stand-ins for the licensed ones) and the address it is served at."""
    digests = {split: hashlib.sha256(content).hexdigest() for split, content in CONTENTS.items()}
    monkeypatch.setattr(ptb_download, "PTB_SHA256", digests)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for split, content in CONTENTS.items():
        (folder / f"ptb.{split}.txt").write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_three_files_arrive_verified_and_nothing_else_is_left(served, tmp_path):
    _, url = served
    target = tmp_path / "new" / "data"
    assert download_ptb(target, [url]) == [target / name for name in NAMES]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == dict(
        zip(NAMES, CONTENTS.values(), strict=True)
    )


def test_files_that_are_there_and_right_are_left(served, tmp_path):
    folder, url = served
    download_ptb(tmp_path / "data", [url])
    (tmp_path / "data" / NAMES[1]).unlink()
    (folder / NAMES[0]).unlink()  # could not be fetched again
    before = (tmp_path / "data" / NAMES[0]).stat().st_mtime_ns
    assert download_ptb(tmp_path / "data", [url]) == [tmp_path / "data" / NAMES[1]]
    assert (tmp_path / "data" / NAMES[0]).stat().st_mtime_ns == before


def test_a_wrong_checksum_names_both_and_keeps_nothing_of_the_file(served, tmp_path):
    folder, url = served
    (folder / NAMES[1]).write_bytes(b"something else\n")
    found = hashlib.sha256(b"something else\n").hexdigest()
    expected = hashlib.sha256(CONTENTS["valid"]).hexdigest()
    with pytest.raises(DataError, match=rf"{NAMES[1]}: SHA256 hash .* expected {expected} but got {found}\. Deleted"):
        download_ptb(tmp_path / "data", [url])
    assert [path.name for path in (tmp_path / "data").iterdir()] == [NAMES[0]]


def test_the_next_address_is_tried_when_one_has_nothing(served, tmp_path):
    _, url = served
    assert len(download_ptb(tmp_path / "data", [f"{url}/gone", url])) == 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no-address"])
def test_without_network_the_way_by_hand_is_told(served, tmp_path, url):
    with pytest.raises(DataError) as caught:
        download_ptb(tmp_path / "data", [url], timeout_seconds=2)
    message = str(caught.value)
    assert message.startswith(f"cannot fetch {NAMES[0]} ({url}/{NAMES[0]}: ")
    assert "pass --data FOLDER or set SEQLM_DATA" in message
    for split, content in CONTENTS.items():
        assert f"\n{hashlib.sha256(content).hexdigest()}  ptb.{split}.txt" in message
    assert list((tmp_path / "data").iterdir()) == []


def test_another_file_in_the_way_is_not_overwritten(served, tmp_path):
    _, url = served
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAMES[2]).write_text("mine")
    with pytest.raises(DataError, match=r"is there but is not the Penn Treebank's: .*; move it away"):
        download_ptb(tmp_path / "data", [url])
    assert (tmp_path / "data" / NAMES[2]).read_text() == "mine"
    (tmp_path / "data" / NAMES[2]).unlink()
    (tmp_path / "data" / NAMES[2]).mkdir()
    with pytest.raises(FileError, match=f"{NAMES[2]}: Is a directory"):
        download_ptb(tmp_path / "data", [url])


def test_a_file_in_place_of_the_target_folder_is_a_file_error(served, tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(FileError, match="cannot make folder"):
        download_ptb(tmp_path / "data", [served[1]])
