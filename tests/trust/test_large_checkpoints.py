"""Checkpoints that would take far more memory than they have bytes are refused before they take it."""

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.errors import CheckpointError
from seqlm.models import build_model
from seqlm.training.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint, trained_model
from tests.seqlm.training.studies import make_config

FINGERPRINT, MIB = "f" * 64, 2**20


def checkpoint(model: dict[str, torch.Tensor], vocabulary: int = 3) -> Checkpoint:
    return Checkpoint(
        fingerprint=FINGERPRINT,
        corpus_sha256="c" * 64,
        vocabulary=[str(number) for number in range(vocabulary)],
        model=model,
        optimizer=None,
        history=[],
        position=Position(epoch=1),
    )


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the parts of a checkpoint again, each as ``change`` returns it."""
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: change(part.filename, archive.read(part)) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def compressed(path: Path) -> None:
    save_checkpoint(path, checkpoint({"weight": torch.zeros(30 * MIB)}))
    repacked(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MIB


class Makes:
    """What a pickle takes for a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


def with_pickle(path: Path, content: bytes) -> None:
    save_checkpoint(path, checkpoint({"weight": torch.zeros(3)}))
    repacked(path, lambda name, before: content if name.endswith("data.pkl") else before)


def a_bytearray(path: Path) -> None:
    with_pickle(path, pickle.dumps(Makes(bytearray, 2**30), protocol=2))


def many_lists(path: Path) -> None:
    with_pickle(path, b"\x80\x02]" + b"]" * (30 * MIB) + b".")


def a_tensor_without_its_bytes(path: Path) -> None:
    """PyTorch makes the storage of a tensor larger if its shape needs it."""
    save_checkpoint(path, checkpoint({"weight": torch.zeros(1000, 3)}))
    before = path.stat().st_size

    def change(name: str, content: bytes) -> bytes:
        changed = content.replace(b"M\xe8\x03K\x03\x86", b"M\xe8\x03J" + (300_000).to_bytes(4, "little") + b"\x86")
        assert changed != content or not name.endswith("data.pkl")
        return changed

    repacked(path, change)
    assert path.stat().st_size < before + 5000


@pytest.mark.parametrize("plant", [compressed, a_bytearray, many_lists, a_tensor_without_its_bytes])
def test_a_checkpoint_that_unpacks_to_more_is_refused_within_little_memory(
    tmp_path: Path, plant: Callable[[Path], None], peak: Callable[[], int]
) -> None:
    path = tmp_path / "best.pt"
    plant(path)
    with pytest.raises(CheckpointError, match=r"best\.pt ") as caught:
        peak(lambda: load_checkpoint(path, FINGERPRINT))
    assert "\n" not in str(caught.value)


@pytest.fixture
def peak() -> Callable[[Callable[[], Any]], Any]:
    """Runs something and fails if it takes more than 300 MiB."""

    def measured(work: Callable[[], Any]) -> Any:
        status = Path("/proc/self/status")
        Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM counts again
        before = resident(status, "VmRSS")
        try:
            return work()
        finally:
            assert resident(status, "VmHWM") - before < 300 * MIB

    return measured


def resident(status: Path, key: str) -> int:
    return int(status.read_text().partition(f"{key}:")[2].split()[0]) * 1024


@pytest.mark.parametrize(
    "larger",
    [{"hidden_size": 20_000}, {"num_layers": 10**6}, {"embedding_size": 10**8}, {"hidden_size": 2**40}],
    ids=str,
)
@pytest.mark.parametrize("arch", ["gru", "transformer"])
def test_a_configuration_of_a_larger_model_than_the_checkpoint_has_takes_no_memory(
    tmp_path: Path, arch: str, larger: dict[str, int], peak: Callable[[Callable[[], Any]], Any]
) -> None:
    if arch == "transformer" and "embedding_size" in larger:
        pytest.skip("its embedding is as wide as its layers")
    config, path = make_config(arch), tmp_path / "best.pt"
    save_checkpoint(path, checkpoint(build_model(config.model, 3).state_dict()))
    found = load_checkpoint(path, FINGERPRINT)
    assert trained_model(path, found, config.model, 5, tmp_path).vocab_size == 3
    with pytest.raises(CheckpointError, match="does not hold the parameters of its model"):
        peak(lambda: trained_model(path, found, make_config(arch, **larger).model, 5, tmp_path))


def test_parameters_that_share_their_memory_make_no_larger_model(tmp_path: Path) -> None:
    config, path = make_config("gru", hidden_size=64), tmp_path / "best.pt"
    model = build_model(config.model, 3).state_dict()
    shared = torch.zeros(max(tensor.numel() for tensor in model.values()))
    save_checkpoint(
        path, checkpoint({name: shared[: tensor.numel()].view(tensor.shape) for name, tensor in model.items()})
    )
    with pytest.raises(CheckpointError, match="does not hold the parameters of its model"):
        trained_model(path, load_checkpoint(path, FINGERPRINT), config.model, 5, tmp_path)


def test_tied_parameters_are_those_of_their_model(tmp_path: Path) -> None:
    config, path = make_config("gru", hidden_size=12, tied=True), tmp_path / "best.pt"
    model = build_model(config.model, 3)
    save_checkpoint(path, checkpoint(copy.deepcopy(model.state_dict())))
    found = trained_model(path, load_checkpoint(path, FINGERPRINT), config.model, 5, tmp_path)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_file_that_is_checked_is_the_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint({"weight": torch.zeros(3)}))
    read = torch.load

    def replaced_meanwhile(file: io.BufferedReader, **options: Any) -> Any:
        save_checkpoint(path, checkpoint({"weight": torch.ones(3)}))
        return read(file, **options)

    monkeypatch.setattr(torch, "load", replaced_meanwhile)
    assert torch.equal(load_checkpoint(path, FINGERPRINT).model["weight"], torch.zeros(3))
