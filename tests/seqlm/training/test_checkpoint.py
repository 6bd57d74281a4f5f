import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.errors import CheckpointError, DamagedError, FileError
from seqlm.training import checkpoint
from seqlm.training.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint, weights_digest


def make(fingerprint: str = "f" * 64) -> Checkpoint:
    return Checkpoint(
        fingerprint=fingerprint,
        corpus_sha256="c" * 64,
        vocabulary=["<eos>", "the"],
        model={"weight": torch.arange(50_000.0)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        history=[{"epoch": 0, "val_ppl": 12.5}],
        position=Position(
            epoch=1,
            step=7,
            loss_nats=3.25,
            tokens=280,
            seconds=1.5,
            states=[torch.ones(2, 4, 3)],
            generators=[torch.get_rng_state()],
            cpu_generators=[torch.get_rng_state()],
            ranks=1,
            device="cpu",
        ),
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", make())
    loaded = load_checkpoint(tmp_path / "last.pt", "f" * 64)
    assert torch.equal(loaded.model["weight"], torch.arange(50_000.0))
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999)}]
    assert loaded.history == [{"epoch": 0, "val_ppl": 12.5}]
    assert loaded.vocabulary == ["<eos>", "the"]
    assert vars(loaded.position).keys() == vars(make().position).keys()
    for name, value in vars(make().position).items():
        found = getattr(loaded.position, name)
        assert torch.equal(found[0], value[0]) if isinstance(value, list) else found == value, name


KINDS = ("float8_e4m3fn", "bfloat16", "uint16", "uint64", "bool", "complex64", "int8")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
def test_parameters_of_any_kind_come_back(tmp_path: Path) -> None:
    tensors = {name: torch.arange(4).to(getattr(torch, name)) for name in KINDS}
    tensors["sparse"] = torch.eye(3).to_sparse()
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    save_checkpoint(tmp_path / "last.pt", replace(make(), model=tensors))
    loaded = load_checkpoint(tmp_path / "last.pt", "f" * 64).model
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].to_dense().tolist() == tensor.to_dense().tolist()


def zero_the_end(content: bytes) -> bytes:
    """What a power cut leaves where the length of a file was written before its blocks."""
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


@pytest.mark.parametrize("damage", [*(lambda content, n=n: content[:n] for n in (0, 10, 5_000, 190_000)), zero_the_end])
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"last\.pt is truncated, damaged or not a seqlm checkpoint") as caught:
        load_checkpoint(path, "f" * 64)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="not a seqlm checkpoint of the format"):
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


class FailsHalfway(io.FileIO):
    """A file of which the first bytes alone can be read."""

    number = errno.EIO

    def readinto(self, buffer: Any, /) -> int:
        if self.tell() > 1000:
            raise OSError(self.number, os.strerror(self.number))
        return super().readinto(memoryview(buffer)[:600]) or 0


@pytest.mark.parametrize(("number", "halfway"), [(errno.EIO, True), (errno.ESTALE, False)])
def test_a_checkpoint_that_cannot_be_read_just_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, halfway: bool
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())

    def fails(*_: Any, **__: Any) -> io.BufferedReader:
        if halfway:
            broken = FailsHalfway(path)
            broken.number = number
            return io.BufferedReader(broken)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "open_regular", fails)
    with pytest.raises(FileError, match=rf"^cannot read .*last\.pt: {os.strerror(number)}$"):
        load_checkpoint(path, "f" * 64)


def test_a_changed_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make())
    whole, noticed = path.read_bytes(), 0
    for place in range(7, len(whole), 997):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert torch.equal(load_checkpoint(path, "f" * 64).model["weight"], torch.arange(50_000.0))
        except DamagedError:
            noticed += 1
    assert noticed > 195, "all of the tensor's bytes"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_of_weights_shows_each_flipped_bit_and_not_how_tensors_lie_in_memory(dtype: torch.dtype) -> None:
    weights = {"a": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.empty(0), "scale": torch.tensor(3.0)}
    by_columns = {"scale": weights["scale"], "empty": weights["empty"], "a": weights["a"].t().contiguous().t()}
    assert weights_digest(by_columns) == weights_digest(weights)
    digests = {weights_digest(weights)}
    stored = weights["a"].view(torch.uint8)
    for place in range(stored.numel()):
        for bit in range(8):
            stored.view(-1)[place] ^= 1 << bit
            digests.add(weights_digest(weights))
            stored.view(-1)[place] ^= 1 << bit
    assert len(digests) == 1 + 8 * stored.numel()


def test_the_digest_of_weights_tells_names_and_shapes_apart() -> None:
    zeros = torch.zeros(6)
    variants = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 3)}, {"a": zeros[:3], "b": zeros[3:]}]
    assert len({weights_digest(weights) for weights in variants}) == len(variants)
