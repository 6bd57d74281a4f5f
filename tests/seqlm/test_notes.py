"""Notes about runs: what the newest of them say."""

from pathlib import Path

from seqlm.notes import Noted, read_notes, write_note


def test_tags_and_texts_are_those_of_the_newest_note_that_has_them_and_no_note_is_edited(tmp_path: Path) -> None:
    write_note(tmp_path, ["a", "b"], ["good", "wide"], None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("note.json")}
    write_note(tmp_path, ["b", "c"], None, "again")
    (tmp_path / "notes" / "000003").mkdir()  # its process was killed before it wrote the note
    write_note(tmp_path, ["b"], ["bad"], None)
    a, b = Noted(tags=("good", "wide")), Noted(tags=("bad",), text="again")
    assert read_notes(tmp_path) == {"a": a, "b": b, "c": Noted(text="again")}
    write_note(tmp_path, ["a", "b"], [], "")
    assert read_notes(tmp_path) == {"a": Noted(), "b": Noted(), "c": Noted(text="again")}
    assert {path: path.read_bytes() for path in before} == before
