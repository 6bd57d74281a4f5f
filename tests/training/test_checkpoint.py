from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from seqlm.errors import CheckpointError, FileError
from seqlm.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def make(fingerprint: str = "f" * 64) -> Checkpoint:
    return Checkpoint(
        fingerprint=fingerprint,
        corpus_sha256="c" * 64,
        vocabulary=["<eos>", "the"],
        model={"weight": torch.arange(50_000.0)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        history=[{"epoch": 0, "val_ppl": 12.5}],
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", make())
    loaded = load_checkpoint(tmp_path / "last.pt", "f" * 64)
    assert torch.equal(loaded.model["weight"], torch.arange(50_000.0))
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999)}]
    assert loaded.history == [{"epoch": 0, "val_ppl": 12.5}]
    assert loaded.vocabulary == ["<eos>", "the"]


@pytest.mark.parametrize("kept_bytes", [0, 10, 5_000, 190_000])
def test_a_truncated_checkpoint_is_named_in_one_line(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated or not a seqlm checkpoint") as caught:
        load_checkpoint(path, "f" * 64)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="not a seqlm checkpoint of the format"):
        load_checkpoint(tmp_path / "last.pt", "f" * 64)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", make("a" * 64))
    with pytest.raises(CheckpointError, match=r"another run \(fingerprint aaaaaaaa, this run has ffffffff\)"):
        load_checkpoint(tmp_path / "last.pt", "f" * 64)


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_code_inside_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    torch.save({"format": _Malicious(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Malicious(trace)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name, "f" * 64)
    assert not trace.exists()


def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(CheckpointError, match="is a folder where a checkpoint should be"):
        load_checkpoint(tmp_path / "last.pt", "f" * 64)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match=r"cannot write .*last\.pt: the disk is full or failing"):
        save_checkpoint(path, make())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]
